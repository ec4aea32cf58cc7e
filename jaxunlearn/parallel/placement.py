"""Arrays cut over the devices of a mesh, copied to them, and fetched back."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from jaxunlearn.parallel.meshes import axis_of


def place_rows(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays cut along their leading axis over `mesh`, each process giving its rows."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(axis_of(mesh)))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def place_whole(tree: PyTree, mesh: Mesh | None) -> Any:
    """Arrays copied to every device of `mesh`; every process must give the same."""
    return tree if mesh is None else _place(tree, mesh, PartitionSpec())


def place_cut(tree: PyTree, mesh: Mesh | None, axis: int = 0) -> Any:
    """Arrays cut along an axis; every process must give the same whole."""
    if mesh is None:
        return tree
    return _place(tree, mesh, PartitionSpec(*[None] * axis, axis_of(mesh)))


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

        shape = (*rows.shape, *x.shape[1:])
        return jax.make_array_from_callback(shape, sharding, share)

    return jax.tree.map(put, arrays)


def _place(tree: PyTree, mesh: Mesh, spec: PartitionSpec) -> PyTree:
    sharding = NamedSharding(mesh, spec)
    if not mesh.is_multi_process:
        return jax.device_put(tree, sharding)

    def put(x):
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return _map_data(put, tree)


def _map_data(function: Callable[[Any], Array], tree: PyTree) -> PyTree:
    """`function` of every array of a tree, of a random key of its data."""

    def apply(x):
        if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended):
            return function(x)
        data = function(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))

    return jax.tree.map(apply, tree)


def keep_whole(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The same, inside a program, as copies on every device of `mesh`."""
    if mesh is None:
        return tree
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def from_mesh(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Copies of what lies whole on every device of `mesh`, on the default device."""
    if mesh is None:
        return tree

    # Through the host, so that no device is committed to.
    return _map_data(lambda x: jnp.asarray(np.asarray(x)), tree)


# Defined once, so that every shape compiles once.
_whole = jax.jit(keep_whole, static_argnums=1)


def fetch(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """What lies on the devices of `mesh`, cut or whole, as NumPy arrays everywhere."""
    if mesh is not None and mesh.is_multi_process:
        tree = _whole(tree, mesh)
    return jax.device_get(tree)


def zeros(shape: tuple[int, ...], dtype: Any, mesh: Mesh | None) -> Array:
    """Zeros; with a `mesh`, such an array on each device: `[devices, *shape]`."""
    if mesh is None:
        return jnp.zeros(shape, dtype)
    sharding = NamedSharding(mesh, PartitionSpec(axis_of(mesh)))
    return jnp.zeros((mesh.size, *shape), dtype, device=sharding)


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
