"""The only file that names a device."""

import collections
import concurrent.futures
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

_log = logging.getLogger(__name__)

# What JAX has to run a function on each of several devices.
Transform = Literal["shard_map", "pmap"]


def linear_algebra_device() -> jax.Device:
    """Where float64 `eigh` and `qr` run: the GPU where there is one, else the CPU.

    TPUs have no float64 decompositions, so their hosts' CPUs do this work.
    """
    if jax.default_backend() == "gpu":
        return jax.local_devices(backend="gpu")[0]
    return jax.local_devices(backend="cpu")[0]


def loops_are_slow() -> bool:
    """Whether convolution gradients should stay out of `scan`, as on XLA's CPU backend.

    Measured there with `benchmarks/training_loops.py`: a training step of a half-width
    All-CNN at batch 64 takes 20.2 s in a loop of length one and 0.62 s outside.
    """
    return jax.default_backend() == "cpu"


def device_kind() -> str:
    """What the default device is called, such as "cpu" or "TPU v4"."""
    return jax.local_devices()[0].device_kind


def memory_limit() -> int:
    """Bytes that the default device can hold: its own limit, else the host's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def axis_of(mesh: Mesh) -> str:
    """The name of a mesh's only axis, or a sentence."""
    if not isinstance(mesh, Mesh) or len(mesh.axis_names) != 1:
        msg = (
            "mesh must be a jax.sharding.Mesh with one axis, such as "
            f"jax.make_mesh((jax.device_count(),), ('data',)); it is {mesh!r}."
        )
        raise ValueError(msg)
    return mesh.axis_names[0]


def automatic(mesh: Mesh) -> Mesh:
    """The same devices with an automatic axis, over which XLA cuts a whole program.

    Explicit axes would ask every operation of a network for its sharding.
    """
    return Mesh(mesh.devices, (axis_of(mesh),), axis_types=(AxisType.Auto,))


def mesh_for_batch(mesh: Mesh | None, batch_size: int) -> Mesh | None:
    """The devices that share a minibatch of training, or None for a single one.

    Without a `mesh`: on a GPU or TPU as many of this process's devices as divide the
    minibatch, on a CPU one, as simulated devices only share its cores.

    Raises:
      ValueError: the mesh has several axes, or does not divide the minibatch.
    """
    if mesh is not None:
        mesh = automatic(mesh)
        if batch_size % mesh.size:
            msg = (
                f"A minibatch of {batch_size} samples cannot be shared evenly by the "
                f"{mesh.size} devices of mesh: change batch_size or the mesh."
            )
            raise ValueError(msg)
        return mesh
    if jax.default_backend() == "cpu":
        return None
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    if len(devices) > 1:
        _log.info(
            "training on %d of %d devices, %d samples of a minibatch on each",
            count,
            len(devices),
            batch_size // count,
        )
    if count == 1:
        return None
    return Mesh(np.array(devices[:count]), ("data",), axis_types=(AxisType.Auto,))


def over_devices(function, mesh: Mesh, transform: Transform = "shard_map"):
    """Run `function(per_device, shared, *rows)` on every device of a one-axis mesh.

    `per_device` and `rows` have a leading device axis outside and none inside; `shared`
    is the same everywhere. Returns the new `per_device`.
    """
    check_transform(transform, mesh)
    if transform == "pmap":

        def mapped(per_device, shared, *rows):
            return jax.pmap(
                function,
                axis_name=axis_of(mesh),
                in_axes=(0, None, *(0 for _ in rows)),
                devices=list(mesh.devices.flat),
            )(per_device, shared, *rows)

        return mapped
    split, whole = PartitionSpec(axis_of(mesh)), PartitionSpec()

    def local(per_device, shared, *rows):
        per_device, rows = jax.tree.map(lambda x: x[0], (per_device, rows))
        return jax.tree.map(lambda x: x[None], function(per_device, shared, *rows))

    def sharded(per_device, shared, *rows):
        # A program traced for one image lacks the casts that varying-axis checks ask
        # for; no collective is inside, so there is nothing for them to find.
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(split, whole, *(split for _ in rows)),
            out_specs=split,
            check_vma=False,
        )(per_device, shared, *rows)

    return sharded


