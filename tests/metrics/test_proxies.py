"""Proxies judged as NumPy and SciPy judge them, and noise of the right moments."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from spectra import classifier

from jaxunlearn.classifier.classifier import Preprocess
from jaxunlearn.metrics.proxies import ProxyQuality, noise_images, proxy_quality
from jaxunlearn.nullspace.moments import class_moments, second_moments, sum_classes
from jaxunlearn.tasks import Data

KEY = jax.random.key(0)
SHAPE = (2, 3, 1)
RNG = np.random.default_rng(0)
RETAINED = RNG.normal(size=(30, *SHAPE)).astype(np.float32) * np.arange(1, 4)[:, None]
PROXIES = Data(RNG.normal(size=(9, *SHAPE)).astype(np.float32), np.arange(9) % 3)


class Two(nn.Module):
    """Two layers, whose inputs can be written down."""

    @nn.compact
    def __call__(self, images):
        x = nn.Dense(5, name="first")(images.reshape(len(images), -1))
        return nn.Dense(3, name="second")(nn.relu(x))


FIRST, SECOND = (classifier(Two(), PROXIES.images, seed=seed) for seed in (0, 2))


@pytest.fixture(scope="module")
def moments():
    return second_moments(FIRST, RETAINED)


def layers(network, images):
    """Rows that enter each kernel, and the logits, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), network.params)
    x = np.asarray(images, np.float64).reshape(len(images), -1)
    hidden = np.maximum(x @ params["first"]["kernel"] + params["first"]["bias"], 0)
    logits = hidden @ params["second"]["kernel"] + params["second"]["bias"]
    return {"first/kernel": x, "second/kernel": hidden}, logits


def leading(rows, energy):
    """The leading right singular vectors that reach this share of the squares."""
    _, sigma, vectors = np.linalg.svd(rows)
    share = np.cumsum(sigma**2) / np.sum(sigma**2)
    return vectors[: int(np.argmax(share >= energy)) + 1].T


def percent(network, data):
    return 100 * np.mean(layers(network, data.images)[1].argmax(1) == data.labels)


@pytest.mark.long
@pytest.mark.core
def test_proxies_are_judged_by_the_rows_of_every_layer(moments):
    quality = proxy_quality(
        FIRST, PROXIES, moments, energy=0.9, second=SECOND, batch_size=4
    )
    rows, _ = layers(FIRST, PROXIES.images)
    true_rows, _ = layers(FIRST, RETAINED)
    assert set(quality.captured_energy) == set(rows)
    for name in rows:
        x = true_rows[name]
        U, V = leading(rows[name], 0.9), leading(x, 0.9)
        assert quality.ranks[name] == (U.shape[1],)
        assert quality.true_ranks[name] == (V.shape[1],)
        captured = np.sum((x @ U) ** 2) / np.sum(x**2)
        assert 0.1 < captured < 0.999
        assert quality.captured_energy[name] == pytest.approx(captured, abs=1e-5)
        angles = np.degrees(scipy.linalg.subspace_angles(U, V))
        assert quality.mean_angle[name] == pytest.approx(angles.mean(), abs=1e-2)
        assert quality.largest_angle[name] == pytest.approx(angles.max(), abs=1e-2)
    assert quality.accuracy == pytest.approx(percent(FIRST, PROXIES))
    assert quality.second_accuracy == pytest.approx(percent(SECOND, PROXIES))
    assert quality.accuracy != quality.second_accuracy


@pytest.mark.core
def test_the_retained_images_themselves_are_perfect_proxies(moments):
    _, logits = layers(FIRST, RETAINED)
    retained = Data(RETAINED, logits.argmax(1))
    quality = proxy_quality(FIRST, retained, moments)
    assert quality == proxy_quality(FIRST, retained, moments, energy=0.99)
    assert isinstance(quality, ProxyQuality)
    assert quality.ranks == quality.true_ranks
    assert all(0.99 <= share < 1 + 1e-6 for share in quality.captured_energy.values())
    assert all(angle < 1e-3 for angle in quality.largest_angle.values())
    assert quality.accuracy == 100
    assert quality.second_accuracy is None


@pytest.mark.parametrize(
    ("rule", "ranks"),
    [({"rank": 2}, (2,)), ({"protected_fraction": 0.5}, (3,)), ({"rtol": 1e-3}, (6,))],
)
def test_other_rules_replace_the_share_of_energy(rule, ranks, moments):
    quality = proxy_quality(FIRST, PROXIES, moments, **rule)
    assert quality.ranks["first/kernel"] == quality.true_ranks["first/kernel"] == ranks


def test_accuracy_is_over_images_not_over_classes(moments):
    _, logits = layers(FIRST, PROXIES.images)
    labels = logits.argmax(1)
    labels[0] = (labels[0] + 1) % 3
    quality = proxy_quality(FIRST, Data(PROXIES.images, labels), moments, rank=1)
    assert quality.accuracy == pytest.approx(100 * 8 / 9)


