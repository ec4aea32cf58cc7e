"""Images in an `.npz` file."""

import numpy as np
import pytest

from jaxunlearn import datasets, parallel

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


def test_pixels_that_are_all_the_same_cannot_be_standardised(save):
    content = arrays()
    content["train_images"] = np.array(content["train_images"])
    content["train_images"][..., 1] = 7
    path = save(**content)
    assert len(datasets.load(path, "train")) == 54
    with pytest.raises(ValueError, match="set.npz for training .* in channel 1, so"):
        datasets.preprocess(path)


def without(name):
    return {k: v for k, v in arrays().items() if k != name}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (without("test_labels"), "has no array test_labels; it holds .'train_images'"),
        (arrays() | {"validation_images": np.zeros((1, 6, 5, 3), np.uint8)},
         "no array validation_labels"),
        (arrays() | {"train_images": np.full((60, 6, 5, 3), "x")},
         "train_images .* must be numbers .*; they are <U1 of shape"),
        (arrays() | {"test_images": np.zeros((30, 30), np.uint8)},
         r"test_images .* \[n, h, w\]; they are uint8 of shape \(30, 30\)"),
        (arrays() | {"test_images": np.zeros((30, 5, 5, 3), np.uint8)},
         r"test_images .* have shape \(5, 5, 3\) and train_images \(6, 5, 3\)"),
        (arrays() | {"train_labels": np.zeros(59, int)},
         r"one integer for each of the 60 images.*; they are int64 of shape \(59,\)"),
        (arrays() | {"train_labels": np.zeros(60)}, "one integer .*; they are float64"),
        (arrays() | {"train_labels": np.array([None] * 60)}, "they are object"),
        (arrays() | {"train_labels": np.full(60, -1)}, "0 on; they range from -1"),
        (arrays() | {"train_labels": np.arange(60) % 3 + 2**32},
         "must be classes 0 to 2147483646; they range from 4294967296"),
        (arrays() | {"train_labels": np.arange(60, dtype=np.uint64) - 1},
         "must be classes 0 to 2147483646; .* to 18446744073709551615"),
        (arrays() | {"train_labels": np.full(60, 2**31 - 2)},
         "go up to 2147483646, and no sample has the label 0, 1, 2, "),
        (arrays() | {"train_labels": np.arange(60) % 3 + 1},
         "train_labels .* up to 3, and no sample has the label 0: number the classes"),
        (arrays() | {"class_names": [1, 2, 3]}, "class_names .* must be strings"),
        (arrays() | {"test_labels": np.full(30, 3)},
         "test_labels .* 0 to 2; .* from 3 to 3, .* train_labels need every class"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused(save, content, sentence):
    path = save(**content)
    with pytest.raises(ValueError, match=sentence):
        datasets.load(path, "test")


def keras(content):
    names = {"images": "x", "labels": "y"}
    parts = (name.split("_") for name in content)
    return {f"{names[b]}_{a}": content[f"{a}_{b}"] for a, b in parts}


def test_names_as_keras_and_others_have_them(save):
    content = keras(arrays(shape=(6, 5)))
    assert sorted(content) == ["x_test", "x_train", "y_test", "y_train"]
    for upper in (False, True):
        named = {k.replace("x", "X") if upper else k: v for k, v in content.items()}
        train, test = (datasets.load(save(**named), s) for s in ("train", "test"))
        assert (len(train), numbers(test)) == (54, list(range(60, 90)))
        np.testing.assert_array_equal(test.labels, np.array(numbers(test)) % 3)


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("X", "y")])
def test_a_file_that_is_not_split_is_split_as_a_folder_is(save, names):
    content = arrays()
    whole = {names[0]: content["train_images"], names[1]: content["train_labels"]}
    parts = [numbers(datasets.load(save(**whole), split)) for split in SPLITS]
    assert parts[2] == [0, 1, 2, *range(15, 18), *range(30, 33), *range(45, 48)]
    assert sorted(sum(parts, [])) == list(range(60))


def test_two_arrays_for_one_split_are_refused(save):
    path = save(**arrays(), **keras(arrays()))
    with pytest.raises(ValueError, match="has train_images and x_train, and either"):
        datasets.load(path, "train")


def test_arrays_that_are_left_out_are_named(save):
    path = save(**arrays(), extra_images=np.zeros(3), notes=np.zeros(3))
    with pytest.warns(UserWarning, match="without the array extra_images, the array n"):
        datasets.load(path, "test")


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "bool"])
def test_floats_between_0_and_1_become_bytes(save, dtype):
    content = arrays()
    levels = content["train_images"] / 59
    if dtype == "bool":
        levels = content["train_images"] > 30
    content |= {"train_images": levels.astype(dtype)}
    data = datasets.load(save(**content), "train")
    expected = np.rint(levels.astype(np.float64) * 255)[:, 0, 0, 0]
    kept = sorted(numbers(data))
    assert data.images.dtype == np.uint8
    np.testing.assert_allclose(kept[-1], 255)
    assert set(kept) <= set(expected.tolist()) or dtype == "f2"


