"""Images and labels in one `.npz` file.

Its arrays are `train_images`, `train_labels`, `test_images`, `test_labels` and, if its
author drew them, `validation_images`, `validation_labels` (or `val_`, as MedMNIST has
it). Images are uint8, `[n, h, w, c]` or grey `[n, h, w]`; labels `[n]` or `[n, 1]`.
"""

import functools
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxunlearn.checks import check_labels
from jaxunlearn.datasets.pixels import of_array
from jaxunlearn.datasets.splits import Source, splits_among

# What reading a truncated or altered file raises.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError)


def source(path: Path) -> Source:
    """A file, of whose arrays all headers are checked."""
    shapes = _shapes(path)
    prefixes = [n.removesuffix("_images") for n in shapes if n.endswith("_images")]
    parts = splits_among(prefixes, f"The file {path}")
    for prefix in {"train": "train", "test": "test", **parts}.values():
        _check(path, shapes, prefix)

    @functools.cache
    def labels(part):
        values = _array(path, f"{part}_labels").reshape(-1)
        limit = None if part == "train" else num_classes
        hint = "train_labels need every class."
        name = f"{part}_labels in {path}"
        return check_labels(name, values, len(values), limit, hint).astype(np.int32)

    def samples(part, chosen, size):
        images = _array(path, f"{part}_images")[chosen]
        return of_array(images if images.ndim == 4 else images[..., None], size)

    num_classes = int(labels("train").max(initial=-1)) + 1
    return Source(f"The file {path}", parts, labels, samples, num_classes)


def _check(path, shapes, prefix):
    """Refuse arrays that do not go together."""
    needed = "train_images", f"{prefix}_images", f"{prefix}_labels"
    missing = [name for name in dict.fromkeys(needed) if name not in shapes]
    if missing:
        msg = (
            f"The file {path} has no array {' and no '.join(missing)}; it "
            f"holds {', '.join(shapes) or 'nothing'}."
        )
        raise ValueError(msg)
    images, dtype = shapes[f"{prefix}_images"]
    labels, kind = shapes[f"{prefix}_labels"]
    if dtype != np.uint8 or len(images) not in (3, 4):
        msg = (
            f"{prefix}_images in {path} must be uint8 of shape [n, h, w, c] "
            f"or [n, h, w]; they are {dtype} of shape {images}."
        )
        raise ValueError(msg)
    if kind.kind not in "iu" or labels not in (images[:1], (images[0], 1)):
        msg = (
            f"{prefix}_labels in {path} must be one integer for each of the "
            f"{images[0]} images; they are {kind} of shape {labels}."
        )
        raise ValueError(msg)
    train = shapes["train_images"][0]
    if images[1:] != train[1:]:
        msg = (
            f"{prefix}_images in {path} have shape {images[1:]} and "
            f"train_images {train[1:]}: they must agree."
        )
        raise ValueError(msg)


def _shapes(path):
    """Shape and kind of every array, from its header alone."""
    shapes = {}
    try:
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                with file.open(name) as array:
                    major, _ = np.lib.format.read_magic(array)
                    read = getattr(np.lib.format, f"read_array_header_{major}_0")
                    shape, _, dtype = read(array)
                shapes[name.removesuffix(".npy")] = shape, dtype
    except FileNotFoundError:
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg) from None
    except (*_DAMAGED, AttributeError) as error:
        msg = f"{path} is no .npz file as np.savez writes it: {error}"
        raise ValueError(msg) from error
    return shapes


def _array(path, name):
    try:
        with np.load(path, allow_pickle=False) as file:
            return file[name]
    except _DAMAGED as error:
        msg = f"The array {name} in {path} is damaged ({error}): write or download the file anew."  # noqa: E501
        raise ValueError(msg) from error
