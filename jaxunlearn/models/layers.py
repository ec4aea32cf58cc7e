"""What several networks have in common."""

import functools

import flax.linen as nn
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


# Channels that GroupNorm takes together.
_TOGETHER = 16


def normalised(
    x: Float[Array, "n h w c"], norm: str, train: bool, name: str
) -> Float[Array, "n h w c"]:
    """Within a module's call: BatchNorm ("batch") or GroupNorm ("group") of a map.

    GroupNorm's groups are of 16 channels, or of all where they are no multiple of 16: a
    group of one channel would make 0 of a map of one pixel.
    """
    if norm == "batch":
        return nn.BatchNorm(not train, momentum=0.9, name=name)(x)
    channels = x.shape[-1]
    groups = 1 if channels % _TOGETHER else channels // _TOGETHER
    return nn.GroupNorm(groups, epsilon=1e-5, name=name)(x)


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
