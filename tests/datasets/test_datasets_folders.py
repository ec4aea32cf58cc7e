"""Folders of images, read at once and in batches."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import jaxunlearn as ju
from jaxunlearn import datasets, parallel
from jaxunlearn.datasets import pixels

SPLITS = ("train", "validation", "test")


def write(folder, numbers, *, mode="RGB", size=(7, 6)):
    """Files that are, in sorted order, uniform images of these numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, number in enumerate(numbers):
        colour = number if mode in ("L", "I;16") else (number,) * len(mode)
        Image.new(mode, size, colour).save(folder / f"{i:03}.png")


@pytest.fixture
def folder(tmp_path):
    """Two classes of 30 and 20 images."""
    write(tmp_path / "dogs", range(100, 120))
    write(tmp_path / "cats", range(30))
    return tmp_path


@pytest.fixture
def split_folder(tmp_path):
    for part, start in (("train", 0), ("test", 100)):
        write(tmp_path / part / "cats", range(start, start + 20))
        write(tmp_path / part / "dogs", range(start + 50, start + 70))
    return tmp_path


def numbers(data):
    return data.images[:, 0, 0, 0].tolist()


def test_class_folders_in_sorted_order_are_the_classes(folder):
    assert datasets.num_classes(folder) == 2
    assert datasets.class_names(str(folder)) == ["cats", "dogs"]
    data = datasets.load(str(folder), "test")
    assert data.images.shape == (10, 6, 7, 3)
    np.testing.assert_array_equal(data.labels, np.array(numbers(data)) >= 100)


def test_without_split_folders_every_fifth_file_of_a_class_is_for_the_test(folder):
    expected = [*range(0, 30, 5), *range(100, 120, 5)]
    for seed in (0, 1):
        assert numbers(datasets.load(folder, "test", seed=seed)) == expected


