"""Preparing a set: the sentences without TensorFlow, the whole way with it."""

import importlib.util
import types
import warnings

import numpy as np
import pytest

from jaxunlearn import datasets
from jaxunlearn.datasets import preparation

MISSING = [p for p in preparation._NEEDED if importlib.util.find_spec(p) is None]
needs_tensorflow = pytest.mark.skipif(
    bool(MISSING), reason=f"preparing needs {', '.join(MISSING)} (extra: prepare)"
)


def test_without_tensorflow_the_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_NEEDED", ("tensorflow_of_the_future",))
    with pytest.raises(
        ImportError,
        match=r"needs tensorflow_of_.*: pip install tensorflow",
    ):
        datasets.prepare("cifar10", tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_prepared_is_answered_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    monkeypatch.setattr(preparation, "_NEEDED", ("tensorflow_of_the_future",))
    assert datasets.prepare("cifar10", tmp_path) == folder


@pytest.fixture(scope="module")
def shapes():
    """A set of TensorFlow Datasets' kind whose images are made, not downloaded."""
    with warnings.catch_warnings():
        # TensorFlow and its companions use what Python deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        import tensorflow_datasets as tfds

    class JaxunlearnShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        broken = False

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(4, 4, 3)),
                "label": tfds.features.ClassLabel(names=["round", "square"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(0, 40),
                "test": self._generate_examples(100, 106),
            }

        def _generate_examples(self, start, stop):
            if self.broken:
                msg = "the server does not answer"
                raise OSError(msg)
            for n in range(start, stop):
                yield n, {"image": np.full((4, 4, 3), n, np.uint8), "label": n % 2}

    return JaxunlearnShapes


@pytest.mark.parametrize(
    ("sides", "answer"),
    [((4, 4, 3), None), ((None, None, 1), None), ((4, 4, 7), "uint8 with 7 channels")],
)
def test_features_are_judged_before_anything_is_downloaded(
    tmp_path, monkeypatch, sides, answer
):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=sides),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
        }
    )
    builder = types.SimpleNamespace(info=types.SimpleNamespace(features=features))
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    if answer is None:
        assert preparation._builder("made", tmp_path) is builder
    else:
        with pytest.raises(ValueError, match=answer):
            preparation._builder("made", tmp_path)


@needs_tensorflow
def test_a_set_is_prepared_and_read_again(tmp_path, shapes):
    folder = datasets.prepare("jaxunlearn_shapes", tmp_path)
    assert folder == tmp_path / "jaxunlearn_shapes" / "1.0.0"
    files = sorted(f.name for f in folder.iterdir())
    assert datasets.prepare("jaxunlearn_shapes", tmp_path) == folder
    assert sorted(f.name for f in folder.iterdir()) == files
    names = datasets.class_names("jaxunlearn_shapes", data_dir=tmp_path)
    assert names == ["round", "square"]
    for split, numbers in (("train", range(40)), ("test", range(100, 106))):
        data = datasets.load("jaxunlearn_shapes", split, data_dir=tmp_path)
        found = data.images[:, 0, 0, 0]
        assert set(found.tolist()) <= set(numbers)
        assert len(data) == (36 if split == "train" else 6)
        np.testing.assert_array_equal(data.labels, found % 2)
        assert (data.images == found[:, None, None, None]).all()


@needs_tensorflow
def test_a_preparation_that_fails_leaves_nothing(tmp_path, shapes, monkeypatch):
    monkeypatch.setattr(shapes, "broken", True)
    with pytest.raises(
        OSError, match=r"'jaxunlearn_shapes' could .* \(OSError: the server does"
    ):
        datasets.prepare("jaxunlearn_shapes", tmp_path)
    assert not list(tmp_path.iterdir())


@needs_tensorflow
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mnits", "TensorFlow Datasets has no set 'mnits'"),
        ("titanic", "'titanic' is not one of labelled images"),
        ("cifar10:1.0.0", "cannot prepare 'cifar10:1.0.0': .* only: 3.0.2"),
        ("cifar10/no", "cannot prepare 'cifar10/no': BuilderConfig no not found"),
    ],
)
def test_what_cannot_be_prepared_is_refused(tmp_path, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        datasets.prepare(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_path_is_no_name(tmp_path):
    with pytest.raises(ValueError, match=r"'\./photos' is no name of a set"):
        datasets.prepare("./photos", tmp_path)