def test_without_directions_there_is_no_angle(moments):
    quality = proxy_quality(FIRST, PROXIES, moments, rank=0)
    assert quality.ranks["first/kernel"] == (0,)
    assert quality.captured_energy["first/kernel"] == 0
    assert math.isnan(quality.mean_angle["first/kernel"])
    assert math.isnan(quality.largest_angle["first/kernel"])


def test_arguments_of_the_judgement_are_checked(moments):
    with pytest.raises(ValueError, match="given: energy and rank"):
        proxy_quality(FIRST, PROXIES, moments, energy=0.9, rank=1)
    with pytest.raises(ValueError, match="only classifier.params has second/bias"):
        proxy_quality(FIRST, PROXIES, {"first": moments["first"]})
    with pytest.raises(ValueError, match="proxies are empty"):
        proxy_quality(FIRST, Data(PROXIES.images[:0], []), moments)
    with pytest.raises(ValueError, match="batch_size must be at least 1; it is 0"):
        proxy_quality(FIRST, PROXIES, moments, batch_size=0)
    with pytest.raises(ValueError, match="labels of data .* from 3"):
        proxy_quality(FIRST, Data(PROXIES.images[:1], [3]), moments)
    with pytest.raises(TypeError, match="a Moment or None at first/bias"):
        proxy_quality(FIRST, PROXIES, FIRST.params)


def test_moments_by_class_must_be_added_up_first(moments):
    by_class = class_moments(FIRST, RETAINED, np.arange(30) % 3, num_classes=3)
    words = "true_moments at first/kernel have a leading class axis.*sum_classes"
    with pytest.raises(ValueError, match=words):
        proxy_quality(FIRST, PROXIES, by_class, rank=1)
    added = proxy_quality(FIRST, PROXIES, sum_classes(by_class, range(3)), rank=1)
    whole = proxy_quality(FIRST, PROXIES, moments, rank=1)
    for name, share in whole.captured_energy.items():
        assert added.captured_energy[name] == pytest.approx(share, rel=1e-5)


def test_a_quality_is_frozen(moments):
    quality = proxy_quality(FIRST, PROXIES, moments, rank=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        quality.accuracy = 100.0


# Noise.

PREPROCESS = Preprocess(mean=(0.3, 0.5, 0.6), std=(0.05, 0.1, 0.08))
# E[min(z^2, 4)] of a standard normal z: clipped at two standard deviations.
WITHIN = math.erf(math.sqrt(2))
CLIPPED = WITHIN - 4 * math.exp(-2) / math.sqrt(2 * math.pi) + 4 * (1 - WITHIN)
# One shape, which is compiled once.
NOISE = (100, (16, 16, 3))


@pytest.mark.core
@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [
        ("uniform", (0.5,) * 3, (1 / math.sqrt(12),) * 3),
        ("gaussian", (0.5,) * 3, (0.25 * math.sqrt(CLIPPED),) * 3),
        ("matched", PREPROCESS.mean, PREPROCESS.std),
    ],
)
def test_noise_has_the_mean_and_deviation_of_its_kind(kind, mean, std):
    images = noise_images(KEY, kind, *NOISE, PREPROCESS)
    assert images.shape == (100, 16, 16, 3)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    pixels = images.reshape(-1, 3).astype(np.float64)
    # Five standard errors of 25,600 pixels.
    np.testing.assert_allclose(pixels.mean(0), mean, atol=5 * max(std) / 160)
    np.testing.assert_allclose(pixels.std(0), std, atol=5 * max(std) / 160)
    assert abs(np.corrcoef(pixels.T)[0, 1]) < 5 / 160


def test_one_number_for_all_channels_matches_any():
    images = noise_images(KEY, "matched", *NOISE, Preprocess(0.4, 0.05))
    assert images.mean() == pytest.approx(0.4, abs=1e-3)


def test_noise_is_drawn_from_its_key():
    one, same = (noise_images(KEY, "gaussian", *NOISE) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert (noise_images(jax.random.key(1), "gaussian", *NOISE) != one).any()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((KEY, "salt", 2, SHAPE), ValueError, "gaussian, matched; it is 'salt'"),
        ((KEY, "uniform", 0, SHAPE), ValueError, "count must be at least 1; it is 0"),
        ((KEY, "uniform", 2, (4, 4)), ValueError, r"\(h, w, c\); it is \(4, 4\)"),
        ((KEY, "uniform", 2, (4, 0, 1)), ValueError, "image_shape's w must be"),
        ((KEY, "matched", 2, SHAPE), ValueError, "preprocess is None"),
        ((KEY, "matched", 2, SHAPE, PREPROCESS), ValueError, "3 channels .* have 1"),
        ((jnp.ones(2), "uniform", 2, SHAPE), TypeError, "key must be one"),
    ],
)
def test_arguments_of_noise_are_checked(arguments, error, words):
    with pytest.raises(error, match=words):
        noise_images(*arguments)
