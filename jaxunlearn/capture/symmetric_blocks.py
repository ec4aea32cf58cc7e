"""Half of a symmetric matrix: sums of its upper blocks, and the whole made of them.

A gram is kept as blocks `[groups, r, w, w]` while it is added up over images, and is
put together once at the end. That is linear, so sums may run over the blocks.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_HIGHEST = lax.Precision.HIGHEST
# A product of few columns is slower for its size, as if it had so many more. On two
# cores `benchmarks/convolution_moments.py --products` finds about 60 GFLOP/s for 27
# columns, 120 for 48, 130 to 150 for 144, 155 to 170 for 288, 190 for 864.
NARROW = 30
# Blocks as narrow as that, and so many a side, gain more by symmetry than they lose.
_BLOCK, _SIDE = 128, 9


def block_count(columns: int, unit: int) -> int:
    """Into how many blocks a side a gram is best cut; `unit` columns stay together."""
    return max(
        n
        for n in range(1, _SIDE + 1)
        if columns % (n * unit) == 0 and (n == 1 or columns // n >= _BLOCK)
    )


def block_cost(columns: int, count: int) -> float:
    """Multiplications that one row brings, a narrow product's counted as more."""
    width = columns / count
    return count * (count + 1) / 2 * width * (width + NARROW)


def upper_blocks(views: Sequence[Float[Array, "... g w"]]) -> Float[Array, "g r w w"]:
    """`sum(x yT)` over all leading axes for each pair of views, the first not behind.

    Views are equal in shape: side by side, the rows' columns.
    """
    pairs = itertools.combinations_with_replacement(views, 2)
    return jnp.stack([contract(x, y) for x, y in pairs], axis=1)


def contract(x: Float[Array, "... g c"], y: Float[Array, "... g c"]) -> Array:
    """`sum(x yT)` over all leading axes, `[g, c, c]`."""
    if x.shape[-2] == 1:
        # A plain matrix product: the batched form makes XLA transpose its operands.
        x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
        return jnp.matmul(x.T, y, precision=_HIGHEST)[None]
    x, y = (a.reshape(-1, *a.shape[-2:]) for a in (x, y))
    return jnp.einsum("mgc,mge->gce", x, y, precision=_HIGHEST)


def whole(
    sums: Float[Array, "g r w w"],
    count: int,
    shares: Float[np.ndarray, "p r"] | None = None,
) -> Float[Array, "g d d"]:
    """The symmetric matrix `[g, count w, count w]`, `count` blocks a side.

    `sums` are its upper blocks, row by row; or what those are sums of, where `shares`
    says with which factor each counts in each upper block.
    """
    if shares is not None:
        shares = jnp.asarray(shares, sums.dtype)
        sums = jnp.einsum("pr,grce->gpce", shares, sums, precision=_HIGHEST)
    upper = np.zeros((count, count), np.int32)
    rows, columns = np.triu_indices(count)
    upper[rows, columns] = np.arange(len(rows))
    # A gather from blocks and their transposes; joining 81 of them one by one takes
    # twice as long.
    lower = np.tril(upper.T + len(rows), -1)
    groups, _, width, _ = sums.shape
    blocks = jnp.concatenate([sums, sums.swapaxes(2, 3)], axis=1)
    blocks = blocks[:, np.where(lower > 0, lower, upper)]
    size = count * width
    return blocks.transpose(0, 1, 3, 2, 4).reshape(groups, size, size)
