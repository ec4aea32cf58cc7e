"""Image sets prepared by TensorFlow Datasets, read without TensorFlow.

Records are read in batches, in the array_record format; pixels are decoded by Pillow.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np

from jaxunlearn.datasets import pixels
from jaxunlearn.datasets.splits import Samples, Source, splits_among


def source(name: str, folder: Path) -> Source:
    """A set on disk, asked for by `name`; its `dataset_info.json` is in `folder`."""
    where = f"The data set {name!r} in {folder}"
    info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
    file = folder / "features.json"
    features = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    channels, num_classes = check_features(name, features)
    file = folder / "label.labels.txt"
    names = tuple(file.read_text("utf-8").splitlines()) if file.is_file() else None

    def labels(part):
        values = _labels(folder.resolve(), part)
        if values.min(initial=0) < 0:
            msg = f"The split {part!r} of {name!r} holds samples without a label."
            raise ValueError(msg)
        return values

    def samples(part, chosen, size):
        records = _records(folder, part)

        def read(numbers):
            return [r["image"] for r in _take(records, chosen[numbers])]

        def decode(encoded):
            return pixels.decode(encoded, channels, size)

        def describe(i):
            return f"Sample {chosen[i]} of the split {part!r} of {name!r}"

        shape = (*(size or (0, 0)), channels)
        if size is None and len(chosen):
            shape = pixels.named(decode, describe(0), *read(range(1))).shape
        return Samples(shape, read, decode, describe)

    parts = splits_among([part["name"] for part in info["splits"]], where)
    return Source(where, parts, labels, samples, num_classes, names)


def check_features(name: str, features: dict) -> tuple[int, int]:
    """Channels and number of classes, of the content of a `features.json`.

    Refuses a set that is not one of labelled images.
    """
    features = features.get("featuresDict", {}).get("features", {})
    kinds = {"image": "image", "label": "classLabel"}
    wrong = [f for f, kind in kinds.items() if kind not in features.get(f, {})]
    if wrong:
        msg = (
            f"The data set {name!r} is not one of labelled images: it needs an image "
            "called 'image' and a class called 'label', and has no such "
            f"{' and no such '.join(wrong)}; its features are "
            f"{', '.join(features) or 'unnamed'}."
        )
        raise ValueError(msg)
    image = features["image"]["image"]
    shape = [int(n) for n in image.get("shape", {}).get("dimensions", [])]
    channels = shape[2] if len(shape) == 3 and shape[2] > 0 else 3
    dtype = image.get("dtype", "uint8")
    if dtype != "uint8" or channels not in pixels.MODES:
        msg = (
            f"The images of the data set {name!r} are {dtype} with {channels} "
            "channels; uint8 with 1, 3 or 4 are read."
        )
        raise ValueError(msg)
    return channels, int(features["label"]["classLabel"]["numClasses"])


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
