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

    Args:
      function: of as many trees of arrays as `in_axes` has entries.
      mesh: of one axis.
      in_axes: for each argument the axis that is cut into equal shares, one a device;
        None for one that every device gets whole.
      out_axes: the axis along which results are joined, or a tuple of them where
        `function` returns a tuple; None for what is the same on every device, for
        instance through `lax.psum`.
      transform: `jax.shard_map`, or `jax.pmap`.

    Raises:
      ValueError: there is no such transform, or the mesh has several axes.

    >>> import jax.numpy as jnp
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> def centre(rows, shift):
    ...     mean = jax.lax.pmean(rows.mean(1, keepdims=True), "data")
    ...     return rows - mean + shift, mean
    >>> run = map_shards(centre, mesh, (1, None), (1, None), "pmap")
    >>> rows, mean = run(jnp.array([[1.0, 3.0]]), 5.0)
    >>> print(rows, mean)
    [[4. 6.]] [[2.]]
    """
    check_transform(transform, mesh)
    mesh, name = automatic(mesh), axis_of(mesh)
    if transform == "shard_map":
        # A program traced for one image lacks the casts that varying-axis checks ask
        # for.
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=_over_axes(_spec(name), in_axes),
            out_specs=_over_axes(_spec(name), out_axes),
            check_vma=False,
        )
    devices = list(mesh.devices.flat)
    mapped = jax.pmap(
        function, axis_name=name, in_axes=in_axes, out_axes=out_axes, devices=devices
    )

    def cut(axis, x):
        return x.reshape(*x.shape[:axis], mesh.size, -1, *x.shape[axis + 1 :])

    def join(axis, x):
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def whole(*arguments):
        shares = _over_axes(_along(cut), in_axes, arguments)
        return _over_axes(_along(join), out_axes, mapped(*shares))

    return whole


def _over_axes(function, axes, *trees):
    """`function(axis, *trees)` of an axis, or of each of a tuple of them."""
    if isinstance(axes, tuple):
        return tuple(map(function, axes, *trees))
    return function(axes, *trees)


def _spec(name):
    def spec(axis):
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, name)

    return spec


def _along(reshape):
    """`reshape(axis, array)` for the arrays of a tree, or the tree as it is."""

    def apply(axis, tree):
        if axis is None:
            return tree
        return jax.tree.map(lambda x: reshape(axis, x), tree)

    return apply
