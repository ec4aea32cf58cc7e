"""A command as one of several processes: its flags, joining the others, agreeing."""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn, TypeVar

from rich.console import Console
from tyro.conf import arg

from jaxunlearn import parallel

T = TypeVar("T")

# In the environment of a process that another one of ours started and watches.
_VARIABLE = "JAXUNLEARN_WORKER"

# Exit statuses: of one that ended with a sentence of its own, of one that ended because
# process 0 did, and of one whose connection to another broke.
FAILED, FOLLOWED, LOST = 2, 3, 4

# When one process dies, those that wait for it fail too. What they say of it can wait
# until the one that watches has seen who was first.
_GRACE = 2.0

# How the errors of JAX's own begin that tell of lost connections.
_LOST = re.compile(
    "(UNKNOWN|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL): "
)

# What the library raises with a sentence for its user.
SENTENCES = (ValueError, TypeError, FloatingPointError, OSError, ImportError)

_Seconds = arg(metavar="SECONDS")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Several:
    """On how many processes a command runs.

    Attributes:
      processes: start so many on this machine, which share all devices and the work.
      distributed: be one of several that Slurm, GKE, mpirun or you have started.
      coordinator: address of process 0, where the cluster does not tell.
      process_id: which of them this is, where the cluster does not tell.
      process_count: how many they are, where the cluster does not tell.
      heartbeat_timeout: how long a process may give no sign of life before the run
        ends.
      connect_timeout: how long they wait for each other at the start.
    """

    processes: Annotated[int, arg(metavar="N")] = 1
    distributed: bool = False
    coordinator: Annotated[str | None, arg(metavar="HOST:PORT")] = None
    process_id: Annotated[int | None, arg(metavar="I")] = None
    process_count: Annotated[int | None, arg(metavar="N")] = None
    heartbeat_timeout: Annotated[int, _Seconds] = 30
    connect_timeout: Annotated[int, _Seconds] = 300

    @property
    def several(self) -> bool:
        """Whether more than this process takes part."""
        return self.distributed or self.processes > 1

    def check_processes(self) -> None:
        """Refuse what cannot be started.

        Raises:
          ValueError: numbers out of range, or flags that do not go together.
        """
        least = {"processes": 1, "heartbeat_timeout": 5, "connect_timeout": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value < bound:
                msg = f"{_flag(name)} must be at least {bound}; it is {value}."
                raise ValueError(msg)
        if self.distributed and self.processes > 1:
            msg = (
                "--processes starts the others itself and --distributed joins those "
                "that are started already: give one of them."
            )
            raise ValueError(msg)
        by_hand = ("coordinator", "process_id", "process_count")
        given = [name for name in by_hand if getattr(self, name) is not None]
        if not given:
            return
        if not self.distributed or len(given) < len(by_hand):
            flags = ", ".join(map(_flag, given))
            msg = (
                f"{flags} without the others: --distributed takes --coordinator, "
                "--process-id and --process-count together, or none of the three where "
                "the cluster tells them."
            )
            raise ValueError(msg)
        _check_address(self.coordinator or "")
        count, index = self.process_count or 0, self.process_id or 0
        if count < 1 or not 0 <= index < count:
            msg = (
                f"--process-id must be 0 to {count - 1} for --process-count {count}; "
                f"it is {index}."
                if count >= 1
                else f"--process-count must be at least 1; it is {count}."
            )
            raise ValueError(msg)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        msg = f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234; it is {address!r}."  # noqa: E501
        raise ValueError(msg)


class Worker(NamedTuple):
    """What the process that watches tells one that it starts.

    Attributes:
      joined: a file to make once all processes have found each other.
      coordinator: of processes on this machine; None if the flags or the cluster tell.
      process_count: likewise.
      process_id: likewise.
    """

    joined: str
    coordinator: str | None = None
    process_count: int | None = None
    process_id: int | None = None

    def environment(self) -> dict[str, str]:
        """The environment to start it in."""
        return {**os.environ, _VARIABLE: json.dumps(self)}

    @classmethod
    def here(cls) -> "Worker | None":
        """What this process was told, or None if nobody watches it."""
        told = os.environ.get(_VARIABLE)
        return None if told is None else cls(*json.loads(told))


class Followed(Exception):  # noqa: N818
    """Process 0 has failed and says why."""


def is_writer() -> bool:
    """Whether this process writes files and shows what happens: process 0 does."""
    return parallel.process_index() == 0


def decided(function: Callable[[], T]) -> T:
    """What the function returns in process 0, which alone calls it, for all.

    Every process must come here. What the function raises ends them all.

    Args:
      function: what reads or writes files that only process 0 may have.

    Raises:
      Followed: in the other processes, where the function raised.

    >>> decided(lambda: 3)
    3
    """
    if parallel.process_count() == 1:
        return function()
    error, value = None, None
    if is_writer():
        try:
            value = function()
        except BaseException as raised:
            error = raised
    told = parallel.broadcast(pickle.dumps((error is None, value)))
    if error is not None:
        raise error
    fine, value = pickle.loads(told)  # of our own process 0
    if not fine:
        raise Followed
    return value


@contextlib.contextmanager
def joined(settings: Several) -> Iterator[None]:
    """Be one of several processes for as long as the `with` statement.

    A process that fails inside does not return: Python's end would wait for the other
    processes, and they for this one. It says why, and is gone.
    """
    worker = Worker.here()
    if worker is None:
        yield
        return
    threading.Thread(target=_end_with_the_watcher, daemon=True).start()
    _keep_stdout_to_python()
    try:
        by_hand = (settings.coordinator, settings.process_count, settings.process_id)
        loopback = worker.coordinator is not None
        parallel.initialize(
            *(worker[1:] if loopback else by_hand),
            heartbeat_timeout=settings.heartbeat_timeout,
            connect_timeout=settings.connect_timeout,
            loopback=loopback,
        )
        Path(worker.joined).touch()
        yield
        sys.stdout.flush()
        parallel.leave()
    except BaseException as error:
        _end(error, worker)


def _end_with_the_watcher() -> None:
    """End when the watcher does, whose end of this pipe closes then."""
    # Nothing is ever written to it. Not through `sys.stdin`, which Python would want to
    # lock at its own end.
    os.read(0, 1)
    try:
        # Progress bars hide it.
        Console(stderr=True).show_cursor()
    finally:
        os._exit(FOLLOWED)


def _keep_stdout_to_python() -> None:
    """Gloo, which connects CPUs, greets on the stdout that is for results."""
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    sys.stdout = os.fdopen(kept, "w", encoding=sys.stdout.encoding, buffering=1)


def _end(error: BaseException, worker: Worker) -> NoReturn:
    """Leave at once, with a sentence where it is one's own to say."""
    if isinstance(error, Followed):
        os._exit(FOLLOWED)
    # What all processes found, process 0 says; what ended a process that this one
    # waited for, its watcher does.
    together = Path(worker.joined).exists()
    first = not together or is_writer()
    time.sleep(_GRACE if first else 2 * _GRACE)
    if _LOST.match(str(error)):
        # What this means is for the watcher to say.
        print(f"JAX says: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(LOST)
    if isinstance(error, (*SENTENCES, KeyboardInterrupt)):
        print(f"jaxunlearn: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(FAILED)
