"""Refusals that several parts share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.checks import (
    check_choice,
    check_count,
    check_eager,
    check_finite,
    check_targets,
    check_type,
    short,
)
from jaxunlearn.datasets import check_channels
from jaxunlearn.tasks import Data


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((2, 8, 8, 1), None),
        ((2, 8, 8, 3), 3),
        ((0, 8, 8, 4), None),
        ((2, 8, 8, 12), 12),
    ],
)
def test_usual_channels_and_those_asked_for_pass(shape, channels):
    check_channels(np.zeros(shape), channels)


@pytest.mark.parametrize(
    ("shape", "channels", "sentence"),
    [
        ((9, 3, 32, 32), None, r"transpose\(0, 2, 3, 1\), of shape \[9, 32, 32, 3\]"),
        ((9, 1, 8, 8), None, r"say channels=8 .* \[9, 8, 8, 1\], looks right"),
        ((32, 32, 3, 99), None, r"transpose\(3, 0, 1, 2\), of shape \[99, 32, 32, 3\]"),
        ((9, 28, 28, 28), None, "be 28 channels.* no other axis looks like"),
        ((9, 12, 8, 8), 12, r"with 12 channels.* of shape \[9, 8, 8, 12\]"),
        ((9, 8, 8, 3), 1, "with 1 channels; .* which would be 3"),
        ((9, 8, 8), None, r"\(9, 8, 8\). Grey images need .* images\[..., None\]"),
    ],
)
def test_other_orders_of_axes_are_refused_with_the_right_one(shape, channels, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_channels(np.zeros(shape), channels)


def test_what_has_no_shape_has_no_channels():
    for images in (None, range(10**9), "cats", (np.zeros((2, 8, 8, 3)), [0, 1])):
        with pytest.raises(TypeError, match=r"must be an array \[n, h, w, c\]; it is"):
            check_channels(images)


@dataclasses.dataclass
class Record:
    images: object


@pytest.mark.parametrize(
    "value",
    [
        np.full((300, 9, 9, 3), 77),
        [np.full((5, 9), 77.0)] * 1000,
        {"a": {"b": np.full((5, 9), 77)}},
        Record(np.full((9, 9), 77)),
        "7" * 10_000,
        [10**5000],
    ],
)
def test_what_a_sentence_shows_is_short_and_without_pixels(value):
    assert len(short(value)) < 400
    assert "77, 77" not in short(value)


def test_what_is_short_is_shown_as_it_is():
    for value in (3, 1.5, None, "cats", [1, 2], (3, "x"), {"a": 1}):
        assert short(value) == repr(value)


@pytest.mark.parametrize(
    ("number", "error", "sentence"),
    [
        (
            2**70,
            ValueError,
            "steps must be at most 2147483647; it is 118059162071741",
        ),
        (10**5000, ValueError, "steps must be at most 2147483647"),
        ("3", TypeError, "steps must be an integer; it is '3'"),
        (np.ones((5, 5)), TypeError, r"it is float64\[5, 5\]"),
        (np.bool_(True), TypeError, "steps must be an integer"),
    ],
    ids=["large", "huge", "text", "array", "bool"],
)
def test_counts_are_integers_that_fit(number, error, sentence):
    with pytest.raises(error, match=sentence):
        check_count("steps", number)


def test_a_choice_may_be_asked_of_anything():
    for value in (np.ones(3), ["hard"], None, 3):
        with pytest.raises(ValueError, match="must be one of 'hard', 'ridge'; it is"):
            check_choice("projection", value, ("hard", "ridge"))


@pytest.mark.parametrize(
    ("targets", "error", "sentence"),
    [
        ([0, "a"], TypeError, "targets must be one array of numbers"),
        (range(10**9), ValueError, "targets must have at most 134217728 entries"),
        (None, TypeError, "targets must be one array of numbers"),
        (np.ma.array([0, 1], mask=[0, 1]), ValueError, "targets are a masked array"),
        ([0, 2**32 + 1], ValueError, "targets must be classes 0 to 2; .* index 1"),
    ],
)
def test_wrong_targets_are_refused(targets, error, sentence):
    with pytest.raises(error, match=sentence):
        check_targets(targets, 2, 3)


def test_targets_may_be_lists_and_of_another_byte_order():
    assert check_targets([0, 2], 2, 3).tolist() == [0, 2]
    assert check_targets(np.array([0, 2], ">i4"), 2, 3).dtype.isnative
    assert check_targets([[0.5, 0.5, 0], [0, 0, 1]], 2, 3).shape == (2, 3)


def test_another_type_is_named_and_none_only_where_it_may_be():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(TypeError, match="train must be a Data; it is a tuple. Data"):
        check_type("train", (images, [0, 1]), Data, "Data(images, labels) makes one.")
    with pytest.raises(TypeError, match="train must be a Data or None; it is a str"):
        check_type("train", "cats", Data, optional=True)
    with pytest.raises(TypeError, match="train must be a Data; it is a NoneType"):
        check_type("train", None, Data)
    check_type("train", None, Data, optional=True)
    check_type("train", Data(images, [0, 1]), Data)


def test_inside_a_transformation_nothing_can_be_looked_at():
    check_eager("fit", jnp.zeros(2))
    for transform in (jax.jit, jax.grad, jax.vmap):
        argument = jnp.zeros(2) if transform is jax.vmap else 0.0
        with pytest.raises(TypeError, match=r"fit .*inside jax\.jit"):
            transform(lambda x: check_eager("fit", x))(argument)
    with pytest.raises(TypeError, match="fit runs many programs"):
        jax.jit(lambda: check_eager("fit"))()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_image_that_is_not_finite_is_named(dtype, value):
    images = np.ones((3, 2, 2, 1), jnp.dtype(dtype))
    check_finite(images)
    check_finite(images[:0])
    jax.jit(check_finite)(images)  # Nothing is known of them.
    images[1, 0, 1] = value
    for given in (images, jnp.asarray(images)):
        with pytest.raises(ValueError, match="1 of 3 images, the first at index 1"):
            check_finite(given)