@pytest.mark.parametrize("dtype", ["i8", ">u2", "f4"])
def test_whole_numbers_up_to_255_are_bytes(save, dtype):
    content = arrays()
    content["test_images"] = content["test_images"].astype(dtype)
    assert numbers(datasets.load(save(**content), "test")) == list(range(60, 90))


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.linspace(-1, 1, 30), "float64 from -1 to 1, neither bytes from 0 to 255"),
        (np.linspace(-2, 2, 30), "float64 from -2 to 2, neither bytes from 0 to 255"),
        (np.linspace(0, 1.3, 30), "from 0 to 1.3, neither bytes .* nor floats in"),
        (np.linspace(0, 250, 30), "from 0 to 250, neither"),
        (np.full(30, np.nan), "from nan to nan, neither"),
        (np.arange(30) * 2000, "int64 from 0 to 5.8e.04, neither bytes"),
        (np.arange(30) % 2, "none is above 1: black and white, or the darkest"),
        ((np.arange(30) % 2).astype(np.uint8), "none is above 1: black and white"),
    ],
)
def test_pixels_that_could_mean_two_things_are_refused(save, pixels, sentence):
    images = np.broadcast_to(pixels[:, None, None, None], (30, 6, 5, 3))
    path = save(**arrays() | {"test_images": images})
    with pytest.raises(ValueError, match=f"test_images .*{sentence}"):
        datasets.load(path, "test")


@pytest.mark.parametrize("dtype", ["u1", "f4", "bool"])
def test_one_hot_rows_are_labels(save, dtype):
    content = arrays()
    for part in ("train", "test"):
        content[f"{part}_labels"] = np.eye(3, dtype=dtype)[content[f"{part}_labels"]]
    data = datasets.load(save(**content), "test")
    assert data.labels.tolist() == [0, 1, 2] * 10


def test_rows_of_several_classes_are_refused(save):
    rows = np.eye(3, dtype=int)[arrays()["test_labels"]]
    rows[4, :] = 1
    with pytest.raises(ValueError, match="test_labels .* one-hot, .* row 4 is not"):
        datasets.load(save(**arrays() | {"test_labels": rows}), "test")


@pytest.mark.parametrize("kind", ["U", "S"])
def test_class_names_in_the_file_travel_with_the_data(save, kind):
    path = save(**arrays(), class_names=np.array(["ant", "bee", "cicada"], kind))
    assert datasets.load(path, "train").class_names == ("ant", "bee", "cicada")
    assert datasets.class_names(path) == ["ant", "bee", "cicada"]
    assert datasets.load(save(**arrays()), "train").class_names is None


def test_classes_that_are_named_may_lack_samples_and_are_said_to(save):
    content = arrays() | {
        "train_labels": np.arange(60) % 2 * 2,
        "class_names": [*"abcd"],
    }
    path = save(**content)
    with pytest.warns(
        UserWarning, match="no sample for training of the classes 'b', 'd"
    ):
        datasets.load(path, "train")
    assert datasets.num_classes(path) == 4


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((3, 32, 32), r"transpose\(0, 2, 3, 1\), of shape \[90, 32, 32, 3\]"),
        ((1, 8, 8), r"say channels=8 .* of shape \[90, 8, 8, 1\], looks right"),
        ((28, 28, 28), "28 channels; say channels=28 if they are.* no other axis"),
    ],
)
def test_axes_in_another_order_are_refused(save, shape, sentence):
    content = arrays(n=60, shape=shape)
    for size in (None, (5, 5)):
        with pytest.raises(ValueError, match=sentence.replace("90", "60")):
            datasets.load(save(**content), "train", size=size)


def test_any_number_of_channels_can_be_asked_for(save):
    path = save(**arrays(shape=(6, 5, 7)))
    data = datasets.load(path, "test", channels=7, size=(3, 3))
    assert data.images.shape == (30, 3, 3, 7)
    assert len(datasets.preprocess(path, channels=7).mean) == 7
    with pytest.raises(ValueError, match="with 3 channels; .* would be 7"):
        datasets.load(path, "test", channels=3)
    with pytest.raises(ValueError, match="digits must be .* with 3 channels"):
        datasets.load("digits", "test", channels=3)


def test_what_a_file_needs_is_counted_before_it_is_read(save, monkeypatch):
    path = save(**arrays())
    with pytest.raises(ValueError, match=r"1000000, 3\) take .* free memory"):
        datasets.load(path, "test", size=(10**6, 10**6))
    monkeypatch.setattr(parallel, "free_host_memory", lambda: 1000)
    with pytest.raises(ValueError, match="test_images in .* take .* free memory"):
        datasets.load(path, "test")


@pytest.mark.parametrize("compressed", [False, True])
def test_no_damage_leads_to_anything_but_a_sentence(tmp_path, compressed):
    rng = np.random.default_rng(0)
    path = tmp_path / "set.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays())
    whole, sentences = path.read_bytes(), []
    for trial in range(60):
        damaged = bytearray(whole)
        if trial % 3:
            # Headers of the first array, and the table of contents.
            place = rng.integers(200) * (-1 if trial % 2 else 1)
            damaged[place] ^= 1 << rng.integers(8)
        else:
            damaged = damaged[: rng.integers(len(whole))]
        path.write_bytes(damaged)
        try:
            datasets.load(path, "train")
        except (ValueError, FileNotFoundError) as error:
            sentences.append(str(error))
    assert len(sentences) > 20
    assert all("set.npz" in s and len(s) < 1000 for s in sentences)


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