def on_shares(
    function: Callable[..., tuple[PyTree, PyTree]],
    mesh: Mesh,
    transform: Transform = "shard_map",
) -> Callable[..., tuple[PyTree, PyTree]]:
    """`function(rows, shared)` on every device's share, as a function of all rows.

    Both transforms run the same function, in which collectives may name the mesh's
    axis, and both may stand inside `jit` and loops.

    Args:
      function: returns `(rows, shared)`; what it returns as shared must be the same on
        every device, for instance through `lax.pmean`.
      mesh: of one axis.
      transform: `jax.shard_map`, or `jax.pmap`.

    Returns:
      `(rows, shared) -> (rows, shared)`. Rows are trees of arrays `[batches, n, ...]`
      that are cut along their second axis, into equal shares.

    Raises:
      ValueError: there is no such transform, or the mesh has several axes.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> def centre(rows, shared):
    ...     mean = lax.pmean(rows.mean(1, keepdims=True), "data")
    ...     return rows - mean + shared, mean
    >>> rows, mean = on_shares(centre, mesh, "pmap")(jnp.array([[1.0, 3.0]]), 5.0)
    >>> print(rows, mean)
    [[4. 6.]] [[2.]]
    """
    check_transform(transform, mesh)
    mesh, axis = automatic(mesh), axis_of(mesh)
    if transform == "shard_map":
        split, whole = PartitionSpec(None, axis), PartitionSpec()
        # As in `over_devices`: programs traced elsewhere lack the casts.
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(split, whole),
            out_specs=(split, whole),
            check_vma=False,
        )
    shares = jax.pmap(
        function,
        axis_name=axis,
        in_axes=(1, None),
        out_axes=(1, None),
        devices=list(mesh.devices.flat),
    )

    def whole(rows, shared):
        def cut(x):
            return x.reshape(x.shape[0], mesh.size, -1, *x.shape[2:])

        rows, shared = shares(jax.tree.map(cut, rows), shared)
        joined = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), rows)
        return joined, shared

    return whole


def check_transform(transform: str, mesh: Mesh | None = None) -> None:
    """Refuse what is neither "shard_map" nor "pmap", and pmap over processes."""
    if transform not in Transform.__args__:
        msg = f'transform must be "shard_map" or "pmap"; it is {transform!r}.'
        raise ValueError(msg)
    if transform == "pmap" and mesh is not None and mesh.is_multi_process:
        msg = (
            "mesh holds devices of several processes, over which only "
            'transform="shard_map" runs; it is "pmap".'
        )
        raise ValueError(msg)


