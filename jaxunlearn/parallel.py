"""The only file that names a device."""

import logging
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

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


def over_devices(function, mesh: Mesh):
    """Run `function(per_device, shared, *rows)` on every device of a one-axis mesh.

    `per_device` has a leading device axis outside and none inside; `shared` is the same
    everywhere; `rows` are cut along their leading axis. Returns the new `per_device`.
    """
    split, whole = PartitionSpec(axis_of(mesh)), PartitionSpec()

    def local(per_device, shared, *rows):
        per_device = jax.tree.map(lambda x: x[0], per_device)
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
    check_transform(transform)
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


def check_transform(transform: str) -> None:
    """Refuse what is neither "shard_map" nor "pmap"."""
    if transform not in Transform.__args__:
        msg = f'transform must be "shard_map" or "pmap"; it is {transform!r}.'
        raise ValueError(msg)


def mesh_for_rows(mesh: Mesh | None) -> Mesh | None:
    """The devices over which independent rows are cut, or None for a single one.

    Without a `mesh`: on a GPU or TPU all of this process's devices, on a CPU one.
    """
    if mesh is not None:
        mesh = automatic(mesh)
        if mesh.is_multi_process:
            msg = (
                "mesh holds devices of several processes: give those of this process "
                "alone, jax.local_devices()."
            )
            raise ValueError(msg)
        return mesh
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
    """Arrays copied to every device of `mesh`."""
    if mesh is None:
        return tree
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def place_columns(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays cut along their second axis over the devices of `mesh`."""
    if mesh is None:
        return tree
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(None, axis_of(mesh))))


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
            return jax.device_put(x, jax.local_devices()[0])
        # Through the host, so that no device is committed to.
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(copy, tree)


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
