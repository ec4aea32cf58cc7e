"""What several networks have in common."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float


def halve(x: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
    """The largest value of every tile of 2 x 2; an odd last row or column is left out.

    What `flax.linen.max_pool` does, from slices, whose gradients XLA's CPU backend
    takes faster (`benchmarks/max_pooling.py`).
    """
    height, width = (length // 2 * 2 for length in x.shape[1:3])
    starts = ((0, 0), (0, 1), (1, 0), (1, 1))
    tiles = [x[:, i:height:2, j:width:2] for i, j in starts]
    return functools.reduce(jnp.maximum, tiles)


def check_side(network: str, images: Array, least: int) -> None:
    """Refuse images of which a side is shorter than `least` pixels."""
    height, width = images.shape[1:3]
    if min(height, width) < least:
        msg = (
            f"{network} needs images of {least} x {least} pixels or more; these are "
            f"{height} x {width}. Resize them (datasets.load(..., size=...), --size), "
            "or take a smaller network."
        )
        raise ValueError(msg)
