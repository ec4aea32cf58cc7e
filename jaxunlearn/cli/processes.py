"""A command as one of several processes that a cluster, mpirun or a person started.

All of them see the same disk and compute the same; process 0 writes, the others are
quiet.
"""

import contextlib
import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Annotated

from jaxunlearn import parallel
from jaxunlearn.cli.places import disk_problem

# What the library raises with a sentence for its user.
_SENTENCES = (ValueError, TypeError, FloatingPointError, OSError, ImportError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distributed:
    """Which of several processes this is.

    Attributes:
      distributed: be one of several processes that Slurm, GKE, mpirun or you have
        started, on machines that share a disk.
      coordinator: address of process 0, where the cluster does not tell; process 0
        listens there and nowhere else.
      process_id: which of them this is, where the cluster does not tell.
      process_count: how many they are, where the cluster does not tell.
      heartbeat_timeout: how long a process may give no sign of life before the run
        ends.
      connect_timeout: how long they wait for each other at the start.
    """

    distributed: bool = False
    coordinator: Annotated[str | None, "HOST:PORT"] = None
    process_id: Annotated[int | None, "I"] = None
    process_count: Annotated[int | None, "N"] = None
    heartbeat_timeout: Annotated[int, "SECONDS"] = 30
    connect_timeout: Annotated[int, "SECONDS"] = 300

    def check_processes(self) -> None:
        """Refuse numbers out of range, and flags that do not go together."""
        least = {"heartbeat_timeout": 5, "connect_timeout": 1, "process_count": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                msg = f"--{name.replace('_', '-')} must be at least {bound}; it is {value}."  # noqa: E501
                raise ValueError(msg)
        by_hand = (self.coordinator, self.process_id, self.process_count)
        if by_hand == (None, None, None):
            return
        if not self.distributed or None in by_hand:
            flags = ("--coordinator", "--process-id", "--process-count")
            given = (f for f, x in zip(flags, by_hand, strict=True) if x is not None)
            msg = (
                f"{', '.join(given)} without the others: --distributed takes "
                "--coordinator, --process-id and --process-count together, or none of "
                "the three where the cluster tells them."
            )
            raise ValueError(msg)
        address, index, count = by_hand
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            msg = f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234; it is {address!r}."  # noqa: E501
            raise ValueError(msg)
        if not 0 <= index < count:
            msg = f"--process-id must be 0 to {count - 1} for --process-count {count}; it is {index}."  # noqa: E501
            raise ValueError(msg)


def is_first() -> bool:
    """Whether this process writes files and shows what happens: process 0 does."""
    return parallel.process_index() == 0


@contextlib.contextmanager
def joined(settings: Distributed) -> Iterator[None]:
    """Be one of several processes for as long as the `with` statement.

    A process that fails inside says why and is gone: Python's end would wait for the
    other processes, and they for this one. JAX then aborts them.
    """
    if not settings.distributed:
        yield
        return
    _keep_stdout_to_python()
    try:
        parallel.initialize(
            settings.coordinator,
            settings.process_count,
            settings.process_id,
            heartbeat_timeout=settings.heartbeat_timeout,
            connect_timeout=settings.connect_timeout,
        )
        yield
        sys.stdout.flush()
        parallel.shutdown()
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        sentence = (str(error) or "interrupted.") if stopped else sentence_of(error)
        if sentence is None:
            traceback.print_exception(error)
        else:
            print(f"jaxunlearn: {sentence}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130 if stopped else 2)


def sentence_of(error: BaseException) -> str | None:
    """What is said of an error; None for one that no user can do anything about."""
    if problem := disk_problem(error):
        return str(error) if str(error).startswith(problem) else problem
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"There is not enough memory ({str(error)[:300]}): take a smaller network, batch or image size."  # noqa: E501
    return str(error)[:1000] if isinstance(error, _SENTENCES) else None


def _keep_stdout_to_python() -> None:
    """Gloo, which connects CPUs, greets on the stdout that is for results."""
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    sys.stdout = os.fdopen(kept, "w", encoding=sys.stdout.encoding, buffering=1)
