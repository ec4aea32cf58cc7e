"""Image sets prepared by TensorFlow Datasets, read without TensorFlow.

Records are read in batches, in the array_record format; pixels are decoded by Pillow.
"""

import functools
import sys
from pathlib import Path

import numpy as np

from jaxunlearn.checks import check_labels, short
from jaxunlearn.datasets import location, pixels
from jaxunlearn.datasets.splits import Samples, Source, splits_among


def source(name: str, folder: Path) -> Source:
    """A set on disk, asked for by `name`; its `dataset_info.json` is in `folder`."""
    where = f"The data set {name!r} in {folder}"
    file = folder / "features.json"
    try:
        info = location.read_json(folder / "dataset_info.json")
        parts = splits_among([part["name"] for part in info["splits"]], where)
        features = location.read_json(file) if file.is_file() else {}
        channels, num_classes = check_features(name, features)
    except (AttributeError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    file = folder / "label.labels.txt"
    text = file.read_bytes().decode("utf-8", "replace") if file.is_file() else ""
    names = tuple(text.splitlines())
    # Data need one name for each class.
    fitting = len(set(names)) == num_classes

    def labels(part):
        values = _labels(folder.resolve(), part)
        if values.min(initial=0) < 0:
            msg = f"The split {part!r} of {name!r} holds samples without a label."
            raise ValueError(msg)
        name_of = f"labels of the split {part!r} of {name!r}"
        return check_labels(name_of, values, len(values), num_classes)

    def samples(part, chosen, size):
        records = _records(folder, part)

        def read(numbers):
            return _take(folder, records, "image", chosen[numbers])

        def decode(encoded):
            return pixels.decode(encoded, channels, size)

        def describe(i):
            return f"Sample {chosen[i]} of the split {part!r} of {name!r}"

        shape = (*(size or (0, 0)), channels)
        if size is None and len(chosen):
            shape = pixels.named(decode, describe(0), *read(range(1))).shape
        return Samples(shape, read, decode, describe)

    return Source(
        where, parts, labels, samples, num_classes, names if fitting else None
    )


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

    try:
        builder = tfds.builder_from_directory(str(folder))
        files = map(Path, builder.info.splits[part].filepaths)
        gone = [str(file) for file in files if not file.is_file()]
        if not gone:
            skip = {"image": tfds.decode.SkipDecoding()}
            records = builder.as_data_source(split=part, decoders=skip)
            len(records)  # opens the files
            return records
    except ImportError as error:
        msg = (
            f"Reading {folder} needs the package array_record, which is there for "
            f"Linux and macOS; this is {sys.platform} ({error})."
        )
        raise ImportError(msg) from error
    except Exception as error:  # whatever a damaged description leads to
        raise _damaged(folder, error) from error
    msg = (
        f"The set in {folder} is incomplete: {short(gone)[1:-1]} "
        f"{'is' if len(gone) == 1 else 'are'} missing. Delete the folder and "
        "prepare the set again."
    )
    raise FileNotFoundError(msg)


def _take(folder, records, field, numbers):
    try:
        taken = [r[field] for r in records.__getitems__(list(map(int, numbers)))]
        if None not in taken:
            return taken
        error = ValueError(f"a record without {field}")
    except Exception as reason:  # whatever the readers of records and examples raise
        error = reason
    raise _damaged(folder, error)


def _damaged(folder, error):
    return ValueError(
        f"The set in {folder} is damaged ({type(error).__name__}: "
        f"{short(str(error))[1:-1]}): delete the folder and prepare the set again."
    )


@functools.lru_cache(maxsize=8)
def _labels(folder, part):
    """All labels of a split; kept, since train and validation both ask for them."""
    records = _records(folder, part)
    labels = np.empty(len(records), np.int64)
    for start in range(0, len(labels), pixels.BATCH):
        numbers = range(start, min(start + pixels.BATCH, len(labels)))
        labels[start : numbers.stop] = _take(folder, records, "label", numbers)
    labels.setflags(write=False)
    return labels
