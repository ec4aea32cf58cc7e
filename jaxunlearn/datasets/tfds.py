"""Image sets prepared by TensorFlow Datasets, read without TensorFlow.

Records are read in batches, in the array_record format; pixels are decoded by Pillow.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import numpy as np

from jaxunlearn.datasets import pixels
from jaxunlearn.datasets.splits import Samples, Source, members


@dataclasses.dataclass(frozen=True)
class Prepared(Source):
    """A set on disk, asked for by `name`; its `dataset_info.json` is in `folder`."""

    name: str
    folder: Path

    def samples(self, split: str, seed: int, size: tuple[int, int] | None) -> Samples:
        """See `Source.samples`. Train and validation are the set's own `train`."""
        self._check_features()
        part = self._part(split)
        labels = _labels(self.folder.resolve(), part)
        if len(labels) and labels.min() < 0:
            msg = f"The split {part!r} of {self.name!r} holds samples without a label."
            raise ValueError(msg)
        test = np.full(len(labels), split == "test")
        chosen = np.flatnonzero(members(split, labels, seed, test))
        records = _records(self.folder, part)
        channels = self._image()["channels"]

        def read(numbers):
            return [r["image"] for r in _take(records, chosen[numbers])]

        def decode(encoded):
            return pixels.decode(encoded, channels, size)

        def describe(i):
            return f"Sample {chosen[i]} of the split {part!r} of {self.name!r}"

        shape = (*(size or (0, 0)), channels)
        if size is None and len(chosen):
            shape = pixels.named(decode, describe(0), *read(range(1))).shape
        batches = pixels.in_batches(read, decode, len(chosen), shape, describe)
        return Samples(labels[chosen], shape, batches)

    def num_classes(self) -> int:
        """See `Source.num_classes`."""
        self._check_features()
        return int(self._features()["label"]["classLabel"]["numClasses"])

    def class_names(self) -> list[str]:
        """See `Source.class_names`."""
        file = self.folder / "label.labels.txt"
        if not file.is_file():
            return [str(c) for c in range(self.num_classes())]
        return file.read_text(encoding="utf-8").splitlines()

    def _part(self, split):
        """The set's own split that samples are taken from."""
        info = json.loads((self.folder / "dataset_info.json").read_text("utf-8"))
        parts = [part["name"] for part in info["splits"]]
        wanted = ("test", "validation") if split == "test" else ("train",)
        for name in wanted:
            if name in parts:
                return name
        msg = (
            f"The data set {self.name!r} in {self.folder} has no split "
            f"{' or '.join(wanted)}, from which {split} is taken; it has "
            f"{', '.join(parts) or 'none'}."
        )
        raise ValueError(msg)

    def _features(self):
        file = self.folder / "features.json"
        features = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        return features.get("featuresDict", {}).get("features", {})

    def _image(self):
        """Kind and shape of the images."""
        image = self._features()["image"]["image"]
        shape = [int(n) for n in image.get("shape", {}).get("dimensions", [])]
        channels = shape[2] if len(shape) == 3 and shape[2] > 0 else 3
        return {"dtype": image.get("dtype", "uint8"), "channels": channels}

    def _check_features(self):
        features = self._features()
        kinds = {"image": "image", "label": "classLabel"}
        fitting = {f for f, kind in kinds.items() if kind in features.get(f, {})}
        check_features(self.name, list(features), fitting)
        image = self._image()
        if image["dtype"] != "uint8" or image["channels"] not in pixels.MODES:
            msg = (
                f"The images of the data set {self.name!r} are {image['dtype']} with "
                f"{image['channels']} channels; uint8 with 1, 3 or 4 are read."
            )
            raise ValueError(msg)


def check_features(name: str, features: list[str], fitting: set[str]) -> None:
    """Refuse a set unless both its image and its label are `fitting`."""
    wrong = [feature for feature in ("image", "label") if feature not in fitting]
    if wrong:
        msg = (
            f"The data set {name!r} is not one of labelled images: it needs an image "
            "called 'image' and a class called 'label', and has no such "
            f"{' and no such '.join(wrong)}; its features are "
            f"{', '.join(features) or 'unnamed'}."
        )
        raise ValueError(msg)


def _records(folder, part):
    """The records of a split: `image`, still encoded, and `label`."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    files = map(Path, builder.info.splits[part].filepaths)
    gone = [str(file) for file in files if not file.is_file()]
    if gone:
        msg = (
            f"The set in {folder} is incomplete: {', '.join(gone)} "
            f"{'is' if len(gone) == 1 else 'are'} missing. Delete the folder and "
            "prepare the set again."
        )
        raise FileNotFoundError(msg)
    try:
        return builder.as_data_source(
            split=part, decoders={"image": tfds.decode.SkipDecoding()}
        )
    except ImportError as error:
        msg = (
            f"Reading {folder} needs the package array_record, which is there for "
            f"Linux and macOS; this is {sys.platform} ({error})."
        )
        raise ImportError(msg) from error


def _take(records, numbers):
    return records.__getitems__([int(i) for i in numbers])


@functools.lru_cache(maxsize=8)
def _labels(folder, part):
    """All labels of a split; kept, since train and validation both ask for them."""
    records = _records(folder, part)
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(labels), pixels.BATCH):
        numbers = range(start, min(start + pixels.BATCH, len(labels)))
        labels[start : numbers.stop] = [r["label"] for r in _take(records, numbers)]
    labels.setflags(write=False)
    return labels
