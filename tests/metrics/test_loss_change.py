"""The loss after a step, and what its derivatives at the start say of it."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import metrics

RNG = np.random.default_rng(3)
DATA = ju.Data(RNG.normal(size=(7, 1, 3, 2)).astype(np.float32), [0, 1, 2, 1, 0, 2, 2])


def logits(params, state, images):
    """Linear, with a state that is added."""
    return images.reshape(images.shape[0], -1) @ params + state["shift"][None]


def network(kernel, shift=(0.0, 0.0, 0.0)):
    state = {"shift": jnp.array(shift), "count": jnp.array(1)}
    return ju.freeze(ju.Function(logits, jnp.float32(kernel), state))


KERNEL, STEP = RNG.normal(size=(6, 3)), 0.3 * RNG.normal(size=(6, 3))
SHIFT = np.array([0.2, -0.1, 0.0])


@pytest.mark.parametrize("batch_size", [3, 256])
def test_softmax_regression_has_a_known_gradient_and_curvature(batch_size):
    rows, n = DATA.images.reshape(7, 6).astype(float), np.arange(7)

    def probabilities(z):
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def loss(z):
        return -np.log(probabilities(z)[n, DATA.labels]).mean()

    z, dz = rows @ KERNEL, rows @ STEP + SHIFT
    p = probabilities(z)
    slope = ((p - np.eye(3)[DATA.labels]) * dz).sum(axis=1).mean()
    curvature = ((p * dz**2).sum(axis=1) - (p * dz).sum(axis=1) ** 2).mean()
    both = network(KERNEL), network(KERNEL + STEP, SHIFT)
    found = metrics.loss_change(*both, DATA, batch_size=batch_size)
    assert found.actual == pytest.approx(loss(z + dz) - loss(z), rel=1e-4)
    assert found.first_order == pytest.approx(slope, rel=1e-4)
    assert found.second_order == pytest.approx(curvature / 2, rel=1e-4)
    remainder = loss(z + dz) - loss(z) - slope - curvature / 2
    assert found.remainder == pytest.approx(remainder, abs=1e-5)


def test_no_step_changes_nothing():
    same = metrics.loss_change(network(KERNEL), network(KERNEL), DATA)
    assert (same.actual, same.first_order, same.second_order) == (0, 0, 0)


@pytest.mark.parametrize(
    ("after", "data", "said"),
    [
        (network(KERNEL[:, :2], (0.0, 0.0)), DATA, "must be of one network"),
        (network(KERNEL), ju.Data(DATA.images[:0], []), "no sample"),
        (network(KERNEL), ju.Data(DATA.images, [3] * 7), "labels of data"),
    ],
)
def test_what_has_no_loss_is_refused(after, data, said):
    with pytest.raises(ValueError, match=said):
        metrics.loss_change(network(KERNEL), after, data)


def test_a_model_that_has_diverged_has_no_expansion():
    with pytest.raises(FloatingPointError, match="that has diverged"):
        metrics.loss_change(network(KERNEL), network(np.inf * KERNEL), DATA)
