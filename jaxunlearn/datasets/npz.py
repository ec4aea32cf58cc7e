"""Images and labels in one `.npz` file.

Its arrays are called `train_images`, `train_labels`, `test_images`, ... (as MedMNIST
has it) or `x_train`, `y_train`, `x_test`, ... (as Keras has it), with `validation`,
`val`, `valid` or `dev` where its author drew one; or `images` and `labels`, `x` and `y`
where it is not split.

Images are `[n, h, w, c]` or grey `[n, h, w]`: uint8, whole numbers from 0 to 255, or
floats in [0, 1], which are rounded to bytes. Labels are `[n]`, `[n, 1]` or one-hot
`[n, k]`. An array `class_names` of strings names the classes.
"""

import functools
import itertools
import math
import re
import zipfile
from pathlib import Path

import numpy as np

from jaxunlearn.checks import check_channels, check_labels, short
from jaxunlearn.datasets.pixels import check_memory, of_array
from jaxunlearn.datasets.splits import Source, splits_among

_IMAGES = re.compile(r"((?P<part>.+)_images|x_(?P<keras>.+))", re.IGNORECASE)


def source(path: Path, channels: int | None = None) -> Source:
    """A file, of whose arrays all headers are checked."""
    where, shapes = f"The file {path}", _shapes(path)
    found = [name for name in shapes if _IMAGES.fullmatch(name)]
    parts = splits_among(found, where, _part)
    whole = [name for name in shapes if name.lower() in ("images", "x")]
    if "train" not in parts and len(whole) == 1:
        parts = {}
    needed = list(parts.values()) or whole or ["train_images"]
    if parts and "train" not in parts:
        needed.append("train_images")
    labels_of = {name: _labels_name(name, shapes) for name in needed}
    _check(path, shapes, labels_of)
    train = parts.get("train", needed[0])
    names = _class_names(path, shapes)

    @functools.cache
    def labels(part):
        part = part or train
        name = labels_of[part]
        values = _as_labels(_array(path, name), f"{name} in {path}")
        limit = None if part == train and not declared else num_classes
        hint = f"{labels_of[train]} need every class."
        check_labels(f"{name} in {path}", values, len(values), limit, hint)
        return values.astype(np.int32)

    def samples(part, chosen, size):
        name = part or train
        shape, dtype = shapes[name]
        check_memory(f"{name} in {path}", math.prod(shape) * dtype.itemsize)
        check_channels(shape if len(shape) == 4 else (*shape, 1), channels, name=name)
        images = _as_bytes(_array(path, name)[chosen], f"{name} in {path}")
        return of_array(images if images.ndim == 4 else images[..., None], size)

    columns = shapes[labels_of[train]][0][1:]
    declared = len(names or ()) or (columns[0] if columns and columns[0] > 1 else 0)
    num_classes = declared
    if not declared:
        num_classes = int(labels(train).max(initial=-1)) + 1
        _check_gaps(labels(train), num_classes, f"{labels_of[train]} in {path}")
    used = {*labels_of, *labels_of.values(), *_names_arrays(shapes)}
    left_out = tuple(f"the array {name}" for name in shapes if name not in used)
    return Source(where, parts, labels, samples, num_classes, names, left_out)


def _part(name):
    match = _IMAGES.fullmatch(name)
    return match["part"] or match["keras"]


def _labels_name(images, shapes):
    """What the labels of these images are called, or should be."""
    if images.lower().endswith("images"):
        return images[:-6] + "labels"
    return "Y" + images[1:] if "Y" + images[1:] in shapes else "y" + images[1:]


