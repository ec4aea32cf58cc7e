"""Membership attacks, against worked numbers and slow twins."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxunlearn.metrics import membership

pytestmark = pytest.mark.core

P = np.array([[0.7, 0.2, 0.1]] * 3)
MEMBERS, OTHERS = [0.99, 0.95, 0.9, 0.6], [0.8, 0.7, 0.5, 0.4]


def twin_modified_entropy(p, y):
    total = -(1 - p[y]) * math.log(p[y])
    return total - sum(p[c] * math.log(1 - p[c]) for c in range(len(p)) if c != y)


def test_modified_entropy_of_the_worked_row():
    values = membership.modified_entropy(P, np.arange(3))
    np.testing.assert_allclose(values, [0.162167, 2.140867, 2.959736], atol=1e-6)
    coded = membership.modified_entropy(P, np.arange(3), variant=membership.OPTML)
    np.testing.assert_allclose(coded, 3.466879, atol=1e-6)


def test_modified_entropy_knows_each_samples_own_label():
    draw = np.random.default_rng(0).normal(size=(40, 7))
    p = np.exp(draw) / np.exp(draw).sum(axis=1, keepdims=True)
    labels = np.arange(40) % 7
    values = membership.modified_entropy(p, labels)
    expected = [twin_modified_entropy(row, y) for row, y in zip(p, labels, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    alone = membership.modified_entropy(p[:1], labels[:1])
    np.testing.assert_allclose(alone, values[:1], rtol=1e-6)


def test_modified_entropy_of_sure_predictions():
    sure = np.array([[1.0, 0.0]] * 2)
    right, wrong = membership.modified_entropy(sure, np.array([0, 1]))
    assert float(right) == 0
    assert float(wrong) == pytest.approx(60 * math.log(10), rel=1e-5)


def test_confidences():
    p = np.array([[0.9, 0.1], [0.1, 0.9]])
    np.testing.assert_allclose(membership.confidence(p, np.array([0, 0])), [0.9, 0.1])
    scaled = membership.logit_scaled_confidence(p, np.array([0, 0]))
    np.testing.assert_allclose(scaled, [2.197225, -2.197225], atol=1e-6)


def test_the_threshold_of_the_worked_scores():
    attack = membership.threshold_attack(MEMBERS, OTHERS, MEMBERS, OTHERS)
    assert (attack.threshold, attack.accuracy, attack.auc) == (0.9, 0.875, 0.875)
    forgotten = membership.threshold_attack(MEMBERS, OTHERS, [0.97, 0.85, 0.3], OTHERS)
    assert forgotten.member_share == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_of_all_and_the_largest_of_equals(seed):
    rng = np.random.default_rng(seed)
    members, others = rng.integers(0, 9, 30) + 1.0, rng.integers(0, 7, 20) * 1.0
    candidates = sorted({*members, *others})
    quality = [(members >= t).mean() + (others < t).mean() for t in candidates]
    best = max(t for t, q in zip(candidates, quality, strict=True) if q == max(quality))
    attack = membership.threshold_attack(members, others, members, others)
    assert attack.threshold == best
    assert attack.shadow_accuracy == pytest.approx(max(quality) / 2)
    truth = np.repeat([1, 0], [30, 20])
    area = roc_auc_score(truth, np.concatenate([members, others]))
    assert attack.auc == pytest.approx(area)
    # Any increasing scale of the scores attacks alike; swapped roles mirror the area.
    scaled = [np.exp(s) for s in (members, others, members, others)]
    assert membership.threshold_attack(*scaled).accuracy == attack.accuracy
    swapped = membership.threshold_attack(members, others, others, members)
    assert swapped.auc == pytest.approx(1 - area)


def test_the_likelihood_ratio_of_the_worked_models():
    trained, unseen = [[1.0], [2.0], [3.0]], [[0.0], [1.0], [2.0]]
    (chance,) = membership.lira(trained, unseen, [2.5])
    assert chance == pytest.approx(0.817574, abs=1e-6)
    (chance,) = membership.lira(trained, unseen, [2.5], sigma="sample")
    assert chance == pytest.approx(0.731059, abs=1e-6)


def test_models_that_agree_give_a_finite_likelihood_ratio():
    same = np.ones((4, 3))
    np.testing.assert_array_equal(membership.lira(same, same, np.ones(3)), 0.5)
    rng = np.random.default_rng(1)
    trained, unseen, point = (
        rng.normal(size=(8, 5)),
        rng.normal(size=(6, 5)),
        rng.normal(size=5),
    )
    value = membership.lira(trained, unseen, point)
    order = rng.permutation(8)
    np.testing.assert_allclose(membership.lira(trained[order], unseen, point), value)


def attack(members, others):
    return membership.threshold_attack(members, others, MEMBERS, OTHERS)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: membership.modified_entropy(P, [0, 1]), ValueError, "shape is"),
        (lambda: membership.modified_entropy(P, [0, 1, 3]), ValueError, "0 to 2"),
        (lambda: membership.confidence(P[0], [0]), ValueError, "probabilities"),
        (lambda: membership.confidence(P > 0, [0, 1, 2]), TypeError, "bool"),
        (
            lambda: membership.threshold_attack([], OTHERS, MEMBERS, OTHERS),
            ValueError,
            "shadow_members must be scores",
        ),
        (
            lambda: membership.threshold_attack(MEMBERS, [np.nan], MEMBERS, OTHERS),
            ValueError,
            "hold 1 scores",
        ),
        (
            lambda: membership.lira([[1.0]], [[1.0], [2.0]], [1.0]),
            ValueError,
            "two or more models",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
