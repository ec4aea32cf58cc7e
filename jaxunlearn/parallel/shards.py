"""One function on every device's share of its arguments, by `shard_map` or `pmap`."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import Mesh, PartitionSpec

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


def map_shards(
    function: Callable[..., Any],
    mesh: Mesh,
    in_axes: tuple[int | None, ...],
    out_axes: Any,
    transform: Transform = "shard_map",
) -> Callable[..., Any]:
    """`function` on every device's share, as a function of whole arrays.

    Both transforms run the same function, in which collectives may name the mesh's
    axis, and both may stand inside `jit` and loops.

    Each argument is a tree of arrays, cut along its axis in `in_axes` into equal
    shares, one a device; with None every device gets it whole. Results are joined along
    `out_axes`, one axis or one for each of a tuple of results; None stands for what is
    the same on every device, for instance through `lax.psum`.
    """
    check_transform(transform, mesh)
    mesh, name = automatic(mesh), axis_of(mesh)
    if transform == "shard_map":

        def spec(axis):
            return PartitionSpec(*([] if axis is None else [*[None] * axis, name]))

        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=_over_axes(spec, in_axes),
            out_specs=_over_axes(spec, out_axes),
            # A program traced for one image lacks the casts that this check asks for.
            check_vma=False,
        )
    devices = list(mesh.devices.flat)
    mapped = jax.pmap(
        function, axis_name=name, in_axes=in_axes, out_axes=out_axes, devices=devices
    )

    def reshaped(tree, axis, *shares):
        # In one axis, or in two with the devices' ahead.
        after = axis + 3 - len(shares)
        return jax.tree.map(
            lambda x: x.reshape(*x.shape[:axis], *shares, *x.shape[after:]), tree
        )

    def cut(axis, tree):
        return tree if axis is None else reshaped(tree, axis, mesh.size, -1)

    def join(axis, tree):
        return tree if axis is None else reshaped(tree, axis, -1)

    def whole(*arguments):
        return _over_axes(join, out_axes, mapped(*_over_axes(cut, in_axes, arguments)))

    return whole


def _over_axes(function, axes, *trees):
    """`function(axis, *trees)` of an axis, or of each of a tuple of them."""
    return jax.tree.map(function, axes, *trees, is_leaf=lambda axis: axis is None)
