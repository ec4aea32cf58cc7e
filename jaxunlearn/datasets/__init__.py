"""Labelled images by name, or by where they are."""

import os
from pathlib import Path
from typing import Any

from jaxunlearn.checks import check_channels as check_channels
from jaxunlearn.checks import short
from jaxunlearn.classifier.classifier import Preprocess
from jaxunlearn.datasets import digits, folders, location, npz, pixels, tfds
from jaxunlearn.datasets.preparation import prepare as prepare
from jaxunlearn.datasets.splits import Source, check_split, select
from jaxunlearn.datasets.streams import stream as stream
from jaxunlearn.tasks import Data

# Number of classes, mean and standard deviation of the pixels of everything but the
# test split, so that they do not depend on which samples a seed sets aside.
_KNOWN = {
    "cifar10": (10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": (100, (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
    "digits": (10, 0.30546, 0.37609),
    "fashion_mnist": (10, 0.286, 0.353),
    "svhn_cropped": (10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


def names() -> list[str]:
    """The data sets that are known by name.

    >>> names()
    ['cifar10', 'cifar100', 'digits', 'fashion_mnist', 'svhn_cropped']
    """
    return sorted(_KNOWN)


def load(
    name: Any,
    split: Any,
    *,
    data_dir: Any = None,
    seed: Any = 0,
    size: Any = None,
    channels: int | None = None,
) -> Data:
    """Images, uint8 `[n, h, w, c]`, with their labels.

    Args:
      name: one of `names()`; the name of any set of labelled images prepared by
        TensorFlow Datasets (`name`, `name/config`, either with `:version`); the path of
        an `.npz` file, or of a folder with one folder of images per class.
      split: "train", "validation" or "test". A prepared set without `test` has its
        own `validation` in its place; a tenth of each class of `train` is for
        validation here. Folders and files: see `datasets.folders`, `datasets.npz`.
      data_dir: where prepared sets are kept; None is the environment's
        `TFDS_DATA_DIR`, and without it `~/tensorflow_datasets`.
      seed: which of the samples outside the test split are for validation.
      size: (h, w) to resize to, bilinearly; shrinking averages over all pixels.
      channels: how many an `.npz` file has, if neither 1, 3 nor 4.

    Warns:
      UserWarning: validation stands in for a missing test split, a class has no sample
        for training, or folders or arrays are left out.

    Raises:
      TypeError: the name is neither a string nor a path, the seed no integer.
      ValueError: name or split is unknown, the seed negative, the size not positive,
        the set is not one of labelled images of one size, is damaged or can be read in
        two ways, or half of the free memory would not hold it.
      FileNotFoundError: the set is not prepared, or there is no such file.

    >>> load("digits", "test").images.shape
    (364, 8, 8, 1)
    """
    source, labels, samples = _samples(name, split, data_dir, seed, size, channels)
    return Data(pixels.collect(samples, len(labels)), labels, source.class_names)


def preprocess(
    name: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Preprocess:
    """The standardisation of a data set's pixels.

    The usual constants for `names()`; measured on the training split of any other set,
    which `seed`, `size` and `channels` determine as in `load`.

    >>> preprocess("digits").mean
    (0.30546,)
    """
    if _plain(name) in _KNOWN:
        return Preprocess(*_KNOWN[_plain(name)][1:])
    _, labels, samples = _samples(name, "train", data_dir, seed, size, channels)
    mean, std = pixels.mean_and_std(pixels.in_batches(samples, len(labels)))
    if not std.all():
        msg = (
            f"All pixels of {name} for training are the same in channel "
            f"{std.argmin()}, so that there is no standard deviation to divide by: "
            "leave that channel out, or give a Preprocess of your own."
        )
        raise ValueError(msg)
    return Preprocess(mean, std)


def num_classes(
    name: str | os.PathLike, *, data_dir: str | os.PathLike | None = None
) -> int:
    """How many classes a data set has; no image is read.

    >>> num_classes("digits")
    10
    """
    if _plain(name) in _KNOWN:
        return _KNOWN[_plain(name)][0]
    return _find(name, data_dir).num_classes


def class_names(
    name: str | os.PathLike, *, data_dir: str | os.PathLike | None = None
) -> list[str]:
    """What the classes are called, in the order of their numbers.

    >>> class_names("digits")[:3]
    ['0', '1', '2']
    """
    source = _find(name, data_dir)
    return list(source.class_names or ()) or [str(c) for c in range(source.num_classes)]


def _samples(name, split, data_dir, seed, size, channels):
    """The labels and images of one split, of which there is at least one sample."""
    check_split(split, seed, size)
    source = _find(name, data_dir, channels)
    part, chosen, labels = select(source, split, seed)
    if not len(labels):
        reason = (
            ": a tenth of each class is drawn for it, and none has ten samples"
            if split == "validation"
            else ""
        )
        msg = f"The split {split!r} of {name} is empty{reason}."
        raise ValueError(msg)
    samples = source.samples(part, chosen, size)
    check_channels((len(labels), *samples.shape), channels, name=f"images of {name}")
    return source, labels, samples


def _plain(name):
    """The name without a version."""
    is_name = isinstance(name, str | os.PathLike)
    return os.fspath(name).partition(":")[0] if is_name else None


def _find(name: Any, data_dir: Any, channels: int | None = None) -> Source:
    """Where the images of that name are."""
    if not isinstance(name, str | os.PathLike):
        msg = f"name must be that of a data set or a path; it is {short(name)}."
        raise TypeError(msg)
    name = os.fspath(name)
    if name == "digits":
        return digits.source()
    if name.endswith(".npz"):
        return npz.source(Path(name), channels)
    prepared = location.find(name, data_dir)
    if prepared is not None:
        return tfds.source(name, prepared)
    known = _plain(name) in _KNOWN
    if Path(name).is_dir() and not known:
        return folders.source(Path(name))
    if known or (data_dir is not None and location.is_name(name)):
        where = location.directory(data_dir)
        msg = (
            f"The data set {name!r} is not prepared in {where}: prepare it with "
            f"`jaxunlearn prepare {name} --data-dir {where}`."
        )
        raise FileNotFoundError(msg)
    msg = (
        f"There is no data set {name!r}; there are: {', '.join(names())}. Any other "
        "set prepared by TensorFlow Datasets needs its data_dir; files need a path "
        "that exists, of an .npz file or of a folder with one folder for each class."
    )
    raise ValueError(msg)
