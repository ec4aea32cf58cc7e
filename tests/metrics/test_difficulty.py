"""Difficulty of samples and classes, against loops in plain Python and float64."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import metrics
from jaxunlearn.tasks import Data

K = 5
RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.arange(40) % 4)  # class 4 has no sample
LOGITS = RNG.normal(size=(40, K)).astype(np.float32) + 1.5 * np.eye(K)[LABELS]
DATA = Data(LOGITS.astype(np.float32).reshape(40, 1, K, 1), LABELS)


def read_out(scale=1.0, classes=K):
    """Its logits are the pixels, or the first of them."""

    def apply(params, state, images):
        return params["scale"] * images.reshape(len(images), -1)[:, :classes]

    return ju.freeze(ju.Function(apply, {"scale": jnp.float32(scale)}))


def twin(logits):
    """Margin and softmax of every sample, and whether it is right, in pure Python."""
    found = []
    for row, label in zip(logits.tolist(), LABELS.tolist(), strict=True):
        others = [x for c, x in enumerate(row) if c != label]
        total = math.fsum(math.exp(x) for x in row)
        p = [math.exp(x) / total for x in row]
        found.append((row[label] - max(others), p, row.index(max(row)) == label))
    margins, probabilities, right = zip(*found, strict=True)
    return np.array(margins), np.array(probabilities), np.array(right)


def test_margins_are_those_of_a_loop():
    found = metrics.classification_margins(LOGITS, LABELS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, twin(LOGITS)[0], atol=1e-12)
    # Right where the margin is positive, wrong where it is negative.
    np.testing.assert_array_equal(found > 0, LOGITS.argmax(axis=1) == LABELS)


def test_of_several_classifiers_it_is_the_mean():
    several = metrics.sample_difficulty([read_out(), read_out(-0.5)], DATA)
    pixels = DATA.images.reshape(40, K).astype(np.float64)
    twins = [twin(scale * pixels) for scale in (1.0, -0.5)]
    for found, each in zip(
        (several.margins, several.probabilities, several.right),
        zip(*twins, strict=True),
        strict=True,
    ):
        np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6)
    assert set(several.right) > {0.5}
    one = metrics.sample_difficulty(read_out(), DATA)
    np.testing.assert_allclose(one.margins, twins[0][0], atol=1e-6)
    assert not np.allclose(one.margins, several.margins)


@pytest.mark.parametrize("order", ["easiest", "hardest"])
@pytest.mark.parametrize("count", [1, 7, 20])
def test_samples_by_margin_are_those_of_a_sort(order, count):
    margins = np.round(LOGITS[:, 0])  # many ties
    among = LABELS != 2
    sign = 1 if order == "hardest" else -1
    ranked = sorted((sign * m, i) for i, m in enumerate(margins) if among[i])
    found = metrics.by_margin(margins, count, order=order, among=among)
    assert found.tolist() == sorted(i for _, i in ranked[:count])


def test_all_samples_are_easiest_and_hardest_alike():
    for order in ("easiest", "hardest"):
        found = metrics.by_margin(LOGITS[:, 0], 40, order=order)
        assert found.tolist() == list(range(40))


@pytest.mark.parametrize("order", ["easiest", "hardest"])
def test_samples_by_confusion_have_most_or_least_of_a_class(order):
    p = twin(LOGITS)[1]
    sign = -1 if order == "hardest" else 1
    ranked = sorted((sign * p[i, 1], i) for i in range(40) if LABELS[i] in (0, 3))
    found = metrics.by_confusion(p, LABELS, 1, 6, order=order, among=LABELS % 3 == 0)
    assert found.tolist() == sorted(i for _, i in ranked[:6])
    # Its own samples never are.
    assert 1 not in LABELS[metrics.by_confusion(p, LABELS, 1, 30, order=order)]


def test_confusion_of_classes_is_that_of_a_loop():
    p = twin(LOGITS)[1]
    found = metrics.class_confusion(p, LABELS)
    for c in range(4):
        rows = [p[i] for i in range(40) if LABELS[i] == c]
        for d in range(K):
            wanted = 0 if c == d else math.fsum(row[d] for row in rows) / len(rows)
            assert found[c, d] == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(found[4]).all()


@pytest.mark.parametrize("gone", [(), (2,), (0, 2)])
def test_classes_stand_from_the_least_to_the_most_confused(gone):
    judged = metrics.sample_difficulty(read_out(), DATA)
    rows = metrics.class_difficulties(judged, gone)
    assert sorted(row.number for row in rows) == [0, 1, 2, 3]
    masses = metrics.class_confusion(judged.probabilities, LABELS)
    for row in rows:
        c, own = row.number, row.number == LABELS
        kept = [d for d in range(K) if d != c and d not in gone]
        assert row.samples == own.sum() == 10
        assert row.confusion == pytest.approx(sum(masses[c, d] for d in kept))
        assert row.confused_with == max(kept, key=lambda d: masses[c, d])
        assert row.mass == masses[c, row.confused_with]
        right = LOGITS[own].argmax(axis=1) == c
        assert row.accuracy == pytest.approx(100 * right.mean())
        assert row.median_margin == pytest.approx(np.median(judged.margins[own]))
    confusions = [row.confusion for row in rows]
    assert confusions == sorted(confusions)


def test_equally_confused_classes_stand_by_number():
    even = metrics.Difficulty(
        np.zeros(3), np.full((3, 3), 1 / 3), np.ones(3), np.arange(3)[::-1]
    )
    assert [row.number for row in metrics.class_difficulties(even)] == [0, 1, 2]
    assert [row.confused_with for row in metrics.class_difficulties(even)] == [1, 0, 0]


P = np.full((2, 2), 0.5)
NARROW = read_out(classes=3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: metrics.classification_margins(P[0], [0]), r"must be \[n, k\]"),
        (lambda: metrics.classification_margins(P[:, :1], [0, 0]), "two classes"),
        (lambda: metrics.classification_margins(P, [0, 2]), "classes 0 to 1"),
        (lambda: metrics.classification_margins(P * np.inf, [0, 1]), "sample 0 are n"),
        (lambda: metrics.sample_difficulty([], DATA), "There is no classifier"),
        (lambda: metrics.sample_difficulty([NARROW, read_out()], DATA), "of 3, 5"),
        (lambda: metrics.sample_difficulty(NARROW, DATA), "labels of data"),
        (
            lambda: metrics.sample_difficulty(read_out(), DATA.take(LABELS > 9)),
            "There is no sample",
        ),
        (lambda: metrics.by_margin([1.0, math.nan], 1), "must be finite"),
        (lambda: metrics.by_margin([1.0, 2.0], 3), "at most 2"),
        (lambda: metrics.by_margin([1.0, 2.0], 0), "at least 1"),
        (lambda: metrics.by_margin([1.0], 1, order="worst"), "worst"),
        (lambda: metrics.by_margin([1.0], 1, among=[True, False]), "of the 1 samples"),
        (lambda: metrics.by_confusion(P, [0, 1], 2, 1), "class 2, which does not"),
        (lambda: metrics.by_confusion(P, [0, 1], 1, 2), "at most 1"),
        (
            lambda: metrics.class_difficulties(
                metrics.Difficulty(np.ones(2), P, np.ones(2), np.arange(2)), [1]
            ),
            "leaves class 0 no other",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="must be a mask"):
        metrics.by_margin([1.0, 2.0], 1, among=[0, 1])
    with pytest.raises(TypeError, match="a list of several"):
        metrics.sample_difficulty(None, DATA)


def test_a_classifier_that_has_diverged_has_no_margins():
    with pytest.raises(FloatingPointError, match=r"classifiers\[1\] are not finite"):
        metrics.sample_difficulty([read_out(), read_out(math.inf)], DATA)
