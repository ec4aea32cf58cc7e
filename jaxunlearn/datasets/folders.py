"""Image files in one folder per class.

The class folders, in sorted order, are the classes 0, 1, ...; where all are called by
numbers, in the order of the numbers. Images lie in them, not deeper. They lie under
`train/`, `test/` and `validation/` (or `val/`, `valid/`, `dev/`), or directly in the
folder: then every fifth file of a class is for the test, in sorted order. Without
`test/`, validation takes its place; without a `validation/` of its own, a tenth of each
class is drawn for it.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxunlearn.checks import short
from jaxunlearn.datasets import pixels
from jaxunlearn.datasets.splits import Samples, Source, splits_among

# Some of them not every Pillow reads; then the file is named.
SUFFIXES = {
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg"),
    *(".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}


def source(path: Path) -> Source:
    """A folder of images. They are grey if all are, and of three channels otherwise.

    Samples are files. The header of every one is read: some 0.1 ms each, next to a few
    for decoding.
    """
    where, inner = f"The folder {path}", _folders(path)
    train = [name for name in inner if name.lower() == "train"]
    split = bool(train and _folders(path / train[0]))
    parts = splits_among(inner, where) if split else {}
    classes = _class_names(path / parts.get("train", ""))

    @functools.cache
    def listings():
        """The files of every part, with their labels."""
        return {p: _listing(path / p, classes) for p in parts.values() or ("",)}

    def samples(part, chosen, size):
        headers = {part: _headers(files) for part, (files, _) in listings().items()}
        grey = all(mode in ("1", "L", "LA") for h in headers.values() for mode, _ in h)
        files = [listings()[part][0][i] for i in chosen]
        sizes = [headers[part][i][1] for i in chosen]
        if size is None:
            pixels.check_sizes(sizes, [str(file) for file in files])
        return Samples(
            (*(size or (sizes[0] if sizes else (0, 0))), 1 if grey else 3),
            lambda numbers: files[numbers.start : numbers.stop],
            lambda file: pixels.decode(file, 1 if grey else 3, size),
            lambda i: str(files[i]),
        )

    return Source(
        where,
        parts,
        lambda part: listings()[part][1],
        samples,
        len(classes),
        tuple(classes),
        _left_out(path, parts),
    )


def _listing(root, classes):
    """All images under `root`, with their labels."""
    differing = sorted(set(_class_names(root)) ^ set(classes))
    if differing:
        msg = (
            f"{root} and the folder for training beside it must have the same class "
            f"folders; only one of them has {', '.join(differing)}."
        )
        raise ValueError(msg)
    files, labels = [], []
    for label, name in enumerate(classes):
        inside = _images(root / name)
        files += inside
        labels += [label] * len(inside)
    return files, np.array(labels, np.int32)


def _folders(root):
    return sorted(
        f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")
    )


def _class_names(root):
    names = _folders(root)
    if not names:
        msg = f"The folder {root} has no folders in it, one for each class."
        raise ValueError(msg)
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    return names


def _left_out(path, parts):
    """Folders beside the splits, and images that are in no class folder."""
    beside = [name for name in _folders(path) if parts and name not in parts.values()]
    roots = dict.fromkeys([path, *(path / name for name in parts.values())])
    files = [file for root in roots for file in _direct(root)]
    if files:
        beside.append(f"{len(files)} images in no class folder, such as {files[0]}")
    return tuple(beside)


def _images(folder):
    """The images of one class."""
    for root, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        deeper = [name for name in names if _is_image(name)]
        if Path(root) != folder and deeper:
            msg = (
                f"The class folder {folder} has images in a folder of its own, such as "
                f"{Path(root, deeper[0])}: move them into {folder.name} itself, or "
                "call the folders of a split train, validation and test."
            )
            raise ValueError(msg)
    files = _direct(folder)
    if not files:
        msg = (
            f"The class folder {folder} has no images in it (files ending in "
            f"{', '.join(sorted(SUFFIXES))})."
        )
        raise ValueError(msg)
    return files


def _direct(folder):
    """The images right in a folder."""
    return sorted(file for file in folder.iterdir() if _is_image(file.name))


def _is_image(name):
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _headers(files):
    """Kind of pixels and (h, w) of each file."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_header, files))


def _header(file):
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode, (width, height) = image.mode, image.size
            if _is_turned(image):
                width, height = height, width
    except Exception as error:  # of broken files Pillow raises a dozen kinds
        reason = short(str(error))
        msg = f"{file} is no image that can be read: remove or replace it ({reason})."
        raise ValueError(msg) from error
    if mode[0] in "IF":
        msg = (
            f"{file} has pixels of more than eight bits (Pillow's mode {mode!r}): "
            "convert it."
        )
        raise ValueError(msg)
    return mode, (height, width)


def _is_turned(image):
    """Whether height and width are exchanged where the image is upright."""
    # Of a PNG without EXIF in its header all would be decoded in search of it; of a
    # TIFF the size is upright already.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return False
    return image.getexif().get(0x0112) in (5, 6, 7, 8)
