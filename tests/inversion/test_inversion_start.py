"""Images to start from: drawn, shifted, mirrored, made brighter; against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from normalised import Plain, draw_classifier
from test_inversion import PREPROCESS, small
from typecheck import unchecked

import jaxunlearn as ju
from jaxunlearn.augmentation import random_brightness
from jaxunlearn.inversion.start import has_batch_norm

KEY = jax.random.key(3)
SIDE, COUNT = 8, 23


def classifier(preprocess=None):
    return small(preprocess, Plain, (SIDE, SIDE, 2))


def drawn(n=4, low=0.2, high=0.8, seed=0):
    shape = (n, SIDE, SIDE, 2)
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def variants(image, low):
    """All shifts by up to a pixel and flips of one image, by what was done to it."""
    padded = np.full((SIDE + 2, SIDE + 2, 2), low)
    padded[1:-1, 1:-1] = image
    signs = (1, -1), (1, -1)
    for y, x, down, right in itertools.product(range(3), range(3), *signs):
        window = padded[y : y + SIDE, x : x + SIDE]
        yield (y, x, down, right), window[::down, ::right] - low


def origin(made, images, low):
    """Which image it is, what was done to it, its factor: the only possible ones."""
    found = []
    for number, image in enumerate(images):
        for done, above in variants(image.astype(np.float64), low):
            factor = ((made - low) * above).sum() / (above**2).sum()
            if np.allclose(made - low, factor * above, atol=1e-5):
                found.append((number, done, factor))
    assert len(found) == 1
    return found[0]


@pytest.mark.long
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_each_is_a_given_image_shifted_mirrored_and_brightened(low):
    images = drawn()
    options = {"key": KEY, "bounds": (low, 3.0)}
    made = ju.augmented_images(classifier(), images, COUNT, **options)
    assert made.dtype == np.float32
    found = [origin(one.astype(np.float64), images, low) for one in made]
    numbers, done, factors = zip(*found, strict=True)
    assert sorted(np.bincount(numbers)) == [5, 6, 6, 6]
    assert len({(y, x) for y, x, *_ in done}) > 5
    assert len({one[2:] for one in done}) == 4  # flips
    assert 0.8 <= min(factors) < 0.9
    assert 1.1 < max(factors) <= 1.2


def test_they_stay_in_bounds_and_the_key_decides_everything():
    images = drawn(low=0.0, high=1.0)
    made, same, other = (
        ju.augmented_images(classifier(PREPROCESS), images, COUNT, key=key)
        for key in (KEY, KEY, jax.random.key(4))
    )
    assert made.min() == 0
    assert made.max() == 1  # a fifth brighter, and cut off
    np.testing.assert_array_equal(made, same)
    assert (made != other).any()


def test_bytes_are_pixels_and_without_preprocess_the_range_is_that_of_the_images():
    images = (255 * drawn()).astype(np.uint8)
    made = ju.augmented_images(classifier(PREPROCESS), images, 5, key=KEY)
    floats = (images / 255).astype(np.float32)
    options = {"key": KEY, "bounds": (0.0, 1.0)}
    expected = ju.augmented_images(classifier(), floats, 5, **options)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    unbounded = ju.augmented_images(classifier(), drawn() - 3, COUNT, key=KEY)
    # The border is as black as the darkest pixel, and no pixel leaves the range.
    np.testing.assert_allclose(unbounded.min(), (drawn() - 3).min(), rtol=1e-6)
    assert unbounded.max() <= (drawn() - 3).max()


def test_brightness_is_one_factor_an_image():
    images = drawn(200)
    factors = np.asarray(random_brightness(KEY, images, 0.5)) / images
    np.testing.assert_allclose(np.ptp(factors, axis=(1, 2, 3)), 0, atol=1e-6)
    assert 0.5 <= factors.min() < 0.55
    assert 1.45 < factors.max() <= 1.5


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, "images are empty: give at least one", {"images": drawn(0)}),
        (
            ValueError,
            "NaN or infinite pixels: 4 of 4",
            {"images": drawn() + np.nan},
        ),
        (ValueError, "count must be at least 1; it is 0", {"count": 0}),
        (ValueError, "count is .* images take .* bytes", {"count": 2**31 - 1}),
        (TypeError, r"key must be one jax.random.key\(seed\)", {"key": 0}),
        (ValueError, "bounds must both be finite", {"bounds": (0.0, np.inf)}),
        (ValueError, "bounds must be .low, high.", {"bounds": (1.0, 0.0)}),
        (TypeError, "images are uint8, and", {"images": drawn().astype(np.uint8)}),
        (TypeError, "classifier must be a Classifier", {"classifier": Plain()}),
    ],
)
def test_what_cannot_be_started_from_is_refused(error, words, options):
    given = {"classifier": classifier(), "images": drawn(), "count": 3, "key": KEY}
    given |= options
    with pytest.raises(error, match=words):
        unchecked(ju.augmented_images)(
            given.pop("classifier"), given.pop("images"), given.pop("count"), **given
        )


def test_batch_norm_is_what_has_statistics_to_match():
    assert has_batch_norm(small(), (4, 4, 2))
    plain = draw_classifier(Plain, (4, 4, 2), np.float32)
    assert not has_batch_norm(plain, (4, 4, 2))
    assert jnp.ndim(plain(drawn()[:, :4, :4])) == 2
