"""Labels cut into batches of one size, and batches into groups that run together."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int


class Groups(NamedTuple):
    """Which images are optimised together.

    Attributes:
      rows: of the list of labels; the last batch is filled up with further ones.
      count: how many labels there are.
    """

    rows: Int[np.ndarray, "groups batches n"]
    count: int

    @classmethod
    def of(
        cls, count: int, batch_size: int, batches_at_once: int, mesh: Mesh | None
    ) -> "Groups":
        """Batches of one size, at most `batch_size`, that the devices share evenly.

        >>> Groups.of(5, 3, 1, None).rows.tolist()
        [[[0, 1, 2]], [[3, 4, 0]]]
        """
        size = -(-count // -(-count // batch_size))
        if mesh is not None:
            size = -(-size // mesh.size) * mesh.size
        batches = -(-count // size)
        together = min(batches_at_once, batches)
        # Filled up with whole batches: how many run together changes none of them.
        batches = -(-batches // together) * together
        rows = np.arange(batches * size) % count
        return cls(rows.reshape(-1, together, size), count)

    @property
    def size(self) -> int:
        """Images in a group."""
        return self.rows[0].size

    def keys(self, key: Array, group: int) -> tuple[Array, Array]:
        """Of each batch in a group: what its start is drawn from, and its steps."""
        together = self.rows.shape[1]
        numbers = np.arange(group * together, (group + 1) * together)
        draw = jax.vmap(jax.random.fold_in, (None, 0))
        return draw(key, 2 * numbers), draw(key, 2 * numbers + 1)


def noise(
    keys: Array, shape: tuple[int, ...], low: np.float32, high: np.float32
) -> Float[Array, "batches n h w c"]:
    """Uniform in the box, standard normal where there is none; a key for each batch."""
    if np.isfinite(high - low):
        return low + _uniform(keys, shape) * (high - low)
    return _normal(keys, shape)


@functools.partial(jax.jit, static_argnums=1)
def _uniform(keys, shape):
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)


@functools.partial(jax.jit, static_argnums=1)
def _normal(keys, shape):
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
