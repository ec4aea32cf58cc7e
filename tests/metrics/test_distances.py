"""Distances of output distributions, against worked numbers and a float64 twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.metrics import distances

pytestmark = pytest.mark.core

P, Q = np.array([[0.7, 0.2, 0.1]]), np.array([[0.1, 0.3, 0.6]])
P2, Q2 = np.array([[0.5, 0.3, 0.2]]), np.array([[0.25, 0.5, 0.25]])
BOTH = np.concatenate([P, P2]), np.concatenate([Q, Q2])
CODED, ROOT = "as-coded:bad-teaching", "as-coded:supreme-unlearning"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda: distances.js_divergence(P, Q), 0.230645),
        (lambda: distances.js_divergence(P, Q) / np.log(2), 0.332751),
        (lambda: distances.js_divergence(P, Q, variant=CODED), 0.098449),
        (lambda: distances.js_divergence(P2, Q2), 0.035263),
        (lambda: distances.kl_divergence(P, (P + Q) / 2), 0.221826),
        (lambda: distances.kl_divergence(Q, (P + Q) / 2), 0.239465),
        (lambda: distances.total_variation_distance(P, Q), 0.6),
        (lambda: distances.zrf(*BOTH), 0.867046),
        (lambda: distances.zrf(*BOTH, variant=CODED), 0.944710),
        (lambda: distances.activation_distance(*BOTH), 0.555719),
        (lambda: distances.activation_distance(*BOTH, variant=ROOT), 0.602080),
        (lambda: distances.entropy(P)[0], 0.801819),
    ],
)
def test_worked_numbers(value, expected):
    assert float(value()) == pytest.approx(expected, abs=1e-6)


def rows(seed, n=50, k=10, sharpness=3.0):
    draw = np.random.default_rng(seed).normal(size=(n, k)) * sharpness
    exponentials = np.exp(draw)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def twin_js(p, q):
    middle = (p + q) / 2
    total = p * np.log(p / middle) + q * np.log(q / middle)
    return total.sum(axis=1).mean() / 2


@pytest.mark.parametrize("k", [2, 10, 100])
def test_values_are_those_of_the_twin(k):
    p, q = rows(0, k=k), rows(1, k=k)
    assert float(distances.js_divergence(p, q)) == pytest.approx(
        twin_js(p, q), rel=1e-5
    )
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    assert float(distances.kl_divergence(p, q)) == pytest.approx(divergence, rel=1e-5)
    distance = np.linalg.norm(p - q, axis=1).mean()
    assert float(distances.activation_distance(p, q)) == pytest.approx(
        distance, rel=1e-5
    )


ALL = [
    distances.js_divergence,
    distances.kl_divergence,
    distances.total_variation_distance,
    distances.zrf,
    distances.activation_distance,
    distances.completeness,
]


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
def test_neither_the_order_of_samples_nor_of_classes_matters(function):
    p, q = rows(2), rows(3)
    rng = np.random.default_rng(4)
    samples, classes = rng.permutation(len(p)), rng.permutation(p.shape[1])
    value = float(function(p, q))
    for change in (np.ix_(samples, np.arange(10)), np.ix_(np.arange(50), classes)):
        assert float(function(p[change], q[change])) == pytest.approx(value, abs=1e-6)
    # The mean over batches of a size is that over all.
    parts = [float(function(p[i : i + 10], q[i : i + 10])) for i in range(0, 50, 10)]
    assert np.mean(parts) == pytest.approx(value, abs=1e-6)
    traced = jax.jit(function)(jnp.asarray(p), jnp.asarray(q))
    assert float(traced) == pytest.approx(value, abs=1e-6)


def test_js_is_symmetric_and_bounded():
    p, q = rows(5), rows(6)
    one, other = distances.js_divergence(p, q), distances.js_divergence(q, p)
    assert float(one) == pytest.approx(float(other), abs=1e-7)
    apart = np.eye(2)
    value = distances.js_divergence(apart, apart[::-1])
    assert float(value) == pytest.approx(np.log(2), abs=1e-6)
    assert float(distances.zrf(apart, apart)) == 1
    assert float(distances.zrf(apart, apart[::-1])) == pytest.approx(1 - np.log(2))


def test_zrf_is_averaged_over_several_networks():
    p, q = rows(7), rows(8)
    mean = (1 + float(distances.zrf(p, q))) / 2
    assert float(distances.zrf(p, [p, q])) == pytest.approx(mean, abs=1e-6)


def test_a_probability_of_zero_costs_a_finite_amount():
    value = float(
        distances.kl_divergence(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    )
    assert value == pytest.approx(30 * np.log(10), rel=1e-5)


def test_the_histogram_of_predicted_classes():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    shares = distances.label_histogram(p)
    np.testing.assert_allclose(shares, [2 / 3, 0, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "q", "error", "sentence"),
    [
        (P, Q[:, :2], ValueError, r"shapes are \(1, 3\) and \(1, 2\)"),
        (P[0], Q, ValueError, "a row for each sample"),
        (P[:0], Q[:0], ValueError, "a row for each sample"),
        (np.array([[1, 0]]), Q, TypeError, "p must be floating point"),
    ],
)
def test_wrong_probabilities_are_refused(p, q, error, sentence):
    with pytest.raises(error, match=sentence):
        distances.js_divergence(p, q)
    with pytest.raises(ValueError, match="variant must be one of"):
        distances.js_divergence(P, Q, variant="wrong")
