"""New labels for the forget set, against loops in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.methods.relabel import (
    nearest_retained_labels,
    random_retained_labels,
    retained_probabilities,
    runner_up_labels,
)

N, K = 40, 6
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, K)).astype(np.float32)
LABELS = RNG.integers(0, K, N)


def best_allowed(row, forbidden):
    """The allowed class with the largest logit, by sorting."""
    return [c for c in np.argsort(-row, kind="stable") if c not in forbidden][0]


@pytest.mark.parametrize("exclude", [(), (2,), (0, 5, 3)])
def test_the_runner_up_is_the_likeliest_class_that_is_neither_own_nor_excluded(exclude):
    expected = [
        best_allowed(z, {y, *exclude}) for z, y in zip(LOGITS, LABELS, strict=True)
    ]
    labels = runner_up_labels(LOGITS, LABELS, exclude=exclude)
    assert labels.dtype == jnp.int32
    assert labels.tolist() == expected


@pytest.mark.parametrize("forget", [(), (2,), (0, 5, 3), (0, 1, 2, 3, 4)])
def test_the_nearest_retained_class_is_the_likeliest_one_not_forgotten(forget):
    labels = nearest_retained_labels(LOGITS, forget)
    assert labels.dtype == jnp.int32
    assert labels.tolist() == [best_allowed(z, forget) for z in LOGITS]


@pytest.mark.parametrize("low", [-np.inf, np.finfo(np.float32).min])
def test_a_head_masked_to_minus_infinity_leaves_the_choice_to_the_rest(low):
    logits = np.full((1, 4), low, np.float32)
    assert nearest_retained_labels(logits, [0, 1]).tolist() == [2]
    assert runner_up_labels(logits, [0], exclude=[1]).tolist() == [2]
    probabilities = retained_probabilities(logits, [0, 1])
    np.testing.assert_array_equal(probabilities, [[0, 0, 0.5, 0.5]])


def test_random_labels_are_uniform_over_the_retained_classes():
    n = 20_000
    labels = random_retained_labels(jax.random.key(0), n, K, [1, 4])
    assert labels.dtype == jnp.int32
    counts = np.bincount(labels, minlength=K)
    assert counts[[1, 4]].sum() == 0
    # Five standard deviations of a binomial count.
    spread = 5 * np.sqrt(n * 0.25 * 0.75)
    np.testing.assert_allclose(counts[[0, 2, 3, 5]], n / 4, atol=spread)


def test_random_labels_follow_the_key():
    draw = [random_retained_labels(jax.random.key(s), 50, K, [0]) for s in (0, 0, 1)]
    assert draw[0].tolist() == draw[1].tolist()
    assert draw[0].tolist() != draw[2].tolist()


@pytest.mark.parametrize("forget", [(), (2,), (0, 5, 3), (0, 1, 2, 3, 4)])
def test_retained_probabilities_are_the_softmax_over_the_retained_classes(forget):
    kept = [c for c in range(K) if c not in forget]
    expected = np.zeros((N, K))
    expected[:, kept] = np.exp(LOGITS[:, kept].astype(np.float64))
    expected /= expected.sum(axis=1, keepdims=True)
    probabilities = retained_probabilities(LOGITS, forget)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert not np.asarray(probabilities)[:, list(forget)].any()


def test_retained_probabilities_do_not_overflow_and_keep_their_type():
    logits = jnp.array([[1e4, 1e3, -1e4]], jnp.bfloat16)
    probabilities = retained_probabilities(logits, [0])
    assert probabilities.dtype == jnp.bfloat16
    assert probabilities.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.long
def test_jit_and_vmap_give_the_same_labels():
    ensemble = RNG.normal(size=(3, N, K)).astype(np.float32)
    labels = jnp.asarray(LABELS)
    functions = [
        lambda z: nearest_retained_labels(z, [2]),
        lambda z: retained_probabilities(z, [2]),
        lambda z: runner_up_labels(z, labels, exclude=[2]),
    ]
    for function in functions:
        expected = np.stack([function(z) for z in ensemble])
        mapped = jax.jit(jax.vmap(function))(ensemble)
        np.testing.assert_allclose(mapped, expected, rtol=1e-6)
    traced_labels = jax.jit(runner_up_labels)(LOGITS, labels)
    np.testing.assert_array_equal(traced_labels, runner_up_labels(LOGITS, LABELS))
    keys = jax.random.split(jax.random.key(0), 3)
    draws = jax.vmap(lambda key: random_retained_labels(key, 5, K, [1]))(keys)
    assert draws.shape == (3, 5)


def test_no_samples_get_no_labels():
    empty = np.zeros((0, K), np.float32)
    assert runner_up_labels(empty, []).shape == (0,)
    assert nearest_retained_labels(empty, [0]).shape == (0,)
    assert random_retained_labels(jax.random.key(0), 0, K, [0]).shape == (0,)


@pytest.mark.parametrize(
    ("labels", "error", "sentence"),
    [
        (np.where(LABELS == 0, K, LABELS), ValueError, "classes 0 to 5.*from 1 to 6"),
        (LABELS - 1, ValueError, "range from -1 to 4"),
        (LABELS.astype(np.float32), TypeError, "labels must be integers.*float32"),
        (LABELS.astype(bool), TypeError, "labels must be integers; they are bool"),
        (LABELS[:3], ValueError, r"of shape \(40,\); their shape is \(3,\)"),
        (LABELS[:, None], ValueError, r"their shape is \(40, 1\)"),
        (3, ValueError, r"their shape is \(\)"),
    ],
)
def test_wrong_labels_are_refused(labels, error, sentence):
    with pytest.raises(error, match=sentence):
        runner_up_labels(LOGITS, labels)


def nearest(logits=LOGITS, classes=(0,)):
    return nearest_retained_labels(logits, classes)


def soft(logits=LOGITS, classes=(0,)):
    return retained_probabilities(logits, classes)


def runner_up(logits=LOGITS, classes=(0,)):
    return runner_up_labels(logits, LABELS, exclude=classes)


def random(logits=None, classes=(0,)):
    del logits
    return random_retained_labels(jax.random.key(0), N, K, classes)


@pytest.mark.parametrize("function", [nearest, soft, runner_up, random])
@pytest.mark.parametrize(
    ("classes", "error", "sentence"),
    [
        (
            [6],
            ValueError,
            "names class 6, which does not exist: the classes are 0 to 5",
        ),
        ([0, -1], ValueError, "names class -1, which does not exist"),
        ([1, 1], ValueError, r"each class once; it is \[1, 1\]"),
        (range(K), ValueError, "names all 6 classes: leave at least one out"),
        ([1.0], TypeError, "must hold integers; 1.0 is a float"),
        ([True], TypeError, "must hold integers; True is a bool"),
        ("3", TypeError, "must be a sequence of class numbers"),
    ],
)
def test_wrong_classes_are_refused(function, classes, error, sentence):
    with pytest.raises(error, match=sentence):
        function(classes=classes)


@pytest.mark.parametrize("function", [nearest, soft, runner_up])
@pytest.mark.parametrize(
    ("logits", "error", "sentence"),
    [
        (LOGITS[0], ValueError, r"must be \[n, k\].* their shape is \(6,\)"),
        (LOGITS[None], ValueError, r"their shape is \(1, 40, 6\)"),
        (LOGITS[:, :0], ValueError, r"their shape is \(40, 0\)"),
        (LABELS[:, None], TypeError, "floating point; they are int"),
        (np.where(LOGITS > 2, np.nan, LOGITS), ValueError, "not a number in .* of 40"),
    ],
)
def test_wrong_logits_are_refused(function, logits, error, sentence):
    with pytest.raises(error, match=sentence):
        function(logits)


def test_a_sample_with_no_class_left_is_refused():
    # Fine where the labels are excluded themselves, so that class 2 is left to all.
    assert runner_up_labels(LOGITS[:2, :3], [0, 1], exclude=[0, 1]).tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"exclude \[0, 1\] leaves samples of class 2"):
        runner_up_labels(LOGITS[:2, :3], [0, 2], exclude=[0, 1])
    with pytest.raises(ValueError, match="leaves samples of class 0 no other class"):
        runner_up_labels(LOGITS[:1, :1], [0])


def test_a_negative_number_of_samples_is_refused():
    with pytest.raises(ValueError, match="n must be .* it is -1"):
        random_retained_labels(jax.random.key(0), -1, K, [0])
