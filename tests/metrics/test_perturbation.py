"""Recovery radii and over-unlearning, against linear networks whose answer is known."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.metrics import boundary as near
from jaxunlearn.metrics.perturbation import ascend, logit_gap
from jaxunlearn.metrics.recovery import recovery_radius

pytestmark = pytest.mark.core
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(size=(4, 3)), RNG.normal(size=3) + [0, 0, 1.6]
PIXELS = RNG.uniform(0.25, 0.75, size=(7, 4))
# One grid step more than the truth at most.
STEP = 2 ** (1 / 8)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


def linear(weight=WEIGHT, bias=BIAS, **options):
    kernel, bias = (jnp.asarray(a, jnp.float32) for a in (weight, bias))
    head = {"kernel": kernel, "bias": bias}
    return ju.freeze(Net(), {"params": {"head": head}}, **options)


def data(pixels=PIXELS, labels=2):
    images = np.asarray(pixels, np.float32).reshape(-1, 2, 2, 1)
    return ju.Data(images, np.broadcast_to(labels, len(images)))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_radii_of_a_line_between_two_classes(norm, dual):
    # Class 1 is far away: only 0 and 2 matter.
    bias = np.array([0.0, -99, -2])
    z = PIXELS @ WEIGHT + bias
    lead = z[:, 0] - z[:, 2]
    assert (lead > 0).all()
    exact = lead / np.linalg.norm(WEIGHT[:, 2] - WEIGHT[:, 0], dual)
    found = recovery_radius(
        linear(bias=bias), data(), data(), norm=norm, bounds=(-9, 9), batch_size=3
    )
    for radii in (found.forgotten_radii, found.retained_radii):
        assert (radii >= exact * 0.999).all()
        assert (radii <= exact * STEP * 1.001).all()
    assert found.forgotten == np.median(found.forgotten_radii)
    assert found.selectivity == pytest.approx(1)


@pytest.mark.long
def test_a_class_that_no_change_brings_back_is_a_bound():
    found = recovery_radius(linear(bias=[0, 0, -99]), data(), data(), bounds=(0, 1))
    assert found.censored == (True, False)
    assert np.isinf(found.forgotten_radii).all()
    assert found.forgotten == found.largest == 1
    known = recovery_radius(linear(bias=[0, 0, 99]), data(), data(), bounds=(0, 1))
    assert known.forgotten == 0
    assert known.censored == (False, True)


@pytest.mark.long
def test_steps_stay_within_ball_and_bounds():
    start = jnp.asarray(data().images)
    radius = jnp.linspace(0.01, 0.9, 7)
    for norm, order in (("linf", np.inf), ("l2", 2)):
        moved = start
        for _ in range(4):
            args = (moved, start, jnp.full(7, 1), radius, 0.5 * radius, (0.125, 0.875))
            moved = ascend(logit_gap, linear(), *args, norm=norm)
        assert 0.125 <= float(moved.min()) <= float(moved.max()) <= 0.875
        lengths = np.linalg.norm((moved - start).reshape(7, -1), order, axis=1)
        assert (lengths <= radius * 1.0001).all()
        assert lengths[0] == pytest.approx(0.01, rel=1e-3)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def twin(unlearned, protocol, pixels, bounds, toward=1):
    """The walk and the divergences in NumPy: mean over samples near the boundary."""
    values = []
    for start in pixels.astype(np.float32).astype(float):
        z = start @ WEIGHT + BIAS
        target = int(np.argmax(z[:2]))
        tried, x = [start], start
        for _ in range(protocol.steps):
            p = softmax(x @ WEIGHT + BIAS)
            gradient = WEIGHT[:, target] - WEIGHT @ p
            x = x + toward * protocol.step * np.sign(gradient)
            x = np.clip(x, start - protocol.epsilon, start + protocol.epsilon)
            x = np.clip(x, *bounds)
            tried.append(x)
        chances = [softmax(x @ WEIGHT + BIAS) for x in tried]
        gaps = [p[2] - max(p[:2]) for p in chances]
        best = int(np.argmin(np.abs(gaps))) if toward > 0 else len(tried) - 1
        if toward > 0 and abs(gaps[best]) > protocol.beta:
            continue
        x = tried[best]
        masked = np.append(softmax((x @ WEIGHT + BIAS)[:2]), 0.0)
        other = softmax(x @ unlearned + BIAS)
        middle = (masked + other) / 2
        halves = [
            sum(a * math.log(a / m) for a, m in zip(p, middle, strict=True) if a > 0)
            for p in (masked, other)
        ]
        values.append(sum(halves) / 2)
    return values


def measured(protocol, weight, batch_size=256, pixels=PIXELS, **options):
    return near.over_unlearning(
        linear(**options),
        linear(weight, **options),
        data(pixels),
        [2],
        protocol=protocol,
        key=KEY,
        bounds=(0.0, 1.0),
        batch_size=batch_size,
    )


@pytest.mark.long
@pytest.mark.parametrize("beta", [pytest.param(1.0, marks=pytest.mark.long), 0.2])
def test_over_unlearning_of_the_walk_written_out(beta):
    protocol = near.Neighbourhood(epsilon=0.1, step=0.04, steps=4, beta=beta)
    other = WEIGHT + 0.3
    other[:, 0] *= 2
    expected = twin(other, protocol, PIXELS, (0, 1))
    value = measured(protocol, other)
    assert value.value == pytest.approx(np.mean(expected), abs=1e-6)
    assert value.samples == len(expected)
    assert (value.samples < value.tried) == (beta < 1)
    pieces = measured(protocol, other, batch_size=3)
    assert pieces.value == pytest.approx(value.value, abs=1e-6)


@pytest.mark.long
def test_over_unlearning_as_coded_walks_away_in_standardised_inputs():
    protocol = near.Neighbourhood(steps=2, variant=near.SPOTTER)
    preprocess = ju.Preprocess(mean=0.5, std=0.25)
    # Standardised pixels below 0 are clipped, as no pixel is.
    expected = twin(WEIGHT * 2, protocol, (PIXELS - 0.5) / 0.25, (0, 1), toward=-1)
    value = measured(protocol, WEIGHT * 2, preprocess=preprocess)
    assert value.samples == len(PIXELS)
    assert value.value == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_model_that_masks_the_class_has_not_gone_too_far():
    masked = linear(bias=BIAS - np.array([0, 0, 99]))
    given = {"key": KEY, "bounds": (0, 1)}
    protocol = near.Neighbourhood(noise="gaussian", beta=1)
    value = near.over_unlearning(
        linear(), masked, data(), [2], protocol=protocol, **given
    )
    assert value.value == pytest.approx(0, abs=1e-6)
    original = near.over_unlearning(
        linear(), linear(), data(), [2], protocol=protocol, **given
    )
    assert original.value > 0.05
    found = near.boundary_images(linear(), data(), [2], protocol=protocol, **given)
    change = np.abs(found.images - data().images)
    assert 0 < change.max() <= 0.03 + 1e-6


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: recovery_radius(linear(), data(), data(), norm="l1"), "norm must be"),
        (lambda: recovery_radius(linear(), data(PIXELS[:0]), data()), "no sample"),
        (
            lambda: recovery_radius(linear(), data(), data(), bounds=(0.5, 1)),
            "bounds must hold them",
        ),
        (lambda: near.Neighbourhood(noise="uniform"), "noise must be one of"),
        (lambda: near.Neighbourhood(epsilon=0), "epsilon must be"),
        (
            lambda: near.over_unlearning(linear(), linear(), data(), [1], key=KEY),
            "forget must be samples of the forgotten classes",
        ),
        (
            lambda: near.over_unlearning(linear(), linear(), data(), [], key=KEY),
            "forget_classes is empty",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