def test_without_split_folders_a_tenth_of_the_rest_is_for_validation(folder):
    first, again, other = (
        {s: numbers(datasets.load(folder, s, seed=seed)) for s in SPLITS}
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first["validation"] != other["validation"]
    assert sum(n < 100 for n in first["validation"]) == 2  # of 24
    assert sum(n >= 100 for n in first["validation"]) == 1  # of 16
    assert sorted(sum(first.values(), [])) == [*range(30), *range(100, 120)]
    assert first["train"] == sorted(first["train"])


def test_split_folders_are_kept(split_folder):
    parts = {s: numbers(datasets.load(split_folder, s)) for s in SPLITS}
    assert parts["test"] == [*range(100, 120), *range(150, 170)]
    assert sorted(parts["train"] + parts["validation"]) == [
        *range(20),
        *range(50, 70),
    ]
    assert len(parts["validation"]) == 4


def test_a_validation_folder_is_taken_as_it_is(split_folder):
    for name in ("cats", "dogs"):
        write(split_folder / "validation" / name, [200])
    assert numbers(datasets.load(split_folder, "validation")) == [200, 200]
    assert len(datasets.load(split_folder, "train")) == 40


def test_a_class_may_be_called_train(tmp_path):
    for name in ("plane", "train"):
        write(tmp_path / name, range(5))
    assert datasets.class_names(tmp_path) == ["plane", "train"]
    assert len(datasets.load(tmp_path, "test")) == 2


def test_folders_called_by_numbers_are_in_the_order_of_the_numbers(tmp_path):
    for name in range(12):
        write(tmp_path / str(name), [name] * 6)
    data = datasets.load(tmp_path, "train")
    assert numbers(data) == data.labels.tolist()
    assert data.class_names == tuple(map(str, range(12)))
    assert datasets.class_names(tmp_path) == list(data.class_names)
    write(tmp_path / "none of these", [77] * 6)
    assert datasets.class_names(tmp_path)[:3] == ["0", "1", "10"]


def test_class_names_travel_with_the_data(folder):
    for split in SPLITS:
        assert datasets.load(folder, split).class_names == ("cats", "dogs")


@pytest.mark.parametrize("name", ["val", "valid", "dev", "Validation"])
def test_validation_has_many_names(split_folder, name):
    for kind in ("cats", "dogs"):
        write(split_folder / name / kind, [200])
    assert numbers(datasets.load(split_folder, "validation")) == [200, 200]
    assert len(datasets.load(split_folder, "train")) == 40
    assert len(datasets.load(split_folder, "test")) == 40


def test_without_a_test_folder_validation_takes_its_place_and_that_is_said(tmp_path):
    for part, start in (("train", 0), ("val", 100)):
        for kind in ("cats", "dogs"):
            write(tmp_path / part / kind, range(start, start + 20))
    with pytest.warns(UserWarning, match="no test split: val is used as test, and a t"):
        assert numbers(datasets.load(tmp_path, "test")) == [*range(100, 120)] * 2
    parts = [numbers(datasets.load(tmp_path, s)) for s in ("train", "validation")]
    assert sorted(sum(parts, [])) == sorted([*range(20)] * 2)
    assert len(parts[1]) == 4


def test_two_folders_for_one_split_are_refused(split_folder):
    for name in ("val", "dev"):
        write(split_folder / name / "cats", [200])
    with pytest.raises(ValueError, match="has dev and val, and either may be what is"):
        datasets.load(split_folder, "train")


def test_what_is_left_out_is_named(split_folder):
    write(split_folder / "extra" / "cats", [7])
    write(split_folder / "train", [7])
    with pytest.warns(UserWarning, match="without extra, 1 images in no class .*000"):
        assert len(datasets.load(split_folder, "test")) == 40


def test_images_deeper_than_the_class_folder_are_refused(folder):
    write(folder / "cats" / ".cache", [9])
    before = len(datasets.load(folder, "train"))
    write(folder / "cats" / "siamese" / "kittens", [9])
    with pytest.raises(ValueError, match="class folder .*cats has .*kittens/000.png"):
        datasets.load(folder, "train")
    for name in ("siamese/kittens/000.png", "siamese/kittens", "siamese"):
        path = folder / "cats" / name
        path.rmdir() if path.is_dir() else path.unlink()
    assert len(datasets.load(folder, "train")) == before


def test_a_class_of_one_image_has_none_for_training_and_is_refused(folder, tmp_path):
    write(folder / "birds", [7])
    for split in SPLITS:
        with pytest.raises(ValueError, match="of 'birds' there is one alone"):
            datasets.load(folder, split)
    write(folder / "birds", [7, 8])
    assert 0 in datasets.load(folder, "train").labels


def oriented(path, orientation, pixels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_images_are_upright_as_their_exif_says(tmp_path, suffix, orientation, turns):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, 8:] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            oriented(tmp_path / name / f"{i}.{suffix}", orientation, pixels)
    data = datasets.load(tmp_path, "test")
    expected = np.rot90(pixels, turns)
    assert data.images.shape[1:] == expected.shape
    np.testing.assert_allclose(data.images[0].astype(int), expected, atol=40)


@pytest.mark.parametrize("call", ["load", "preprocess", "stream"])
def test_a_size_that_fills_the_memory_is_refused_first(folder, call):
    calls = {
        "load": lambda size: datasets.load(folder, "train", size=size),
        "preprocess": lambda size: datasets.preprocess(folder, size=size),
        "stream": lambda size: datasets.stream(
            folder, "train", size=size, batch_size=9, process=(0, 1)
        ),
    }
    with pytest.raises(ValueError, match=r"1000000, 3\) take .* of free memory"):
        calls[call]((10**6, 10**6))


def test_images_are_grey_only_if_all_are(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, range(10), mode="L")
    assert datasets.load(tmp_path, "test").images.shape[-1] == 1
    Image.new("RGB", (7, 6)).save(tmp_path / "a" / "003.png")
    assert datasets.load(tmp_path, "test").images.shape[-1] == 3


def test_other_files_and_hidden_ones_are_passed_over(folder):
    before = numbers(datasets.load(folder, "train"))
    (folder / ".cache").mkdir()
    (folder / "README.txt").write_text("About these images.")
    (folder / "cats" / "._000.png").write_bytes(b"rubbish")
    (folder / "cats" / "notes.txt").write_text("A cat.")
    assert numbers(datasets.load(folder, "train")) == before


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "CMYK"])
def test_other_kinds_of_colours_become_three_channels(tmp_path, mode):
    picture = Image.new("RGB", (7, 6), (200, 40, 90)).convert(mode)
    suffix = "jpg" if mode == "CMYK" else "png"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            picture.save(tmp_path / name / f"{i}.{suffix}")
            write(tmp_path / name, [0])  # in colour: the set is not grey
    data = datasets.load(tmp_path, "train")
    expected = np.asarray(picture.convert("RGB"))[0, 0].astype(int)
    difference = data.images[:, 0, 0].astype(int) - expected
    assert data.images.shape[-1] == 3
    assert np.abs(difference).max(-1).min() <= 4  # JPEG rounds


