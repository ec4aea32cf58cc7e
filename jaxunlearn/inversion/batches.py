"""Labels cut into batches of one size, and the noise that a batch starts from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int


class Batches(NamedTuple):
    """Which images are optimised together.

    Attributes:
      rows: of the list of labels; the last batch is filled up with further ones.
      count: how many labels there are.
    """

    rows: Int[np.ndarray, "batches n"]
    count: int

    @classmethod
    def of(cls, count: int, batch_size: int, mesh: Mesh | None = None) -> "Batches":
        """Batches of one size, at most `batch_size`, that the devices share evenly.

        >>> Batches.of(5, 3).rows.tolist()
        [[0, 1, 2], [3, 4, 0]]
        """
        size = -(-count // -(-count // batch_size))
        if mesh is not None:
            size = -(-size // mesh.size) * mesh.size
        batches = -(-count // size)
        rows = np.arange(batches * size) % count
        return cls(rows.reshape(batches, size), count)


def batch_keys(key: Array, number: int) -> tuple[Array, Array]:
    """What a batch's start is drawn from, and its steps."""
    return jax.random.fold_in(key, 2 * number), jax.random.fold_in(key, 2 * number + 1)


def noise(
    key: Array, shape: tuple[int, ...], low: np.float32, high: np.float32
) -> Float[Array, "n h w c"]:
    """Uniform in the box, standard normal where there is none."""
    if np.isfinite(high - low):
        return low + jax.random.uniform(key, shape, jnp.float32) * (high - low)
    return jax.random.normal(key, shape, jnp.float32)
