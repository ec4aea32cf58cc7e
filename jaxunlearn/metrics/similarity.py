"""Likeness of features, weights and margins of several models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxunlearn.checks import check_choice

_HIGHEST = jax.lax.Precision.HIGHEST


def linear_cka(x: Any, y: Any, *, unbiased: bool = True) -> Float[Array, ""]:
    """Centred kernel alignment of two sets of features, with linear kernels.

        HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   K = x xT, L = y yT

    Biased, HSIC is `|xcT yc|_F^2` of centred columns. Unbiased, with zero diagonals,

        [tr(K L) + (1T K 1)(1T L 1) / ((n-1)(n-2)) - 2 / (n-2) 1T K L 1] / (n (n-3))

    both in O(n d e), without an n x n matrix. Traceable; products run at HIGHEST.

    Args:
      x: features of the samples in one network or layer.
      y: of the same samples in another; widths may differ.
      unbiased: independent features then average 0; few samples bias the other upwards.

    Raises:
      ValueError: not as many samples in each, or fewer than four (biased: two).

    Source: Kornblith et al., arXiv 1905.00414; Nguyen et al., arXiv 2010.15327.

    >>> x = jnp.array([[1.0], [2.0], [3.0]])
    >>> round(float(linear_cka(x, x**2, unbiased=False)), 6)
    0.979592
    """
    x, y = (jnp.asarray(a) for a in (x, y))
    least = 4 if unbiased else 2
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < least:
        msg = (
            f"x and y must be features [n, d] of the same n >= {least} samples; their "
            f"shapes are {x.shape} and {y.shape}."
        )
        raise ValueError(msg)
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    # Either is invariant under shifts; centred numbers are smaller.
    x, y = ((a - a.mean(axis=0, keepdims=True)).astype(dtype) for a in (x, y))
    hsic = _unbiased_hsic if unbiased else _biased_hsic
    return hsic(x, y) / jnp.sqrt(hsic(x, x) * hsic(y, y))


def _biased_hsic(x, y):
    return jnp.square(jnp.matmul(x.T, y, precision=_HIGHEST)).sum()


def _unbiased_hsic(x, y):
    n = len(x)
    own_x, own_y = jnp.square(x).sum(axis=1), jnp.square(y).sum(axis=1)
    # Rows of the kernels summed up, diagonals left out.
    rows_x = jnp.matmul(x, x.sum(axis=0), precision=_HIGHEST) - own_x
    rows_y = jnp.matmul(y, y.sum(axis=0), precision=_HIGHEST) - own_y
    trace = _biased_hsic(x, y) - own_x @ own_y
    sums = rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * (rows_x @ rows_y)) / (n * (n - 3))


def margins(logits: Any, labels: Any) -> Float[Array, " n"]:
    """By how much the label's logit exceeds the soft maximum of the others.

        z_y - log sum_{c != y} exp z_c

    >>> margins(jnp.array([[2.0, 1.0]]), jnp.array([0])).tolist()
    [1.0]
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    rest = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)
    return jnp.where(own, logits, 0).sum(axis=1) - rest


def klom(
    unlearned_margins: Any,
    retrained_margins: Any,
    *,
    bins: int = 20,
    variant: str = "closed",
) -> Float[np.ndarray, " n"]:
    """The divergence of margins over models: KL(unlearned || retrained), by example.

    Margins, clipped to +-100, fall into `bins` equal bins over the range of both sets;
    where unlearned models are, the retrained models' shares are floored at 1e-5, and
    then sum to 1 again. In nats, on the host, in float64. Its floor is that of two sets
    of retrained models.

    Args:
      unlearned_margins: of `n` examples under `m` unlearned models.
      retrained_margins: under `l` retrained ones.
      bins: how many.
      variant: "closed", or "as-coded:data-unlearning-bench", whose last bin is open, so
        that the largest margin of all is lost.

    Raises:
      ValueError: not `[m, n]` and `[l, n]` of at least one model, a margin that is not
        a number, or no such variant.

    Source: Georgiev et al., arXiv 2410.23232.

    >>> unlearned, retrained = np.array([[0.0, 1, 2, 3]]).T, np.array([[2.0, 3, 4, 10]]).T
    >>> klom(unlearned, retrained).round(6).tolist()
    [5.063336]
    """  # noqa: E501
    check_choice("variant", variant, ("closed", "as-coded:data-unlearning-bench"))
    u, g = (np.asarray(a, np.float64) for a in (unlearned_margins, retrained_margins))
    if u.ndim != 2 or g.ndim != 2 or u.shape[1] != g.shape[1] or 0 in u.shape + g.shape:
        msg = (
            "margins must be [models, examples], of the same examples; their shapes "
            f"are {u.shape} and {g.shape}."
        )
        raise ValueError(msg)
    if np.isnan(u).any() or np.isnan(g).any():
        msg = "margins hold values that are not a number."
        raise ValueError(msg)
    u, g = np.clip(u, -100, 100), np.clip(g, -100, 100)
    low = np.minimum(u.min(axis=0), g.min(axis=0))
    width = np.maximum(u.max(axis=0), g.max(axis=0)) - low
    p, q = (_shares(values, low, width, bins, variant) for values in (u, g))
    q = np.where(p > 0, np.maximum(q, 1e-5), q)
    q = q / q.sum(axis=0)
    there = p > 0
    return (p * np.log(np.where(there, p, 1) / np.where(there, q, 1))).sum(axis=0)


def _shares(values, low, width, bins, variant):
    place = (values - low) / np.where(width > 0, width, 1) * bins
    place = np.floor(place).astype(int)
    if variant == "closed":
        place = np.minimum(place, bins - 1)
    counts = (place == np.arange(bins)[:, None, None]).sum(axis=1)
    return counts / np.maximum(counts.sum(axis=0), 1)


def weight_distance(before: PyTree, after: PyTree) -> PyTree:
    """How far each weight has moved, relative to its size.

        |after - before|_F / |before|_F

    Only against the model that was edited (or one retrained from the same start):
    between networks trained independently it means nothing.

    Returns:
      Like params: Float[], NaN for a weight of zeros.

    >>> weight_distance({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 4.5])})
    {'w': Array(0.1, dtype=float32)}
    """
    return jax.tree.map(
        lambda old, new: (
            jnp.linalg.norm((new - old).ravel()) / jnp.linalg.norm(old.ravel())
        ),
        before,
        after,
    )
