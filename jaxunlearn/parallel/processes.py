"""Several processes that work as one."""

import socket
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxunlearn.parallel.placement import fetch, place_rows


def initialize(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    heartbeat_timeout: int,
    connect_timeout: int,
    loopback: bool = False,
) -> None:
    """Join the other processes of a run, before anything is computed.

    Args:
      coordinator: "HOST:PORT" of process 0. With None, it and the next two are what
        Slurm, a TPU pod, Kubernetes or Open MPI say.
      count: of the processes.
      index: of this one.
      heartbeat_timeout: seconds without a sign of life after which a process counts as
        dead. JAX then aborts all the others.
      connect_timeout: seconds in which all must be there.
      loopback: all are on this machine: nobody outside can connect, and on a GPU
        machine each takes the GPU of its own index.

    Raises:
      TimeoutError: nobody answers at the coordinator's address.
      ValueError: no cluster is found, or the others are of another count.
    """
    found = coordinator is None
    if coordinator is not None and index != 0:
        _wait_for(coordinator, connect_timeout)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            local_device_ids=index if loopback else None,
            # A Slurm job around them says nothing of processes started by hand.
            cluster_detection_method=None if found else "deactivate",
            initialization_timeout=connect_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            coordinator_bind_address=coordinator if loopback else None,
        )
    except ValueError as error:
        if not found:
            raise
        msg = (
            "No cluster was found from which to tell the other processes (Slurm, a TPU "
            f"pod, Kubernetes, Open MPI; JAX says: {error}): give the coordinator's "
            "address, the index of this process and how many they are."
        )
        raise ValueError(msg) from error
    if count is not None and jax.process_count() != count:
        msg = (
            f"This process was told of {count} processes and the coordinator at "
            f"{coordinator} of {jax.process_count()}: tell all the same."
        )
        raise ValueError(msg)


def _wait_for(address: str, seconds: float) -> None:
    """Return once somebody listens there, where JAX would abort the process."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                msg = (
                    f"Nobody answered at the coordinator's address {address} for "
                    f"{seconds} seconds ({error}): is process 0 running there, and can "
                    "this machine reach it?"
                )
                raise TimeoutError(msg) from error
        time.sleep(0.2)


def process_count() -> int:
    """How many processes share the work; one where nobody joined any others."""
    return jax.process_count()


def process_index() -> int:
    """Which of them this is."""
    return jax.process_index()


def device_count() -> int:
    """How many devices all of them have."""
    return jax.device_count()


def leave() -> None:
    """Wait until all processes are done, then let go of them."""
    jax.distributed.shutdown()


# Bytes at a time, as a device of each process holds a copy of them meanwhile.
_BROADCAST = 2**26


def broadcast(data: bytes) -> bytes:
    """What process 0 has, for all; every process must call it.

    Args:
      data: of process 0; what the others pass does not matter.

    >>> broadcast(b"one process")
    b'one process'
    """
    if jax.process_count() == 1:
        return data
    size = multihost_utils.broadcast_one_to_all(
        np.array(divmod(len(data), _BROADCAST), np.uint32)
    )
    pieces = []
    lengths = [_BROADCAST] * int(size[0]) + [int(size[1])]
    for number, length in enumerate(lengths):
        # Of few lengths, as each is a program of its own.
        piece = np.zeros(1 << max(length - 1, 0).bit_length(), np.uint8)
        if jax.process_index() == 0:
            start = number * _BROADCAST
            piece[:length] = np.frombuffer(data[start : start + length], np.uint8)
        received = multihost_utils.broadcast_one_to_all(piece)
        pieces.append(np.asarray(received)[:length].tobytes())
    return b"".join(pieces)


def exchange(data: bytes, mesh: Mesh) -> list[bytes]:
    """What each process of `mesh` has, in their order; every one of them must call it.

    >>> exchange(b"one process", jax.make_mesh((1,), ("data",)))
    [b'one process']
    """
    # One device of each process: more would hold further copies.
    firsts: dict[int, jax.Device] = {}
    for device in mesh.devices.flat:
        firsts.setdefault(device.process_index, device)
    ordered = [firsts[index] for index in sorted(firsts)]
    one_each = Mesh(np.array(ordered), ("process",))

    def gather(row: np.ndarray) -> np.ndarray:
        return np.asarray(fetch(place_rows(row[None], one_each), one_each))

    parts = gather(np.array(divmod(len(data), _BROADCAST), np.uint32)).tolist()
    lengths = [whole * _BROADCAST + rest for whole, rest in parts]
    most = max(_BROADCAST // len(ordered), 1)
    received = []
    for start in range(0, max(lengths), most):
        own = np.frombuffer(data[start : start + most], np.uint8)
        # Of few lengths, as each is a program of its own.
        width = 1 << (min(most, max(lengths) - start) - 1).bit_length()
        received.append(gather(np.pad(own, (0, width - len(own))))[:, :most])
    joined = np.concatenate(received, axis=1) if received else np.zeros((len(parts), 0))
    return [row[:length].tobytes() for row, length in zip(joined, lengths, strict=True)]