def mesh_for_rows(mesh: Mesh | None) -> Mesh | None:
    """The devices over which independent rows are cut, or None for a single one.

    Without a `mesh`: on a GPU or TPU all of this process's devices, on a CPU one.
    """
    if mesh is not None:
        return automatic(mesh)
    devices = jax.local_devices()
    if jax.default_backend() == "cpu" or len(devices) == 1:
        return None
    _log.info("each batch is cut over %d devices", len(devices))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def place_rows(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays cut along their leading axis over the devices of `mesh`."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(axis_of(mesh)))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def place_whole(tree: PyTree, mesh: Mesh | None) -> Any:
    """Arrays copied to every device of `mesh`; every process must give the same."""
    return _place(tree, mesh, PartitionSpec())


def place_columns(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays cut along their second axis; every process must give the same whole."""
    if mesh is None:
        return tree
    return _place(tree, mesh, PartitionSpec(None, axis_of(mesh)))


def place_gathered(
    arrays: PyTree, rows: Int[np.ndarray, "steps n"], mesh: Mesh
) -> PyTree:
    """`array[rows]` of arrays on the host, cut along the second axis of `rows`.

    What other processes' devices hold is not gathered here.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, axis_of(mesh)))

    def put(x):
        def share(index):
            return x[rows[index[:2]]]

        return jax.make_array_from_callback(
            (*rows.shape, *x.shape[1:]), sharding, share
        )

    return jax.tree.map(put, arrays)


def _place(tree: PyTree, mesh: Mesh | None, spec: PartitionSpec) -> PyTree:
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, spec)
    if not mesh.is_multi_process:
        return jax.device_put(tree, sharding)

    def put(x):
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        if jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended):
            data = put(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def keep_whole(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The same, inside a program, as copies on every device of `mesh`."""
    if mesh is None:
        return tree
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def from_mesh(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Copies of what lies whole on every device of `mesh`, on the default device."""
    if mesh is None:
        return tree

    def copy(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            data = copy(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        # Through the host, so that no device is committed to.
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(copy, tree)


def fetch(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """What lies on the devices of `mesh`, cut or whole, as NumPy arrays everywhere."""
    if mesh is not None and mesh.is_multi_process:
        tree = jax.jit(lambda t: keep_whole(t, mesh))(tree)
    return jax.device_get(tree)


def own_share(count: int, mesh: Mesh | None) -> slice:
    """Which of `count` samples are this process's own: as many as each other's, or one.

    >>> own_share(5, None)
    slice(0, 5, None)
    """
    if mesh is None or not mesh.is_multi_process:
        return slice(0, count)
    processes = sorted({device.process_index for device in mesh.devices.flat})
    number = processes.index(jax.process_index())
    return slice(
        number * count // len(processes), (number + 1) * count // len(processes)
    )


def machine(mesh: Mesh | None) -> dict[str, Any]:
    """What the last bits of a result depend on, as plain values."""
    found = {
        "version of jax": jax.__version__,
        "device": device_kind(),
        "number of devices": 1 if mesh is None else mesh.size,
    }
    if jax.default_backend() == "cpu":
        # Not everywhere does the system tell which cores a process may use.
        allowed = getattr(os, "sched_getaffinity", None)
        found["number of cores"] = len(allowed(0)) if allowed else os.cpu_count()
    return found


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
            local_device_ids=[index] if loopback else None,
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


def global_mesh() -> Mesh | None:
    """All devices of all processes, those of one next to each other.

    None where there is one process, whose parts choose devices themselves.
    """
    if jax.process_count() == 1:
        return None
    return Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


# Bytes at a time, as each device holds a copy of them meanwhile.
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


def own_mesh(mesh: Mesh | None) -> Mesh | None:
    """What this process has of `mesh`: its own devices, in the same order.

    Raises:
      ValueError: it has none of them.
    """
    if mesh is None or not mesh.is_multi_process:
        return mesh
    index = jax.process_index()
    own = [device for device in mesh.devices.flat if device.process_index == index]
    if not own:
        msg = (
            f"mesh holds no device of process {index}, which cannot take part: make it "
            "of jax.devices(), or call from the processes whose devices it holds."
        )
        raise ValueError(msg)
    return Mesh(np.array(own), (axis_of(mesh),), axis_types=(AxisType.Auto,))


def join_processes(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays `[own devices, ...]`, cut over `own_mesh(mesh)`, as ones cut over `mesh`.

    Nothing travels: each process says what its devices hold of the whole.
    """
    if not mesh.is_multi_process:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(axis_of(mesh)))

    def join(x):
        shards = [shard.data for shard in x.addressable_shards]
        shape = (mesh.size, *x.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    return jax.tree.map(join, tree)


def sum_over_devices(
    tree: PyTree, mesh: Mesh, transform: Transform = "shard_map"
) -> PyTree:
    """Arrays `[devices, ...]`, cut over `mesh`, added up by `psum` on every device."""
    axis = axis_of(mesh)

    def add(tree):
        return lax.psum(tree, axis)

    if transform == "pmap":
        devices = list(mesh.devices.flat)
        return jax.pmap(add, axis_name=axis, out_axes=None, devices=devices)(tree)
    return jax.shard_map(
        lambda tree: add(jax.tree.map(lambda x: x[0], tree)),
        mesh=mesh,
        in_specs=PartitionSpec(axis),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(tree)


def zeros(shape: tuple[int, ...], dtype: Any, mesh: Mesh | None) -> Array:
    """Zeros; with a `mesh`, such an array on each device: `[devices, *shape]`."""
    if mesh is None:
        return jnp.zeros(shape, dtype)
    sharding = NamedSharding(mesh, PartitionSpec(axis_of(mesh)))
    return jnp.zeros((mesh.size, *shape), dtype, device=sharding)


def on_leading_shares(
    function: Callable[[PyTree, PyTree], PyTree], mesh: Mesh
) -> Callable[[PyTree, PyTree], PyTree]:
    """`function(rows, shared)` on every device's share, as a function of all rows.

    Rows, given and returned, are cut along their leading axis into equal shares;
    `shared` is whole on every device.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> add = on_leading_shares(lambda rows, shared: rows + shared, mesh)
    >>> print(add(jnp.arange(2.0), 1.0))
    [1. 2.]
    """
    split, whole = PartitionSpec(axis_of(mesh)), PartitionSpec()
    # As in `over_devices`: programs traced elsewhere lack the casts.
    return jax.shard_map(
        function,
        mesh=automatic(mesh),
        in_specs=(split, whole),
        out_specs=split,
        check_vma=False,
    )


def spread_over_devices(
    function: Callable[[Any, jax.Device], Any],
    items: Sequence[Any],
    sizes: Sequence[float],
    devices: Sequence[jax.Device] | None = None,
) -> list[Any]:
    """`function(item, device)` for every item, in their order; the largest begin.

    Whichever device is free takes the largest item left. By default these are the
    devices that `linear_algebra_device` is one of, without the simulated ones, which
    share their cores. What a call raises is raised here; no further item is begun.

    >>> spread_over_devices(lambda item, device: 2 * item, [1, 3, 2], sizes=[1, 3, 2])
    [2, 6, 4]
    """
    if devices is None:
        on_gpu = jax.default_backend() == "gpu"
        devices = jax.local_devices() if on_gpu else [linear_algebra_device()]
    ahead = collections.deque(np.argsort(-np.asarray(sizes), kind="stable").tolist())
    found: list[Any] = [None] * len(items)

    def work(device: jax.Device) -> None:
        while True:
            try:
                index = ahead.popleft()
            except IndexError:
                return
            try:
                found[index] = function(items[index], device)
            except BaseException:
                ahead.clear()
                raise

    if len(devices) == 1 or len(items) == 1:
        work(devices[0])
        return found
    with concurrent.futures.ThreadPoolExecutor(len(devices)) as threads:
        for _ in threads.map(work, devices):
            pass
    return found
