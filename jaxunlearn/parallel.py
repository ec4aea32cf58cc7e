"""The only file that names a device."""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def linear_algebra_device() -> jax.Device:
    """Where float64 `eigh` and `qr` run: the GPU where there is one, else the CPU.

    TPUs have no float64 decompositions, so their hosts' CPUs do this work.
    """
    if jax.default_backend() == "gpu":
        return jax.local_devices(backend="gpu")[0]
    return jax.local_devices(backend="cpu")[0]


def loops_are_slow() -> bool:
    """Whether convolution gradients should stay out of `scan`, as on XLA's CPU backend.

    Measured there: a gradient step of a half-width All-CNN at batch 64 takes 12.2 s in
    a scan of length one and 0.24 s outside.
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
