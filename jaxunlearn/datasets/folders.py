"""Image files in one folder per class.

The class folders, in sorted order, are the classes 0, 1, ... They lie under `train/`
and `test/` (and `validation/`, where its author drew it), or directly in the folder:
then every fifth file of a class is for the test, in sorted order. Without
`validation/`, a tenth of each class of what is left is drawn for it.
"""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jaxunlearn.datasets import pixels
from jaxunlearn.datasets.splits import Samples, Source, every_fifth, members

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


@dataclasses.dataclass(frozen=True)
class Folder(Source):
    """A folder of images. They are grey if all are, and of three channels otherwise."""

    path: Path

    def samples(self, split: str, seed: int, size: tuple[int, int] | None) -> Samples:
        """See `Source.samples`."""
        files, labels, shape = self.listing(split, seed, size)
        batches = pixels.in_batches(
            lambda numbers: files[numbers.start : numbers.stop],
            lambda file: pixels.decode(file, shape[2], size),
            len(files),
            shape,
            lambda i: str(files[i]),
        )
        return Samples(labels, shape, batches)

    def class_names(self) -> list[str]:
        """See `Source.class_names`: those of the folders."""
        return self._class_names(self._root("train"))

    def listing(
        self, split: str, seed: int, size: tuple[int, int] | None
    ) -> tuple[list[Path], Int[np.ndarray, " n"], pixels.Shape]:
        """Files, labels and the common shape of one split; no image is decoded.

        The header of every file is read: some 0.1 ms each, next to a few for decoding.
        """
        parts = {p: self._files(self._root(p)) for p in self._parts()}
        headers = {p: _headers(files) for p, (files, _) in parts.items()}
        grey = all(mode in ("1", "L", "LA") for h in headers.values() for mode, _ in h)
        files, labels = parts[self._part(split)]
        chosen = np.flatnonzero(self._chosen(split, labels, seed))
        sizes = [headers[self._part(split)][i][1] for i in chosen]
        files = [files[i] for i in chosen]
        if size is None:
            pixels.check_sizes(sizes, [str(file) for file in files])
        shape = (*(size or (sizes[0] if sizes else (0, 0))), 1 if grey else 3)
        return files, labels[chosen], shape

    def _parts(self):
        """The split folders that there are; `("",)` if classes lie in the folder."""
        inner = self.path / "train"
        if not inner.is_dir() or not any(f.is_dir() for f in inner.iterdir()):
            return ("",)
        parts = ("train", "validation", "test")
        return tuple(p for p in parts if (self.path / p).is_dir())

    def _part(self, split):
        """The split folder that samples are taken from."""
        parts = self._parts()
        if parts == ("",):
            return ""
        if split in parts:
            return split
        if split == "validation":
            return "train"
        msg = f"The folder {self.path} has {' and '.join(parts)}, but no {split}."
        raise ValueError(msg)

    def _root(self, split):
        return self.path / self._part(split)

    def _chosen(self, split, labels, seed):
        """Which samples of its split folder a split has."""
        if split == self._part(split) and (
            split != "train" or "validation" in self._parts()
        ):
            return np.ones(len(labels), bool)
        test = every_fifth(labels) & (self._part(split) == "")
        return members(split, labels, seed, test)

    def _class_names(self, root):
        folders = [f.name for f in root.iterdir() if f.is_dir()]
        names = sorted(name for name in folders if not name.startswith("."))
        if not names:
            msg = f"The folder {root} has no folders in it, one for each class."
            raise ValueError(msg)
        return names

    def _files(self, root):
        """All images under `root`, with their labels."""
        names, classes = self._class_names(root), self.class_names()
        if names != classes:
            differing = sorted(set(names) ^ set(classes))
            msg = (
                f"{root} and {self._root('train')} must have the same class folders; "
                f"only one of them has {', '.join(differing)}."
            )
            raise ValueError(msg)
        files, labels = [], []
        for label, name in enumerate(names):
            members = sorted(
                f
                for f in (root / name).iterdir()
                if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")
            )
            if not members:
                msg = (
                    f"The class folder {root / name} has no images in it (files "
                    f"ending in {', '.join(sorted(SUFFIXES))})."
                )
                raise ValueError(msg)
            files += members
            labels += [label] * len(members)
        return files, np.array(labels, np.int32)


def _headers(files):
    """Kind of pixels and (h, w) of each file."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_header, files))


def _header(file):
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode, (width, height) = image.mode, image.size
    except (OSError, SyntaxError) as error:
        msg = f"{file} is no image that can be read: remove or replace it ({error})."
        raise ValueError(msg) from error
    if mode[0] in "IF":
        msg = (
            f"{file} has pixels of more than eight bits (Pillow's mode {mode!r}): "
            "convert it."
        )
        raise ValueError(msg)
    return mode, (height, width)
