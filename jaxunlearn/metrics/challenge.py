"""The score of the NeurIPS 2023 unlearning challenge."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxunlearn.checks import check_key, check_nonnegative
from jaxunlearn.metrics.attackers import generator

_DELTA = 1e-5
# Stands for an infinite privacy loss.
_CAP = 50.0
_BUCKET = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class ForgettingQuality:
    """How well unlearned models hide among retrained ones.

    Attributes:
      quality: mean points over samples, in [0, 1].
      score: quality times both ratios of accuracies.
      epsilon: the privacy loss that the best rule shows of each sample, `[n]`.
      largest: the loss from which on there are no points: `ceil(log(N - 1))`, about the
        most that so many models can show.
      chance: the quality of the same models dealt at random into two kinds. The best of
        many rules shows a loss where there is none, the more so the fewer the models:
        this is the most that can be asked of them.
    """

    quality: float
    score: float
    epsilon: Float[np.ndarray, " n"]
    largest: float
    chance: float


def forgetting_quality(
    unlearned: Any,
    retrained: Any,
    *,
    key: Any,
    retain_ratio: float = 1.0,
    test_ratio: float = 1.0,
) -> ForgettingQuality:
    """Points for how little the best rule learns of each forgotten sample.

        eps = max over rules of log max((1 - d - FPR) / FNR, (1 - d - FNR) / FPR)

    d = 1e-5. A rule calls what lies above a threshold one of the kind with the larger
    median, or what lies in an interval one of the kind with the smaller range; all
    thresholds and intervals between values seen are tried. A rule of which one rate
    alone is 0 does not count (too few models); two rates of 0, and a range below 1 % of
    the other kind's, are a loss of 50. A loss in `[i/2, (i+1)/2)` gives `2^-i`
    points. On the host, in float64.

    Args:
      unlearned: logit-scaled confidences of `n` forgotten samples under N models,
        `[N, n]`; the challenge took 512.
      retrained: under as many retrained ones.
      key: a `jax.random.key`, for `chance`.
      retain_ratio: accuracy on retained samples over the retrained models'.
      test_ratio: accuracy on test samples over theirs.

    Raises:
      TypeError: `key` is no key.
      ValueError: shapes that differ, fewer than three models, values that are not
        finite, a negative ratio.

    Source: Triantafillou et al., arXiv 2406.09073. Judge it by that of two sets of
    retrained models.

    >>> import jax
    >>> draw = np.random.default_rng(0).normal(size=(2, 64, 5))
    >>> result = forgetting_quality(draw[0] + 9, draw[1], key=jax.random.key(0))
    >>> result.quality, 0 < result.chance < 0.2  # of 1, with 64 models
    (0.0, True)
    """
    u, g = (np.asarray(a, np.float64) for a in (unlearned, retrained))
    if u.ndim != 2 or u.shape != g.shape or len(u) < 3 or not u.shape[1]:
        msg = (
            "unlearned and retrained must be [N, n], under as many models, three or "
            f"more; their shapes are {u.shape} and {g.shape}."
        )
        raise ValueError(msg)
    if not (np.isfinite(u).all() and np.isfinite(g).all()):
        msg = "unlearned or retrained hold values that are not finite."
        raise ValueError(msg)
    check_key(key)
    check_nonnegative("retain_ratio", retain_ratio)
    check_nonnegative("test_ratio", test_ratio)
    largest = math.ceil(math.log(len(u) - 1))
    epsilon = _privacy_losses(u, g)
    quality = _mean_points(epsilon, largest)
    dealt = generator(key).permuted(np.concatenate([u, g]), axis=0)
    chance = _mean_points(_privacy_losses(*np.split(dealt, 2)), largest)
    score = quality * retain_ratio * test_ratio
    return ForgettingQuality(quality, score, epsilon, float(largest), chance)


def _mean_points(epsilon, largest):
    points = np.where(epsilon < largest, 0.5 ** np.floor(epsilon / _BUCKET), 0.0)
    return float(points.mean())


def _privacy_losses(u, g):
    return np.array([_privacy_loss(*pair) for pair in zip(u.T, g.T, strict=True)])


def _privacy_loss(u: np.ndarray, g: np.ndarray) -> float:
    narrow, wide = sorted((u, g), key=np.ptp)
    if np.ptp(narrow) < 0.01 * np.ptp(wide):
        return _CAP
    low, high = sorted((u, g), key=np.median)
    values = np.unique(np.concatenate([u, g]))
    below = [_below(kind, values) for kind in (narrow, wide)]
    first, last = np.triu_indices(len(values))
    inside = [counts[last + 1] - counts[first] for counts in below]
    missed = np.append(_below(high, values)[:-1], 1 - inside[0])
    called = np.append(1 - _below(low, values)[:-1], inside[1])
    # Rates are shares of N: what is nearly 0 is 0.
    missed, called = (np.where(rate < 1e-9, 0, rate) for rate in (missed, called))
    if ((missed == 0) & (called == 0)).any():
        return _CAP
    kept = (missed > 0) & (called > 0)
    missed, called = missed[kept], called[kept]
    ratios = [
        np.maximum(1 - _DELTA - one, 0) / other
        for one, other in ((called, missed), (missed, called))
    ]
    best = np.concatenate(ratios).max(initial=1.0)
    return float(np.clip(math.log(best), 0, _CAP))


def _below(kind, values):
    """The share below each value, and below infinity."""
    places = np.searchsorted(np.sort(kind), np.append(values, np.inf), side="left")
    return places / len(kind)
