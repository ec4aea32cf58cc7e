"""Refusals that several parts share."""

import dataclasses

import numpy as np
import pytest

from jaxunlearn.checks import short
from jaxunlearn.datasets import check_channels


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
