"""The digits: splits, grey levels, sizes, and the constants kept of them."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxunlearn import datasets

ORIGINAL = load_digits()
SPLITS = ("train", "validation", "test")


def rows(data):
    return [(y, x.tobytes()) for x, y in zip(data.images, data.labels, strict=True)]


def original_rows(indices=slice(None)):
    """The original's images after rounding by hand, half up, in integers."""
    levels = ORIGINAL.images[indices].astype(int)
    pixels = ((2 * 255 * levels + 16) // 32).astype(np.uint8)[..., None]
    labels = ORIGINAL.target[indices]
    return [(y, x.tobytes()) for x, y in zip(pixels, labels, strict=True)]


@pytest.mark.parametrize(
    ("split", "n", "counts"),
    [
        ("train", 1294, [128, 131, 127, 132, 130, 131, 130, 129, 126, 130]),
        ("validation", 139, [14, 14, 14, 14, 14, 14, 14, 14, 13, 14]),
        ("test", 364, [36, 37, 36, 37, 37, 37, 37, 36, 35, 36]),
    ],
)
def test_the_splits_are_stratified_and_as_large_as_documented(split, n, counts):
    data = datasets.load("digits", split)
    assert data.images.shape == (n, 8, 8, 1)
    assert data.images.dtype == np.uint8
    assert np.bincount(data.labels).tolist() == counts


@pytest.mark.parametrize("seed", [0, 7])
def test_the_splits_hold_every_digit_once(seed):
    parts = [rows(datasets.load("digits", split, seed=seed)) for split in SPLITS]
    assert sorted(sum(parts, [])) == sorted(original_rows())


def test_the_seed_picks_the_validation_samples_and_leaves_the_test_split():
    first, again, other = (
        {split: rows(datasets.load("digits", split, seed=seed)) for split in SPLITS}
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first["test"] == other["test"]
    assert first["validation"] != other["validation"]
    assert first["train"] != other["train"]


def test_the_test_split_is_every_fifth_digit_of_each_class():
    seen, chosen = [0] * 10, []
    for i, c in enumerate(ORIGINAL.target):
        if seen[c] % 5 == 0:
            chosen.append(i)
        seen[c] += 1
    assert rows(datasets.load("digits", "test")) == original_rows(chosen)


def test_the_seventeen_grey_levels_become_bytes_from_0_to_255():
    levels = np.unique(datasets.load("digits", "train").images).tolist()
    assert levels[:11] == [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159]
    assert len(levels) == 17
    assert levels[-1] == 255


def test_the_constants_standardise_everything_but_the_test_split():
    parts = [datasets.load("digits", split).images for split in ("train", "validation")]
    pixels = np.concatenate([p.ravel() for p in parts]) / 255
    preprocess = datasets.preprocess("digits")
    np.testing.assert_allclose(preprocess.mean, pixels.mean(), atol=5e-6)
    np.testing.assert_allclose(preprocess.std, pixels.std(), atol=5e-6)


@pytest.mark.parametrize("size", [(16, 16), (3, 5), (32, 6)])
def test_resizing_is_bilinear_and_averages_where_it_shrinks(size):
    small = datasets.load("digits", "test").images.astype(np.float32)
    expected = jax.image.resize(small, (364, *size, 1), "bilinear")
    resized = datasets.load("digits", "test", size=size).images
    assert resized.dtype == np.uint8
    # Pillow rounds after the rows and again after the columns.
    np.testing.assert_allclose(resized, expected, atol=1.01)


def test_sizes_may_differ_in_height_and_width_and_labels_stay():
    small, large = (datasets.load("digits", "test", size=s) for s in (None, (5, 12)))
    assert large.images.shape == (364, 5, 12, 1)
    np.testing.assert_array_equal(large.labels, small.labels)


def test_names_and_numbers_of_classes():
    assert datasets.names() == sorted(datasets.names())
    assert datasets.num_classes("digits") == 10
    assert datasets.class_names("digits") == list("0123456789")


@pytest.mark.parametrize(
    "ask", [datasets.preprocess, datasets.num_classes, datasets.class_names]
)
def test_an_unknown_data_set_is_answered_with_the_known_ones(ask):
    with pytest.raises(ValueError, match="no data set 'digit'; there are: .*digits"):
        ask("digit")


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (("mnits", "train"), {}, "no data set 'mnits'; there are: .*digits"),
        (("digits", "val"), {}, "no split 'val'; .* train, validation, test"),
        (("digits", "train"), {"seed": -1}, "seed must be 0 or more; it is -1"),
        (("digits", "train"), {"size": (0, 8)}, r"at least 1; it is \(0, 8\)"),
    ],
)
def test_wrong_requests_are_refused(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        datasets.load(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "sentence"),
    [
        ((None, "test"), {}, TypeError, "name must be that .* a path; it is None"),
        ((["digits"], "test"), {}, TypeError, r"a path; it is \['digits'\]"),
        (("digits", None), {}, ValueError, "no split None"),
        (("cifar10", "test"), {"data_dir": 3}, TypeError, "path or None; it is 3"),
        (("digits", np.ones(9)), {}, ValueError, r"no split float64\[9\]"),
        (("digits", "test"), {"seed": "0"}, TypeError, "an integer; it is '0'"),
        (("digits", "test"), {"seed": 1.5}, TypeError, "an integer; it is 1.5"),
        (("digits", "test"), {"size": 32}, ValueError, r"width\).* it is 32"),
        (("digits", "test"), {"size": "32"}, ValueError, r"width\).* it is '32'"),
        (("digits", "test"), {"size": (8, 8, 1)}, ValueError, r"is \(8, 8, 1\)"),
        (("digits", "test"), {"size": (2.5, 8)}, ValueError, r"is \(2.5, 8\)"),
        (("digits", "test"), {"size": (2**70, 8)}, ValueError, r"is \(1180591620"),
        (("digits", "test"), {"size": (10**6, 10**6)}, ValueError, "free memory"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, options, error, sentence):
    with pytest.raises(error, match=sentence):
        datasets.load(*arguments, **options)
