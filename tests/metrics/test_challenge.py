"""The challenge's score, against all rules written out."""

import math
from functools import partial

import jax
import numpy as np
import pytest

from jaxunlearn.metrics import forgetting_quality as metric

forgetting_quality = partial(metric, key=jax.random.key(0))

pytestmark = pytest.mark.core


def loss(fpr, fnr):
    if fpr == fnr == 0:
        return 50.0
    if 0 in (fpr, fnr):
        return 0.0
    ratios = (1 - 1e-5 - fpr) / fnr, (1 - 1e-5 - fnr) / fpr
    return max(math.log(max(ratio, 1e-9)) for ratio in ratios)


def twin(u, g):
    """Every threshold and every interval, by counting."""
    high, low = (u, g) if np.median(u) > np.median(g) else (g, u)
    narrow, wide = (u, g) if np.ptp(u) < np.ptp(g) else (g, u)
    values = sorted({*u, *g})
    losses = [0.0]
    for t in values:
        losses.append(loss(np.mean(low >= t), np.mean(high < t)))
        for s in values:
            if t <= s:
                inside = [(x >= t) & (x <= s) for x in (wide, narrow)]
                losses.append(loss(inside[0].mean(), (~inside[1]).mean()))
    return max(losses)


@pytest.mark.parametrize("seed", range(4))
def test_losses_are_those_of_all_rules(seed):
    rng = np.random.default_rng(seed)
    u, g = rng.normal(0.5, 1, (8, 6)), rng.normal(0, 2, (8, 6))
    result = forgetting_quality(u, g, retain_ratio=0.5, test_ratio=0.8)
    expected = [twin(*pair) for pair in zip(u.T, g.T, strict=True)]
    np.testing.assert_allclose(result.epsilon, expected, atol=1e-12)
    # ceil(log 7) = 2: four buckets of a half.
    assert result.largest == 2
    points = [0 if e >= 2 else 0.5 ** int(e // 0.5) for e in expected]
    assert result.quality == pytest.approx(np.mean(points))
    assert result.score == pytest.approx(np.mean(points) * 0.4)
    order = rng.permutation(8)
    assert forgetting_quality(u[order], g).quality == pytest.approx(result.quality)


def test_models_that_are_told_apart_and_a_peak_score_nothing():
    g = np.random.default_rng(0).normal(size=(20, 3))
    assert (forgetting_quality(g + 99, g).epsilon == 50).all()
    peak = forgetting_quality(g * 1e-3, g)
    assert (peak.epsilon == 50).all()
    assert peak.quality == 0
    # Dealt at random, models that differ by 99 are told apart no better than any.
    assert forgetting_quality(g + 99, g).chance > 0
    draw = np.random.default_rng(1).normal(size=(2, 20, 100))
    result = forgetting_quality(*draw)
    assert result.chance == pytest.approx(result.quality, abs=0.05)
    same = forgetting_quality(np.ones((4, 2)), np.ones((4, 2)))
    assert same.quality == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: forgetting_quality(np.ones((3, 2)), np.ones((4, 2))),
            "as many",
        ),
        (lambda: forgetting_quality(np.ones((2, 2)), np.ones((2, 2))), "three or more"),
        (
            lambda: forgetting_quality(np.full((3, 2), np.inf), np.ones((3, 2))),
            "not finite",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
