"""CKA, KLOM, margins and weight distances, against worked numbers and slow twins."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.metrics import gaps, similarity

pytestmark = pytest.mark.core

X = np.arange(1.0, 5)[:, None]


def twin_hsic(k, l):
    """The unbiased estimate with n x n kernels."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    one = np.ones(n)
    total = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def test_cka_of_the_worked_points():
    biased = similarity.linear_cka(X[:3], X[:3] ** 2, unbiased=False)
    assert float(biased) == pytest.approx(0.979592, abs=1e-6)
    biased = similarity.linear_cka(X, X**2, unbiased=False)
    assert float(biased) == pytest.approx(0.968992, abs=1e-6)
    assert float(similarity.linear_cka(X, X**2)) == pytest.approx(0.999456, abs=1e-6)


@pytest.mark.long
def test_unbiased_cka_is_that_of_whole_kernels_and_shifts_do_not_matter():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6)) + 20
    y = x[:, :3] @ rng.normal(size=(3, 4)) + rng.normal(size=(30, 4))
    k, l = x @ x.T, y @ y.T
    expected = twin_hsic(k, l) / np.sqrt(twin_hsic(k, k) * twin_hsic(l, l))
    assert float(similarity.linear_cka(x, y)) == pytest.approx(expected, abs=1e-4)
    assert float(similarity.linear_cka(x, y - 100)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("unbiased", [True, False])
def test_cka_does_not_see_rotations_and_scales(unbiased):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 5))
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    value = similarity.linear_cka(x, 3 * x @ rotation, unbiased=unbiased)
    assert float(value) == pytest.approx(1, abs=1e-5)


def test_unbiased_cka_of_independent_features_averages_zero():
    rng = np.random.default_rng(2)
    draws = rng.normal(size=(200, 2, 20, 8))
    values = [float(similarity.linear_cka(x, y)) for x, y in draws]
    biased = [float(similarity.linear_cka(x, y, unbiased=False)) for x, y in draws]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert np.mean(biased) > 0.2


def test_klom_of_the_worked_margins():
    u, g = np.array([[0.0, 1, 2, 3]]).T, np.array([[2.0, 3, 4, 10]]).T
    assert similarity.klom(u, g)[0] == pytest.approx(5.063336, abs=1e-6)
    coded = similarity.klom(u, g, variant="as-coded:data-unlearning-bench")
    assert coded[0] == pytest.approx(4.919495, abs=1e-6)


def test_klom_does_not_see_the_order_of_models_and_numbers_may_differ():
    rng = np.random.default_rng(3)
    u, g = rng.normal(size=(12, 4)), rng.normal(size=(9, 4))
    value = similarity.klom(u, g)
    np.testing.assert_allclose(similarity.klom(u[rng.permutation(12)], g), value)
    np.testing.assert_allclose(similarity.klom(g, g), 0, atol=1e-12)
    np.testing.assert_array_equal(similarity.klom(np.ones((3, 2)), np.ones((2, 2))), 0)


def test_margins_of_a_twin():
    z = np.random.default_rng(4).normal(size=(6, 5))
    labels = np.arange(6) % 5
    expected = [
        row[y] - np.log(np.exp(np.delete(row, y)).sum())
        for row, y in zip(z, labels, strict=True)
    ]
    np.testing.assert_allclose(similarity.margins(z, labels), expected, rtol=1e-5)


def test_composite_gaps_of_the_worked_accuracies():
    u, g = (2.0, 99.0, 91.5), (0.0, 99.8, 93.2)
    assert gaps.tow(u, g) == pytest.approx(0.955633, abs=1e-6)
    assert gaps.tow(g, g) == 1
    value = gaps.average_gap((98.0, 92.5, 99.0, 91.5), (100.0, 100.0, 99.8, 93.2))
    assert value == pytest.approx(3)


def test_composite_scores_of_derived_values():
    # 1/2 of .915, and 1/2 of 1 - 2 * .1
    score = gaps.nomus(test_accuracy=0.915, membership=0.4)
    assert score == pytest.approx(0.8575)
    assert gaps.nomus(test_accuracy=0.9, membership=0, weight=0.25) == 0.225
    assert gaps.retention(91.5, 93.2) == pytest.approx(915 / 932)
    assert np.isnan(gaps.retention(1.0, 0.0))
    # The farthest from .8 is 0, at a distance of .8.
    assert gaps.indiscernibility(0.8, 0.8) == 1
    assert gaps.indiscernibility(0.0, 0.8) == 0
    assert gaps.indiscernibility(0.6, 0.8) == pytest.approx(0.75)
    assert gaps.indiscernibility(1.0) == 0
    assert gaps.sape(2.0, 6.0) == gaps.sape(-6.0, -2.0) == 50
    assert gaps.sape(0.0, 0.0) == 0
    assert gaps.runtime_efficiency(30.0, 12.0) == 2.5


def test_an_interval_of_three_seeds():
    interval = gaps.t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.half_width == pytest.approx(4.302653 / np.sqrt(3), abs=1e-5)
    assert np.isnan(gaps.t_interval([1.0]).half_width)


def test_weights_move_relative_to_their_size():
    before = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.0])}
    after = {"a": jnp.array([3.0, 4.5]), "b": jnp.array([1.0])}
    distance = similarity.weight_distance(before, after)
    assert float(distance["a"]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: similarity.linear_cka(X[:3], X[:3]), "n >= 4"),
        (lambda: similarity.linear_cka(X, X[:3]), "same n"),
        (lambda: similarity.klom(X, np.ones((3, 2))), r"\[models, examples\]"),
        (lambda: similarity.klom(X * np.nan, X), "not a number"),
        (lambda: gaps.tow((1.0, 2.0), (1.0, 2.0, 3.0)), "must be 3 numbers"),
        (lambda: gaps.tow((1.0, 2.0, 101.0), (1.0, 2.0, 3.0)), "from 0 to 100"),
        (lambda: gaps.t_interval([]), "empty"),
        (lambda: gaps.nomus(test_accuracy=91.5, membership=0.5), "test_accuracy must"),
        (lambda: gaps.indiscernibility(0.5, 1.5), "retrained must be a fraction"),
        (lambda: gaps.retention(-1.0, 50.0), "unlearned must"),
        (lambda: gaps.runtime_efficiency(1.0, 0.0), "unlearned_seconds must"),
    ],
)
def test_wrong_arguments_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
