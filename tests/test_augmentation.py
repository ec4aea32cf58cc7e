"""Random crops and flips against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxunlearn as ju
from jaxunlearn import augmentation
from jaxunlearn.augmentation import augment, crop_and_flip, random_crop, random_flip

KEY = jax.random.key(0)


def pixels(n, h, w, c, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    # No pixel is black, so that a border cannot be mistaken for one.
    return rng.integers(1, 256, (n, h, w, c)).astype(dtype)


def windows(image, padding):
    """Every window that a crop may show, by its corner."""
    h, w, c = image.shape
    padded = np.zeros((h + 2 * padding, w + 2 * padding, c), image.dtype)
    padded[padding : padding + h, padding : padding + w] = image
    corners = np.ndindex(2 * padding + 1, 2 * padding + 1)
    return {(y, x): padded[y : y + h, x : x + w] for y, x in corners}


def corner_of(cropped, image, padding):
    """The only corner whose window this is."""
    found = [k for k, v in windows(image, padding).items() if (v == cropped).all()]
    assert len(found) == 1
    return found[0]


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 3), st.integers(0, 1))
def test_a_crop_is_a_window_of_the_image_with_a_black_border(h, w, c, padding):
    images = pixels(3, h, w, c)
    cropped = np.asarray(random_crop(KEY, images, padding))
    assert cropped.dtype == np.uint8
    for one, image in zip(cropped, images, strict=True):
        corner_of(one, image, padding)


def test_each_image_is_cropped_by_a_corner_of_its_own_and_all_corners_occur():
    images = np.repeat(pixels(1, 5, 4, 1), 900, axis=0)
    cropped = np.asarray(random_crop(KEY, images, 1))
    corners = [corner_of(one, images[0], 1) for one in cropped]
    counts = [corners.count(corner) for corner in np.ndindex(3, 3)]
    # A hundred each; the standard deviation is 9.4.
    assert min(counts) > 55
    assert max(counts) < 145


def test_a_flip_mirrors_left_and_right_of_every_other_image():
    images = pixels(400, 3, 4, 2)
    flipped = np.asarray(random_flip(KEY, images))
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same, ~mirrored)
    assert 150 < same.sum() < 250


def test_cropping_and_flipping_are_that_in_turn():
    images = pixels(200, 4, 4, 1)
    out = np.asarray(crop_and_flip(KEY, images))
    mirrored = []
    for one, image in zip(out, images, strict=True):
        found = windows(image, 4).values()
        plain = any((w == one).all() for w in found)
        turned = any((w[:, ::-1] == one).all() for w in found)
        assert plain or turned
        mirrored.append(turned and not plain)
    assert 50 < sum(mirrored) < 150


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_the_number_type_is_kept_and_nothing_is_computed_with_it(dtype):
    images = pixels(5, 4, 4, 3, dtype)
    out = np.asarray(augment(KEY, images, crop_padding=2, flip=True))
    assert out.dtype == dtype
    assert set(out.ravel().tolist()) <= {0, *images.ravel().tolist()}


def test_without_padding_and_flip_images_are_left_alone():
    images = jnp.asarray(pixels(5, 4, 4, 3))
    assert augment(KEY, images, crop_padding=0, flip=False) is images


@pytest.mark.parametrize(
    ("padding", "error", "sentence"),
    [
        (-1, ValueError, "padding must be 0 or more pixels; it is -1"),
        (2**70, ValueError, "padding must be less than 32768 pixels; it is 1180591620"),
        (1.5, TypeError, "padding must be a number of pixels; it is 1.5"),
        ("4", TypeError, "padding must be a number of pixels; it is '4'"),
    ],
)
def test_a_padding_that_is_no_number_of_pixels_is_refused(padding, error, sentence):
    with pytest.raises(error, match=sentence):
        random_crop(KEY, pixels(1, 2, 2, 1), padding)


def test_what_are_no_images_is_refused():
    with pytest.raises(TypeError, match="images must be one array of numbers"):
        random_crop(KEY, ["a.png"], 1)
    with pytest.raises(ValueError, match=r"\[n, h, w, c\]; their shape is \(6, 5\)"):
        random_crop(KEY, np.zeros((6, 5)), 1)


def test_they_run_inside_jit_and_vmap_as_outside():
    images = jnp.asarray(pixels(6, 4, 4, 1).reshape(2, 3, 4, 4, 1))
    keys = jax.random.split(KEY, 2)
    outside = [crop_and_flip(k, x) for k, x in zip(keys, images, strict=True)]
    inside = jax.jit(jax.vmap(crop_and_flip))(keys, images)
    np.testing.assert_array_equal(inside, np.stack(outside))


def test_other_keys_draw_otherwise():
    images = pixels(20, 6, 6, 1)
    first, again, other = (
        crop_and_flip(jax.random.key(seed), images) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


@pytest.mark.long
def test_unlearn_takes_them_by_name():
    model = ju.models.create("smallcnn", num_classes=3, width=2)
    images = pixels(4, 8, 8, 1)
    variables = model.init(KEY, jnp.ones((1, 8, 8, 1)))
    preprocess = ju.Preprocess(mean=0.5, std=0.5)
    classifier = ju.freeze(model, variables, preprocess=preprocess)
    losses = {}
    for name, function in augmentation.by_name.items():
        result = ju.unlearn(
            classifier,
            images,
            np.arange(4) % 3,
            optax.sgd(0.1),
            steps=2,
            key=KEY,
            augment=function,
        )
        losses[name] = result.trace.losses
    assert list(losses) == ["none", "crop-flip"]
    assert (losses["none"] != losses["crop-flip"]).any()