def _check(path, shapes, labels_of):
    """Refuse arrays that do not go together."""
    needed = itertools.chain(*labels_of.items())
    missing = [name for name in needed if name not in shapes]
    if missing:
        msg = (
            f"The file {path} has no array {' and no '.join(missing)}; it holds "
            f"{short(list(shapes))}."
        )
        raise ValueError(msg)
    first = next(iter(labels_of))
    for name, labels_name in labels_of.items():
        (shape, dtype), (labels, kind) = shapes[name], shapes[labels_name]
        if dtype.kind not in "buif" or len(shape) not in (3, 4):
            msg = (
                f"{name} in {path} must be numbers of shape [n, h, w, c] or [n, h, w]; "
                f"they are {dtype} of shape {shape}."
            )
            raise ValueError(msg)
        onehot = len(labels) == 2 and labels[1] > 1 and kind.kind in "buif"
        if labels[:1] != shape[:1] or not (
            onehot or (kind.kind in "iu" and labels[1:] in ((), (1,)))
        ):
            msg = (
                f"{labels_name} in {path} must be one integer for each of the "
                f"{shape[0]} images, or a one-hot row; they are {kind} of shape "
                f"{labels}."
            )
            raise ValueError(msg)
        if shape[1:] != shapes[first][0][1:]:
            msg = (
                f"{name} in {path} have shape {shape[1:]} and {first} "
                f"{shapes[first][0][1:]}: they must agree."
            )
            raise ValueError(msg)


def _as_labels(values, name):
    """Class numbers of numbers, of a column of them, or of one-hot rows."""
    if values.ndim == 1 or values.shape[1] == 1:
        return values.reshape(-1)
    wrong = ((values != 0) & (values != 1)).any(axis=1) | (values.sum(axis=1) != 1)
    if wrong.any():
        msg = (
            f"{name} are rows of {values.shape[1]} numbers, which must be one-hot, a "
            f"single 1 and 0 elsewhere; row {wrong.argmax()} is not: several classes "
            "of one image are not read."
        )
        raise ValueError(msg)
    return values.argmax(axis=1)


def _check_gaps(labels, num_classes, name):
    """Refuse classes of which nobody has said that they exist."""
    held = set(labels.tolist())
    gaps = list(itertools.islice((c for c in range(num_classes) if c not in held), 12))
    if gaps:
        msg = (
            f"{name} go up to {num_classes - 1}, and no sample has the label "
            f"{', '.join(map(str, gaps))}: number the classes 0, 1, 2 ..., or name all "
            "of them in an array class_names."
        )
        raise ValueError(msg)


def _as_bytes(images, name):
    """Pixels of any kind as uint8, if it is clear how."""
    if not images.size:
        return images.astype(np.uint8)
    low, high = images.min(), images.max()
    floating = images.dtype.kind == "f"
    if images.dtype == bool or (floating and low >= 0 and high <= 1):
        # One by one, so that no second array of floats is needed.
        return np.stack([np.rint(image * 255.0).astype(np.uint8) for image in images])
    if high == 1 and low >= 0:
        msg = (
            f"{name} are integers of which none is above 1: black and white, or the "
            "darkest of 256 levels? Save booleans, floats in [0, 1], or multiply by "
            "255."
        )
        raise ValueError(msg)
    if not (low >= 0 and high <= 255) or (floating and (images % 1).any()):
        msg = (
            f"{name} are {images.dtype} from {low:.4g} to {high:.4g}, neither bytes "
            "from 0 to 255 nor floats in [0, 1]: save them as one of these."
        )
        raise ValueError(msg)
    return images.astype(np.uint8)


def _names_arrays(shapes):
    return [n for n in shapes if n.lower() in ("class_names", "label_names")]


def _class_names(path, shapes):
    for name in _names_arrays(shapes):
        shape, dtype = shapes[name]
        if dtype.kind not in "US" or len(shape) != 1:
            msg = (
                f"{name} in {path} must be strings [k], such as np.array(['cat', "
                f"'dog']); they are {dtype} of shape {shape}."
            )
            raise ValueError(msg)
        values = _array(path, name)
        if dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "replace")
        return tuple(map(str, values))
    return None


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
    except Exception as error:  # of damaged headers a dozen kinds
        msg = f"{path} is no .npz file as np.savez writes it: {short(str(error))}"
        raise ValueError(msg) from error
    return shapes


def _array(path, name):
    try:
        with np.load(path, allow_pickle=False) as file:
            return file[name]
    except Exception as error:  # of damaged content too
        reason = short(str(error))
        msg = f"The array {name} in {path} is damaged ({reason}): write or download the file anew."  # noqa: E501
        raise ValueError(msg) from error