def test_images_of_different_sizes_need_a_size(folder):
    write(folder / "dogs", [1], size=(9, 9))
    with pytest.raises(
        ValueError, match=r"000.png is 6 x 7 .* and .*000.png is 9 x 9\. Give"
    ):
        datasets.load(folder, "test")
    assert datasets.load(folder, "test", size=(4, 5)).images.shape == (10, 4, 5, 3)


def test_resizing_is_that_of_arrays(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    resized = datasets.load(tmp_path, "test", size=(5, 7)).images[0]
    expected = jax.image.resize(picture.astype(np.float32), (5, 7, 3), "bilinear")
    np.testing.assert_allclose(resized, expected, atol=1.01)


def test_large_files_are_decoded_by_threads_in_order(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 90, 80, 3), np.uint8)
    for i, picture in enumerate(pictures):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
        assert path.stat().st_size > pixels._LARGE
    data = datasets.load(tmp_path, "train")
    np.testing.assert_array_equal(data.images, pictures[[2, 4, 3, 5]])


def test_pixels_are_measured_on_the_training_split_alone(split_folder):
    mean = np.mean(numbers(datasets.load(split_folder, "train", seed=2))) / 255
    preprocess = datasets.preprocess(split_folder, seed=2)
    np.testing.assert_allclose(preprocess.mean, [mean] * 3, rtol=1e-12)


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no folders in it, one for each class"):
        datasets.num_classes(tmp_path)
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match="class folder .*cats has no images"):
        datasets.load(tmp_path, "train")


def test_broken_images_are_named(folder):
    path = folder / "cats" / "004.png"
    whole = path.read_bytes()
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="004.png is no image that can be read"):
        datasets.load(folder, "test")
    path.write_bytes(whole[:-25])
    with pytest.raises(ValueError, match="004.png cannot be decoded"):
        datasets.load(folder, "train", seed=0), datasets.load(folder, "validation")


def test_pixels_of_sixteen_bits_are_refused(folder):
    write(folder / "cats", [1000], mode="I;16")
    with pytest.raises(ValueError, match="000.png has pixels of more than eight bits"):
        datasets.load(folder, "train")


def test_classes_that_differ_between_splits_are_named(split_folder):
    write(split_folder / "test" / "birds", [1])
    with pytest.raises(ValueError, match="only one of them has birds"):
        datasets.load(split_folder, "train")


def test_a_missing_test_folder_is_missed_where_it_is_asked_for(tmp_path):
    write(tmp_path / "train" / "cats", range(10))
    assert len(datasets.load(tmp_path, "train")) == 9
    with pytest.raises(ValueError, match="has train, but no test"):
        datasets.load(tmp_path, "test")


def test_no_damage_leads_to_anything_but_a_sentence_that_names_the_file(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 9, 7, 3), np.uint8)
    sentences = []
    for suffix in ("png", "jpg", "gif", "tif", "webp", "bmp"):
        folder = tmp_path / suffix
        for i, picture in enumerate(pictures):
            path = folder / "ab"[i % 2] / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        whole = path.read_bytes()
        for trial in range(12):
            damaged = bytearray(whole)
            if trial % 3:
                damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            else:
                damaged = damaged[: rng.integers(len(whole))]
            path.write_bytes(damaged)
            try:
                datasets.load(folder, "train")
            except ValueError as error:
                sentences.append((path.name, str(error)))
    assert len(sentences) > 20
    assert all(name in s and len(s) < 1000 for name, s in sentences)


