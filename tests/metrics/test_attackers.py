"""Membership attacks by a classifier, against the same attack written out."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from jaxunlearn.metrics import attackers, membership

KEY = jax.random.key(0)


def outputs(seed, n, sharpness, classes=4):
    """Probabilities that favour the label, the more so the sharper."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    z = rng.normal(size=(n, classes)) + sharpness * np.eye(classes)[labels]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return p.astype(np.float32), labels


MEMBERS, OTHERS, ATTACKED = outputs(0, 90, 4), outputs(1, 60, 1), outputs(2, 40, 2)


@pytest.mark.long
def test_support_vectors_call_unsure_samples_no_members():
    missed = attackers.svc_membership(MEMBERS, OTHERS, OTHERS, key=KEY)
    found = attackers.svc_membership(MEMBERS, OTHERS, MEMBERS, key=KEY)
    for name in ("confidence", "modified_entropy", "probabilities"):
        assert getattr(missed, name) > getattr(found, name) + 0.3
    assert missed.shadows[0] == missed.shadows[1]


@pytest.mark.long
def test_support_vectors_of_the_attack_written_out():
    value = attackers.svc_membership(MEMBERS, OTHERS, ATTACKED, key=KEY)
    rows = attackers.matched_rows(MEMBERS[1], OTHERS[1], KEY)
    x = [p[np.arange(len(y)), y][r] for (p, y), r in zip((MEMBERS, OTHERS), rows)]  # noqa: B905
    attacker = SVC(C=3, gamma="auto").fit(
        np.concatenate(x)[:, None], np.repeat([1, 0], len(rows[0]))
    )
    p, y = ATTACKED
    called = attacker.predict(p[np.arange(len(y)), y][:, None])
    assert value.confidence == pytest.approx(1 - called.mean())


def test_shadow_sets_hold_as_many_of_every_class():
    labels, others = np.repeat([0, 1, 2], [9, 4, 5]), np.repeat([0, 1, 3], [3, 8, 9])
    rows, other_rows = attackers.matched_rows(labels, others, KEY)
    assert sorted(labels[rows]) == sorted(others[other_rows]) == [0] * 3 + [1] * 4
    assert len(set(rows)) == len(set(other_rows)) == 7
    first, _ = attackers.matched_rows(labels, others, KEY, 5)
    assert len(first) == 5
    np.testing.assert_array_equal(first, rows[:5])


@pytest.mark.long
def test_support_vectors_as_coded_take_the_first_samples_and_all_labels():
    coded = attackers.svc_membership(
        MEMBERS, OTHERS, ATTACKED, key=KEY, variant=membership.OPTML
    )
    assert coded.shadows == (60, 60)

    def entropies(p, y):
        occurs = np.isin(np.arange(p.shape[1]), y)
        return -(np.where(occurs, 1 - p, p) * np.log(p)).sum(axis=1, keepdims=True)

    first = MEMBERS[0][:60], MEMBERS[1][:60]
    x = np.concatenate([entropies(*first), entropies(*OTHERS)])
    attacker = SVC(C=3, gamma="auto").fit(x, np.repeat([1, 0], 60))
    expected = 1 - attacker.predict(entropies(*ATTACKED)).mean()
    assert coded.modified_entropy == pytest.approx(expected, abs=0.03)
    exact = attackers.svc_membership(MEMBERS, OTHERS, ATTACKED, key=KEY)
    assert exact.modified_entropy != coded.modified_entropy


def test_the_entropy_attack_written_out():
    value = attackers.entropy_logistic_membership(MEMBERS[0], OTHERS[0], ATTACKED[0])
    h = [-(p * np.log(p)).sum(axis=1)[:, None] for p, _ in (MEMBERS, OTHERS, ATTACKED)]
    attacker = LogisticRegression(class_weight="balanced")
    attacker.fit(np.concatenate(h[:2]), np.repeat([1, 0], [90, 60]))
    assert value.member_share == pytest.approx(attacker.predict(h[2]).mean())
    balanced = attacker.predict(h[0]).mean() - attacker.predict(h[1]).mean()
    assert value.shadow_accuracy == pytest.approx((1 + balanced) / 2)


@pytest.mark.long
def test_losses_of_one_kind_cannot_be_told_apart_and_others_can():
    rng = np.random.default_rng(2)
    same = attackers.simple_loss_attack(
        rng.exponential(size=300), rng.exponential(size=400), key=KEY
    )
    assert same.samples == 300
    assert abs(same.accuracy - 0.5) < 0.08
    assert abs(same.auc - 0.5) < 0.08
    low, high = rng.normal(0, 1, 80), rng.normal(3, 1, 80)
    told = attackers.simple_loss_attack(low, high, key=KEY)
    area = roc_auc_score(np.repeat([1, 0], 80), -np.concatenate([low, high]))
    assert told.auc == pytest.approx(area)
    assert told.accuracy > 0.85
    # A forgotten sample of *higher* loss is told apart too, and the area shows it.
    swapped = attackers.simple_loss_attack(high, low, key=KEY)
    assert swapped.auc == pytest.approx(1 - area)
    assert swapped.accuracy > 0.85
    assert swapped == attackers.simple_loss_attack(high, low, key=KEY)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: attackers.svc_membership(
                MEMBERS, OTHERS, ATTACKED, key=KEY, variant="exakt"
            ),
            "variant must be one of",
        ),
        (
            lambda: attackers.svc_membership(
                (MEMBERS[0], MEMBERS[1] * 0),
                (OTHERS[0], OTHERS[1] * 0 + 1),
                OTHERS,
                key=KEY,
            ),
            "share no class",
        ),
        (
            lambda: attackers.svc_membership(
                MEMBERS, OTHERS, (OTHERS[0][:0], OTHERS[1][:0]), key=KEY
            ),
            "attacked is empty",
        ),
        (
            lambda: attackers.simple_loss_attack(np.ones(9), np.ones(30), key=KEY),
            "there are 9 forget_losses",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
