"""One function on every device's share, by `shard_map` or `pmap`."""

from collections.abc import Callable
from typing import Literal

import jax
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from jaxunlearn.parallel.meshes import automatic, axis_of

# What JAX has to run a function on each of several devices.
Transform = Literal["shard_map", "pmap"]


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

    >>> import jax.numpy as jnp
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


def on_leading_shares(
    function: Callable[[PyTree, PyTree], PyTree], mesh: Mesh
) -> Callable[[PyTree, PyTree], PyTree]:
    """`function(rows, shared)` on every device's share, as a function of all rows.

    Rows, given and returned, are cut along their leading axis into equal shares;
    `shared` is whole on every device.

    >>> import jax.numpy as jnp
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
