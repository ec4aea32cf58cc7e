"""Images in an `.npz` file."""

import numpy as np
import pytest

from jaxunlearn import datasets

SPLITS = ("train", "validation", "test")


def arrays(*, n=60, shape=(6, 5, 3), classes=3):
    """Every image is all of its own number, so that it tells where it comes from."""
    pixels = np.arange(n + 30, dtype=np.uint8).reshape(-1, *[1] * len(shape))
    pixels = np.broadcast_to(pixels, (n + 30, *shape))
    labels = np.arange(n + 30) % classes
    return {
        "train_images": pixels[:n],
        "train_labels": labels[:n],
        "test_images": pixels[n:],
        "test_labels": labels[n:],
    }


@pytest.fixture
def save(tmp_path):
    def save(**content):
        path = tmp_path / "set.npz"
        np.savez_compressed(path, **content)
        return str(path)

    return save


def numbers(data):
    return data.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("seed", [0, 4])
def test_a_tenth_of_each_class_is_drawn_for_validation_and_order_is_kept(save, seed):
    path = save(**arrays())
    train, validation, test = (datasets.load(path, s, seed=seed) for s in SPLITS)
    assert np.bincount(validation.labels).tolist() == [2, 2, 2]
    assert sorted(numbers(train) + numbers(validation)) == list(range(60))
    assert numbers(train) == sorted(numbers(train))
    assert numbers(test) == list(range(60, 90))
    for data in (train, validation, test):
        np.testing.assert_array_equal(data.labels, np.array(numbers(data)) % 3)
        assert data.images.shape[1:] == (6, 5, 3)
        assert data.images.dtype == np.uint8


def test_the_seed_decides_what_is_drawn(save):
    path = save(**arrays())
    drawn = [numbers(datasets.load(path, "validation", seed=s)) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("prefix", ["validation", "val"])
def test_validation_arrays_in_the_file_are_taken_as_they_are(save, prefix):
    content = arrays()
    content[f"{prefix}_images"] = np.full((2, 6, 5, 3), 99, np.uint8)
    content[f"{prefix}_labels"] = np.array([2, 0])
    path = save(**content)
    data = datasets.load(path, "validation")
    assert numbers(data) == [99, 99]
    assert data.labels.tolist() == [2, 0]
    assert numbers(datasets.load(path, "train")) == list(range(60))


def test_grey_images_without_channels_and_labels_in_a_column_are_read(save):
    content = arrays(shape=(6, 5))
    for name in ("train_labels", "test_labels"):
        content[name] = content[name][:, None]
    data = datasets.load(save(**content), "test")
    assert data.images.shape == (30, 6, 5, 1)
    assert data.labels.shape == (30,)


def test_images_can_be_resized(save):
    data = datasets.load(save(**arrays()), "test", size=(3, 8))
    assert data.images.shape == (30, 3, 8, 3)
    assert numbers(data) == list(range(60, 90))


def test_classes_are_counted_in_the_training_labels(save):
    path = save(**arrays(classes=7))
    assert datasets.num_classes(path) == 7
    assert datasets.class_names(path) == ["0", "1", "2", "3", "4", "5", "6"]


def test_pixels_are_measured_on_the_training_split_alone(save):
    content = arrays()
    content["train_images"] = np.random.default_rng(0).integers(
        0, 256, (60, 6, 5, 3), np.uint8
    )
    content["test_images"] = np.zeros((30, 6, 5, 3), np.uint8)
    path = save(**content)
    pixels = datasets.load(path, "train", seed=3).images / 255
    preprocess = datasets.preprocess(path, seed=3)
    np.testing.assert_allclose(preprocess.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(preprocess.std, pixels.std((0, 1, 2)), rtol=1e-12)


def without(name):
    return {k: v for k, v in arrays().items() if k != name}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (without("test_labels"), "has no array test_labels; it holds train_images"),
        (arrays() | {"validation_images": np.zeros((1, 6, 5, 3), np.uint8)},
         "no array validation_labels"),
        (arrays() | {"train_images": np.zeros((60, 6, 5, 3))},
         "train_images .* must be uint8 .*; they are float64 of shape"),
        (arrays() | {"test_images": np.zeros((30, 30), np.uint8)},
         r"test_images .* \[n, h, w\]; they are uint8 of shape \(30, 30\)"),
        (arrays() | {"test_images": np.zeros((30, 5, 5, 3), np.uint8)},
         r"test_images .* have shape \(5, 5, 3\) and train_images \(6, 5, 3\)"),
        (arrays() | {"train_labels": np.zeros(59, int)},
         r"one integer for each of the 60 images; they are int64 of shape \(59,\)"),
        (arrays() | {"train_labels": np.zeros(60)}, "one integer .*; they are float64"),
        (arrays() | {"train_labels": np.array([None] * 60)}, "they are object"),
        (arrays() | {"train_labels": np.full(60, -1)}, "0 on; they range from -1"),
        (arrays() | {"test_labels": np.full(30, 3)},
         "test_labels .* 0 to 2; .* from 3 to 3, .* train_labels need every class"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused(save, content, sentence):
    path = save(**content)
    with pytest.raises(ValueError, match=sentence):
        datasets.load(path, "test")


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_arrays_are_named(tmp_path, compressed):
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    content = arrays(shape=(32, 32, 3)) | {"train_images": noise}
    path = tmp_path / "set.npz"
    (np.savez_compressed if compressed else np.savez)(path, **content)
    whole = bytearray(path.read_bytes())
    whole[100_000] ^= 255
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"train_images in .*set.npz is damaged"):
        datasets.load(path, "train")


def test_too_few_samples_for_validation_are_said_to_be_too_few(save):
    path = save(**arrays(n=9))
    assert len(datasets.load(path, "train")) == 9
    with pytest.raises(ValueError, match="'validation' .* is empty: a tenth of each"):
        datasets.load(path, "validation")


def test_a_file_without_training_samples_is_said_to_be_empty(save):
    content = arrays()
    for name in ("train_images", "train_labels"):
        content[name] = content[name][:0]
    path = save(**content)
    for ask in (datasets.preprocess, lambda path: datasets.load(path, "train")):
        with pytest.raises(ValueError, match="'train' of .* is empty"):
            ask(path)


def test_a_file_that_is_not_there_and_one_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*gone.npz"):
        datasets.load(tmp_path / "gone.npz", "test")
    (tmp_path / "text.npz").write_text("not a zip file")
    with pytest.raises(ValueError, match=r"text.npz is no \.npz file"):
        datasets.num_classes(tmp_path / "text.npz")
