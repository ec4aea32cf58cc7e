"""Sets prepared by TensorFlow Datasets: small ones made here, and the real ones."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import datasets
from jaxunlearn.datasets import location

writer = pytest.importorskip(
    "array_record.python.array_record_module",
    reason="the package array_record is there for Linux and macOS only",
)

SPLITS = ("train", "validation", "test")
REAL = os.environ.get("TFDS_DATA_DIR")


def feature(kind, content):
    name = {
        "image": "image_feature.Image",
        "classLabel": "class_label_feature.ClassLabel",
        "text": "text_feature.Text",
    }[kind]
    module = "tensorflow_datasets.core.features."
    return {kind: content, "pythonClassName": module + name}


def image_feature(*shape, dtype="uint8"):
    dimensions = {"dimensions": [str(n) for n in shape]}
    return feature("image", {"dtype": dtype, "shape": dimensions})


FEATURES = {
    "image": image_feature(6, 5, 3),
    "label": feature("classLabel", {"numClasses": "3"}),
}


def encoded(number, shape=(6, 5, 3), form="png"):
    pixels = np.full(shape, number, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if shape[2] == 1 else pixels).save(file, form)
    return file.getvalue()


def write(
    data_dir,
    splits,
    *,
    place="photos/1.0.0",
    features=FEATURES,
    names=(),
    file_format="array_record",
):
    """A prepared set by hand; `splits` has a list of (bytes, label) for each name."""
    from tensorflow_datasets.proto import tf_example_pb2

    folder = Path(data_dir, place)
    folder.mkdir(parents=True)
    name = place.partition("/")[0]
    info = {"name": name, "version": folder.name, "fileFormat": file_format}
    info["moduleName"] = "nowhere"
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info["splits"] = [
        {
            "name": split,
            "filepathTemplate": template,
            "numBytes": "1",
            "shardLengths": [str(len(samples))],
        }
        for split, samples in splits.items()
    ]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    (folder / "features.json").write_text(
        json.dumps({"pythonClassName": kind, "featuresDict": {"features": features}})
    )
    if names:
        (folder / "label.labels.txt").write_text("\n".join(names) + "\n")
    for split, samples in splits.items():
        path = folder / f"{name}-{split}.array_record-00000-of-00001"
        file = writer.ArrayRecordWriter(str(path), "group_size:1")
        for image, label in samples:
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(image)
            example.features.feature["label"].int64_list.value.append(label)
            file.write(example.SerializeToString())
        file.close()
    return folder


def samples(numbers, **options):
    """Uniform images of these numbers, of classes 0, 1, 2, 0, ..."""
    return [(encoded(n, **options), n % 3) for n in numbers]


def numbers(data):
    return data.images[:, 0, 0, 0].tolist()


@pytest.fixture
def photos(tmp_path):
    write(tmp_path, {"train": samples(range(60)), "test": samples(range(100, 130))})
    return tmp_path


@pytest.mark.parametrize("seed", [0, 4])
def test_a_tenth_of_each_class_is_drawn_for_validation_and_order_is_kept(photos, seed):
    train, validation, test = (
        datasets.load("photos", s, data_dir=photos, seed=seed) for s in SPLITS
    )
    assert np.bincount(validation.labels).tolist() == [2, 2, 2]
    assert sorted(numbers(train) + numbers(validation)) == list(range(60))
    assert numbers(train) == sorted(numbers(train))
    assert numbers(test) == list(range(100, 130))
    for data in (train, validation, test):
        np.testing.assert_array_equal(data.labels, np.array(numbers(data)) % 3)
        assert data.images.shape[1:] == (6, 5, 3)
        assert data.images.dtype == np.uint8


def test_the_seed_decides_what_is_drawn(photos):
    drawn = [
        numbers(datasets.load("photos", "validation", data_dir=photos, seed=s))
        for s in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_no_image_is_decoded_for_a_split_that_was_not_asked_for(photos, monkeypatch):
    decode, count = datasets.pixels.decode, []

    def counting(*arguments):
        count.append(arguments)
        return decode(*arguments)

    monkeypatch.setattr(datasets.pixels, "decode", counting)
    for split in ("train", "validation"):
        datasets.load("photos", split, data_dir=photos)
    assert len(count) == 60 + 2  # the first of a split tells the shape


def test_what_is_loaded_can_be_changed_and_changes_nothing_else(photos):
    first = datasets.load("photos", "train", data_dir=photos)
    first.images[:], first.labels[:] = 0, 0
    again = datasets.load("photos", "train", data_dir=photos)
    assert len(set(numbers(again))) == 54
    assert set(again.labels.tolist()) == {0, 1, 2}


def test_tensorflow_is_not_imported(photos):
    before = "tensorflow" in sys.modules  # another test may have prepared something
    datasets.load("photos", "test", data_dir=photos)
    assert ("tensorflow" in sys.modules) == before


def test_the_environment_says_where_sets_are(photos, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(photos))
    assert len(datasets.load("photos", "test")) == 30
    assert datasets.num_classes("photos") == 3
    monkeypatch.setenv("TFDS_DATA_DIR", str(photos / "elsewhere"))
    assert len(datasets.load("photos", "test", data_dir=photos)) == 30


def test_without_a_word_sets_are_in_the_home_directory(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert location.directory(None) == Path.home() / "tensorflow_datasets"


def test_the_newest_version_is_taken_unless_another_is_asked_for(photos):
    for version, classes in (("1.2.0", "4"), ("1.10.0", "5")):
        features = FEATURES | {"label": feature("classLabel", {"numClasses": classes})}
        write(photos, {}, place=f"photos/{version}", features=features)
    for name, classes in (
        ("photos", 5),
        ("photos:1.0.0", 3),
        ("photos:1.2.0", 4),
        ("photos:1.*.*", 5),
    ):
        assert datasets.num_classes(name, data_dir=photos) == classes


def test_configurations_are_asked_for_by_name(tmp_path):
    write(tmp_path, {"test": samples([1])}, place="photos/small/1.0.0")
    for name in ("photos", "photos/small", "photos/small:1.0.0"):
        assert numbers(datasets.load(name, "test", data_dir=tmp_path)) == [1]
    write(tmp_path, {"test": samples([2])}, place="photos/large/1.0.0")
    assert numbers(datasets.load("photos/large", "test", data_dir=tmp_path)) == [2]
    with pytest.raises(ValueError, match="large, small; ask for one, such as 'photos/"):
        datasets.load("photos", "test", data_dir=tmp_path)


def test_class_names_are_read_where_there_are_any(photos, tmp_path):
    assert datasets.class_names("photos", data_dir=photos) == ["0", "1", "2"]
    write(tmp_path, {}, place="pets/1.0.0", names=("cat", "dog", "toad"))
    names = datasets.class_names("pets", data_dir=tmp_path)
    assert names == ["cat", "dog", "toad"]


def test_without_a_test_split_validation_takes_its_place(tmp_path):
    write(tmp_path, {"train": samples([0]), "validation": samples([7, 8])})
    with pytest.warns(UserWarning, match="no test split: validation is used as test"):
        data = datasets.load("photos", "test", data_dir=tmp_path)
    assert numbers(data) == [7, 8]


def test_without_either_there_is_no_test(tmp_path):
    write(tmp_path, {"train": samples(range(30)), "extra": samples([1])})
    assert len(datasets.load("photos", "train", data_dir=tmp_path)) == 27
    with pytest.raises(ValueError, match="has train, but no test, from which test"):
        datasets.load("photos", "test", data_dir=tmp_path)


@pytest.mark.parametrize(("channels", "form"), [(1, "png"), (3, "webp"), (4, "png")])
def test_channels_and_encodings(tmp_path, channels, form):
    shape = (6, 5, channels)
    content = [(encoded(n, shape, form if n != 9 else "png"), 0) for n in (7, 8, 9)]
    features = FEATURES | {"image": image_feature(*shape)}
    write(tmp_path, {"test": content}, features=features)
    images = datasets.load("photos", "test", data_dir=tmp_path).images
    assert images.shape == (3, *shape)
    if form == "png":
        assert (images == np.array([7, 8, 9])[:, None, None, None]).all()
    np.testing.assert_allclose(images[:, 2, 2, 0], [7, 8, 9], atol=2)


def test_images_of_different_sizes_need_a_size(tmp_path):
    content = [(encoded(1), 0), (encoded(2, (8, 4, 3)), 0)]
    features = FEATURES | {"image": image_feature(-1, -1, 3)}
    write(tmp_path, {"test": content}, features=features)
    with pytest.raises(
        ValueError, match="Sample 0 .* 6 x 5 .* Sample 1 of the split 'test' .* 8 x 4"
    ):
        datasets.load("photos", "test", data_dir=tmp_path)
    data = datasets.load("photos", "test", data_dir=tmp_path, size=(3, 3))
    assert data.images.shape == (2, 3, 3, 3)
    assert numbers(data) == [1, 2]


def test_broken_images_are_named(tmp_path):
    write(tmp_path, {"test": [(encoded(1), 0), (b"rubbish", 1)]})
    with pytest.raises(ValueError, match="Sample 1 of the split 'test' .* cannot be"):
        datasets.load("photos", "test", data_dir=tmp_path)


def test_pixels_of_other_sets_are_measured_on_the_training_split(photos):
    mean = np.mean(numbers(datasets.load("photos", "train", data_dir=photos, seed=3)))
    preprocess = datasets.preprocess("photos", data_dir=photos, seed=3)
    np.testing.assert_allclose(preprocess.mean, [mean / 255] * 3, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"features": {"image": FEATURES["image"], "text": feature("text", {})}},
         "needs an image .* no such label; its features are image, text"),
        ({"features": {"label": feature("text", {}), "picture": FEATURES["image"]}},
         "no such image and no such label"),
        ({"features": FEATURES | {"image": image_feature(6, 5, 1, dtype="uint16")}},
         "are uint16 with 1 channels; uint8"),
        ({"file_format": "tfrecord"},
         "in the format tfrecord, .* move that folder away and run `jaxunlearn"),
    ],
)  # fmt: skip
def test_sets_that_are_not_of_images_are_refused(tmp_path, options, sentence):
    write(tmp_path, {"train": [], "test": []}, **options)
    with pytest.raises(ValueError, match=sentence):
        datasets.load("photos", "test", data_dir=tmp_path)


def test_samples_without_a_label_are_refused(tmp_path):
    write(tmp_path, {"test": [(encoded(1), -1)]})
    with pytest.raises(ValueError, match="'test' of 'photos' holds samples without"):
        datasets.load("photos", "test", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "photos", "photos/small:1.0.0"])
def test_a_set_that_is_not_there_is_to_be_prepared(tmp_path, name):
    command = f"`jaxunlearn prepare {name} --data-dir {tmp_path}`"
    with pytest.raises(FileNotFoundError, match=f"'{name}' is not prep.*{command}"):
        datasets.load(name, "test", data_dir=tmp_path)


def test_a_set_half_prepared_is_not_there(tmp_path):
    write(tmp_path, {"test": []}, place="cifar10/incomplete.AB_3.0.2")
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        datasets.load("cifar10", "test", data_dir=tmp_path)


def test_a_record_file_that_is_gone_is_named(photos):
    next((photos / "photos" / "1.0.0").glob("*-test.*")).unlink()
    with pytest.raises(FileNotFoundError, match="incomplete: .*-test.* is missing"):
        datasets.load("photos", "test", data_dir=photos)


def damaged(path, change):
    whole = path.read_bytes()
    path.write_bytes(change(whole))


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        ("*-test.*", lambda whole: b""),
        ("*-test.*", lambda whole: whole[: len(whole) // 2]),
        ("*-test.*", lambda whole: whole[:70] + b"?" + whole[71:]),
        ("features.json", lambda whole: whole[:-20]),
        ("features.json", lambda whole: b'{"featuresDict": []}'),
        ("dataset_info.json", lambda whole: b"[" * 100_000),
        ("dataset_info.json", lambda whole: b'{"fileFormat": "array_record"}'),
        ("dataset_info.json", lambda whole: whole.replace(b'"30"', b'"31"')),
    ],
)
def test_damaged_sets_are_said_to_be_damaged(photos, pattern, change):
    damaged(next(photos.rglob(pattern)), change)
    with pytest.raises(ValueError, match="photos.* is damaged .* prepare the set") as e:
        datasets.load("photos", "test", data_dir=photos)
    assert len(str(e.value)) < 1000


def test_a_label_of_no_class_and_a_class_without_a_sample_are_named(tmp_path):
    content = [(encoded(1), 0), (encoded(1), 2)]
    write(tmp_path, {"train": content, "test": [(encoded(1), 3)]}, names="abc")
    with pytest.raises(ValueError, match="labels of the split 'test' .* 0 to 2; .*3"):
        datasets.load("photos", "test", data_dir=tmp_path)
    with pytest.warns(UserWarning, match="no sample for training of the classes 'b'"):
        data = datasets.load("photos", "train", data_dir=tmp_path)
    assert data.class_names == ("a", "b", "c")


def test_validation_of_a_set_is_its_own(photos):
    write(photos, {"train": samples(range(9)), "test": samples(range(9)),
                   "validation": samples([50, 51])}, place="pets/1.0.0")  # fmt: skip
    assert numbers(datasets.load("pets", "validation", data_dir=photos)) == [50, 51]
    assert len(datasets.load("pets", "train", data_dir=photos)) == 9


def test_a_version_that_can_be_read_goes_before_a_newer_one_that_cannot(photos):
    write(photos, {}, place="photos/2.0.0", file_format="tfrecord")
    assert len(datasets.load("photos", "test", data_dir=photos)) == 30


def test_known_sets_answer_without_being_there(tmp_path):
    assert datasets.num_classes("cifar100", data_dir=tmp_path) == 100
    assert datasets.num_classes("cifar100:3.0.2") == 100
    assert len(datasets.preprocess("svhn_cropped").mean) == 3
    assert len(datasets.preprocess("fashion_mnist").mean) == 1


def real(name):
    folders = Path(REAL, name) if REAL else None
    there = folders is not None and folders.is_dir()
    reason = f"{name} is not in TFDS_DATA_DIR ({REAL or 'not set'})"
    return pytest.param(name, marks=pytest.mark.skipif(not there, reason=reason))


@pytest.mark.long
@pytest.mark.parametrize("name", [real("cifar10"), real("cifar100")])
def test_real_test_splits_are_whole(name):
    data = datasets.load(name, "test", data_dir=REAL)
    k = datasets.num_classes(name)
    assert data.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(data.labels).tolist() == [10_000 // k] * k
    assert len(datasets.class_names(name, data_dir=REAL)) == k
    preprocess = datasets.preprocess(name)
    # The constants are those of the training set.
    pixels = data.images / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), preprocess.mean, atol=0.004)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), preprocess.std, atol=0.004)


@pytest.mark.long
@pytest.mark.parametrize("name", [real("fashion_mnist")])
def test_real_training_splits_are_disjoint_and_stratified(name):
    train, validation = (
        datasets.load(name, split, data_dir=REAL) for split in ("train", "validation")
    )
    assert train.images.shape == (54_000, 28, 28, 1)
    assert np.bincount(train.labels).tolist() == [5400] * 10
    assert np.bincount(validation.labels).tolist() == [600] * 10
    # The set itself has a few images twice.
    first, second = (
        {(y, x.tobytes()) for x, y in zip(part.images, part.labels, strict=True)}
        for part in (train, validation)
    )
    assert len(first & second) < 10
    counts = np.zeros(256)
    for part in (train, validation):
        counts += np.bincount(part.images.ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum()
    std = np.sqrt(counts @ (values - mean) ** 2 / counts.sum())
    preprocess = datasets.preprocess(name)
    np.testing.assert_allclose(preprocess.mean, mean, atol=5e-4)
    np.testing.assert_allclose(preprocess.std, std, atol=5e-4)
