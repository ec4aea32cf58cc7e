"""Several processes that work as one."""

import math
import socket
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

# Returns once every process is here; all must come with the same words.
wait_for_all = multihost_utils.sync_global_devices


def process_index() -> int:
    """Which of several processes this is; says so where JAX cannot start."""
    try:
        return jax.process_index()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("(")[0].strip(" .") or "it is not there"
        platform = jax.config.jax_platforms
        msg = (
            f"JAX cannot start on the platform {platform!r} ({reason}): "
            "set JAX_PLATFORMS to cpu, cuda or tpu, or leave it out."
        )
        raise ValueError(msg) from error


def initialize(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    heartbeat_timeout: int = 100,
    connect_timeout: int = 300,
) -> None:
    """Join the other processes of a run, before anything is computed.

    Process 0 listens at `coordinator`, "HOST:PORT", and nowhere else. Without it, it,
    `count` and `index` are what Slurm, a TPU pod, Kubernetes or Open MPI say. After
    `heartbeat_timeout` seconds without a sign of life a process counts as dead, and JAX
    aborts all the others; within `connect_timeout` seconds all must be there.
    """
    if coordinator is not None and index != 0:
        _wait_for(coordinator, connect_timeout)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            # A Slurm job around them says nothing of processes started by hand.
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=connect_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            coordinator_bind_address=coordinator,
        )
    except ValueError as error:
        if coordinator is not None:
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


def from_first(tree: PyTree) -> PyTree:
    """The arrays of process 0, to the bit, in every process; all must call it.

    Hosts may differ in the last bit of what they compute, and what follows would then
    drift apart. Dtypes and numbers of axes must agree, shapes need not.
    """
    return tree if jax.process_count() == 1 else jax.tree.map(_from_first, tree)


def _from_first(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    # An axis of length 1 ahead, as there must be something to send.
    shape = np.array((1, *array.shape), np.uint32)
    shape = tuple(multihost_utils.broadcast_one_to_all(shape).tolist())[1:]
    size = math.prod(shape) * array.dtype.itemsize
    # As bytes, since JAX would make float64 float32; of few lengths, as each is a
    # program of its own.
    sent = np.zeros(1 << max(size - 1, 0).bit_length(), np.uint8)
    if jax.process_index() == 0:
        sent[:size] = np.frombuffer(array.tobytes(), np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return np.frombuffer(received[:size].tobytes(), array.dtype).reshape(shape)
