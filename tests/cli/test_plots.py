"""The pictures of a run: what is in them, and that they are written whole."""

import math

import numpy as np
import pytest
from PIL import Image

from jaxunlearn.cli.plots import (
    plot_accuracies,
    plot_classes,
    plot_requests,
    plot_sheet,
)
from jaxunlearn.tasks import Data


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")) / 255


def share(picture, colour, tolerance=0.02):
    """How much of a picture has (nearly) this colour."""
    near = np.abs(picture - np.array(colour)[None, None]).max(axis=-1) <= tolerance
    return near.mean()


def drawn(tmp_path, images, labels, **options):
    path = tmp_path / "images.png"
    plot_classes(path, Data(images, labels), title="proxies", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["images.png"]
    return pixels(path)


def test_classes_are_rows_of_a_sheet(tmp_path):
    images = np.zeros((24, 8, 8, 1), np.float32)
    one, two = (drawn(tmp_path, images[:n], np.arange(n) // 12).shape for n in (12, 24))
    assert one[1] == two[1]
    assert two[0] > 1.5 * one[0]


def test_of_many_images_the_first_are_shown(tmp_path):
    few = np.zeros((24, 8, 8, 1), np.float32)
    many = np.zeros((60, 8, 8, 1), np.float32)
    shapes = [drawn(tmp_path, x, np.arange(len(x)) % 2).shape for x in (few, many)]
    assert shapes[0] == shapes[1]


@pytest.mark.long
def test_a_hundred_classes_fit_on_a_page(tmp_path):
    images = np.zeros((200, 8, 8, 1), np.float32)
    found = drawn(tmp_path, images, np.repeat(np.arange(100), 2))
    assert max(found.shape) < 120 * 45
    plot_accuracies(tmp_path / "a.png", {"x": [50.0] * 100, "y": [50.0] * 100}, [3])
    assert max(pixels(tmp_path / "a.png").shape) < 120 * 45


def test_accuracies_are_bars_of_their_height(tmp_path):
    path = tmp_path / "a.png"

    def ink(value):
        plot_accuracies(path, {"original": [value] * 4}, [])
        # Matplotlib's first colour.
        return share(pixels(path), [0.12, 0.47, 0.71])

    assert ink(100.0) == pytest.approx(2 * ink(50.0), rel=0.05)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_class_without_samples_has_no_bar(tmp_path, missing):
    path = tmp_path / "a.png"
    plot_accuracies(path, {"a": [100.0, missing], "b": [100.0, 0.0]}, [1])
    whole = pixels(path)
    plot_accuracies(path, {"a": [100.0, 0.0], "b": [100.0, missing]}, [1])
    np.testing.assert_array_equal(whole, pixels(path))


def test_forgotten_classes_are_shaded(tmp_path):
    path = tmp_path / "a.png"

    def shaded(classes):
        plot_accuracies(path, {"a": [0.0] * 4}, classes)
        return share(pixels(path), [0.9] * 3, tolerance=0.005)

    assert shaded([]) < 0.01
    assert shaded([1, 2]) == pytest.approx(2 * shaded([1]), rel=0.1)


def requests(path, count=4, *, others=("unsc",), after=20.0):
    metrics = {"Acc_r, %": [95.0] * count, "Acc_f, %": [90.0] * count}
    shown = {"original": metrics}
    shown |= {name: {m: [after] * count for m in metrics} for name in others}
    labels = [str(c) for c in range(count)]
    plot_requests(path, shown, labels, title="digits, $a$")
    return pixels(path) if path.suffix == ".png" else None


def test_requests_are_dots_of_each_classifier(tmp_path):
    blue, orange = [0.12, 0.47, 0.71], [1, 0.5, 0.05]
    one = requests(tmp_path / "a.png")
    two = requests(tmp_path / "a.png", others=("unsc", "retrained"))
    assert share(one, blue) > 0
    assert share(one, orange) == 0
    assert share(two, orange) > 0
    # Twice as many dots, but for the one in the legend.
    dots = [share(requests(tmp_path / "b.png", n), blue) for n in (4, 8)]
    assert dots[1] == pytest.approx(dots[0] * (2 * 8 + 1) / (2 * 4 + 1), rel=0.1)


@pytest.mark.long
def test_pictures_of_requests_grow_up_to_a_page(tmp_path):
    few, many = (requests(tmp_path / "a.png", n).shape for n in (4, 300))
    assert few[1] < many[1] < 120 * 45


def test_requests_are_written_as_a_vector_picture(tmp_path):
    requests(tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes()[:5] == b"%PDF-"


def sheet(tmp_path, images, *, marked=None, title="a title", **options):
    path, count = tmp_path / "sheet.png", len(images)
    marked = np.zeros(count, bool) if marked is None else np.asarray(marked)
    captions = ["airplane: 100 %"] * count
    plot_sheet(path, images, captions, title=title, marked=marked, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
    return pixels(path)


def test_a_sheet_shows_every_image_in_its_colours(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.float32)
    images[0, ..., 0] = images[1, ..., 1] = images[2, ..., 2] = 1
    found = sheet(tmp_path, images)
    colours = ([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0])
    shares = [share(found, colour, tolerance=0.002) for colour in colours]
    assert min(shares) > 0.05
    assert max(shares) < 1.1 * min(shares)


def test_a_sheet_is_as_long_as_it_has_rows(tmp_path):
    def size(count, **options):
        images = np.zeros((count, 8, 8, 1), np.float32)
        return np.array(sheet(tmp_path, images, **options).shape[:2])

    one, two, four = size(8), size(9), size(32)
    assert one[1] == two[1] == four[1]
    row = two[0] - one[0]
    assert 150 < row < 250
    assert four[0] == pytest.approx(one[0] + 3 * row, abs=3)
    # More than fit are left out.
    np.testing.assert_array_equal(size(70, most=8), one)


def test_large_images_are_shown_pixel_by_pixel(tmp_path):
    images = np.zeros((2, 200, 300, 1), np.float32)
    images[:, ::2] = 1
    found = sheet(tmp_path, images).mean(axis=-1)
    # Alternating lines are still told apart.
    assert np.median(np.abs(np.diff(found[100:200, 100:200], axis=0))) > 0.9


@pytest.mark.long
def test_a_sheet_of_huge_images_fits_on_a_page(tmp_path):
    images = np.zeros((8, 20, 4000, 1), np.float32)
    assert max(sheet(tmp_path, images, columns=2).shape) < 120 * 45
    tall = images.swapaxes(1, 2)
    assert max(sheet(tmp_path, tall, columns=4).shape) < 120 * 45


def test_captions_are_below_images_and_red_where_marked(tmp_path):
    images = np.ones((2, 8, 8, 1), np.float32)

    def red(marked):
        found = sheet(tmp_path, images, marked=marked)
        return share(found, [0.69, 0, 0], tolerance=0.1)

    none, one, both = red([False, False]), red([True, False]), red([True, True])
    assert none == 0
    assert 0 < one < both


def test_names_that_look_like_formulas_are_shown_as_they_are(tmp_path):
    images = np.ones((1, 8, 8, 1), np.float32)
    sheet(tmp_path, images, title="$a$ costs $")


def test_sheets_of_other_ranges_are_rescaled(tmp_path):
    images = np.full((2, 8, 8, 1), -3, np.float32)
    images[1] = 5
    assert share(sheet(tmp_path, images), [0, 0, 0]) > 0.1
    sheet(tmp_path, np.full((2, 8, 8, 1), 7, np.float32))


@pytest.mark.parametrize(("channels", "red"), [(2, False), (4, True)])
def test_images_of_other_channels_are_shown_in_grey_or_without_opacity(
    tmp_path, channels, red
):
    images = np.zeros((2, 8, 8, channels), np.float32)
    images[..., 0] = 1
    colour = [1, 0, 0] if red else [0.5] * 3
    assert share(sheet(tmp_path, images), colour) > 0.2