def test_a_folder_larger_than_half_the_memory_is_not_read(folder, monkeypatch):
    needed = 10 * 6 * 7 * 3
    monkeypatch.setattr(parallel, "free_host_memory", lambda: 2 * needed)
    assert len(datasets.load(folder, "test")) == 10
    monkeypatch.setattr(parallel, "free_host_memory", lambda: 2 * needed - 1)
    with pytest.raises(ValueError, match=r"10 images .* datasets\.stream"):
        datasets.load(folder, "test")


@pytest.fixture
def stream():
    pytest.importorskip("grain", reason="streams need grain (extra: stream)")
    return datasets.stream


@pytest.mark.parametrize("split", SPLITS)
def test_a_stream_is_the_folder_in_batches_in_every_pass(folder, stream, split):
    whole = datasets.load(folder, split, seed=1, size=(4, 4))
    batches = stream(folder, split, batch_size=4, seed=1, size=(4, 4), workers=3)
    for _ in range(2):
        images, labels = zip(*batches, strict=True)
        assert len(images) == len(batches) == -(-len(whole) // 4)
        assert {len(batch) for batch in images[:-1]} <= {4}
        np.testing.assert_array_equal(np.concatenate(images), whole.images)
        np.testing.assert_array_equal(np.concatenate(labels), whole.labels)
        assert {batch.dtype for batch in images} == {np.dtype(np.uint8)}


def test_processes_share_a_stream(folder, stream):
    whole = datasets.load(folder, "train")
    shares = [stream(folder, "train", batch_size=7, process=(i, 3)) for i in range(3)]
    for i, share in enumerate(shares):
        images = np.concatenate([images for images, _ in share])
        np.testing.assert_array_equal(images, whole.images[i::3])


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(len(x), -1))


def test_moments_of_a_stream_are_those_of_the_folder(folder, stream):
    model = Network()
    variables = model.init(jax.random.key(0), np.zeros((1, 6, 7, 3), np.float32))
    preprocess = datasets.preprocess(folder)
    classifier = ju.freeze(model, variables, preprocess=preprocess)
    whole = datasets.load(folder, "train")
    batches = stream(folder, "train", batch_size=5)
    pairs = [
        (ju.second_moments(classifier, images, batch_size=8)
         for images in (whole.images, batches)),
        (ju.class_moments(classifier, images, labels, num_classes=2, batch_size=8)
         for images, labels in ((whole.images, whole.labels), (batches, None))),
    ]  # fmt: skip
    for at_once, streamed in pairs:
        for a, b in zip(*map(jax.tree.leaves, (at_once, streamed)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def test_a_stream_names_a_broken_image(folder, stream):
    path = folder / "cats" / "005.png"
    path.write_bytes(path.read_bytes()[:-25])
    with pytest.raises(ValueError, match="005.png cannot be decoded"):
        list(stream(folder, "test", batch_size=4))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; it is 0"),
        ({"batch_size": 4, "workers": 0}, "workers must be at least 1; it is 0"),
        ({"batch_size": 4, "process": (2, 2)}, r"index below count; it is \(2, 2\)"),
        ({"batch_size": 4, "size": (0, 4)}, r"at least 1; it is \(0, 4\)"),
        ({"batch_size": 4, "seed": -1}, "seed must be 0 or more"),
        ({"batch_size": 2**70}, "batch_size must be at most 2147483647"),
        ({"batch_size": 2**31 - 1}, "2147483647 images .* of free memory"),
        ({"batch_size": "4"}, "batch_size must be an integer; it is '4'"),
        ({"batch_size": 4, "process": 3}, "index below count; it is 3"),
        ({"batch_size": 4, "process": "01"}, "index below count; it is '01'"),
    ],
)
def test_wrong_streams_are_refused(folder, stream, options, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        stream(folder, "train", **options)


def test_only_folders_are_streamed(stream, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*gone; only folders"):
        stream(tmp_path / "gone", "train", batch_size=4)
    with pytest.raises(FileNotFoundError, match="no folder None; only folders"):
        stream(None, "train", batch_size=4)
