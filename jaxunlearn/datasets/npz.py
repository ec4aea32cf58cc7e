"""Images and labels in one `.npz` file.

Its arrays are `train_images`, `train_labels`, `test_images`, `test_labels` and, if its
author drew them, `validation_images`, `validation_labels` (or `val_`, as MedMNIST has
it). Images are uint8, `[n, h, w, c]` or grey `[n, h, w]`; labels `[n]` or `[n, 1]`.
"""

import dataclasses
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxunlearn.checks import check_labels
from jaxunlearn.datasets.pixels import resize
from jaxunlearn.datasets.splits import Samples, Source, members

_NEEDED = ("train_images", "train_labels", "test_images", "test_labels")

# What reading a truncated or altered file raises.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError)


@dataclasses.dataclass(frozen=True)
class Npz(Source):
    """A file. Without arrays for validation, a tenth of the training set is drawn."""

    path: Path

    def samples(self, split: str, seed: int, size: tuple[int, int] | None) -> Samples:
        """See `Source.samples`."""
        prefix = self._prefix(split)
        labels = self._labels(prefix, self.num_classes())
        images = self._array(f"{prefix}_images")
        if split != "test" and self._prefix("validation") == "train":
            chosen = members(split, labels, seed)
            labels, images = labels[chosen], images[chosen]
        images = resize(images if images.ndim == 4 else images[..., None], size)
        return Samples(labels, images.shape[1:], iter([images]))

    def num_classes(self) -> int:
        """See `Source.num_classes`: the largest training label, and one."""
        return int(self._labels("train").max(initial=-1)) + 1

    def class_names(self) -> list[str]:
        """See `Source.class_names`: their numbers."""
        return [str(c) for c in range(self.num_classes())]

    def _prefix(self, split):
        """What the arrays begin with that a split is taken from; all are checked."""
        shapes = self._shapes()
        for prefix in ("train", "validation", "val", "test"):
            if f"{prefix}_images" in shapes or prefix in ("train", "test"):
                self._check(shapes, prefix)
        if split != "validation":
            return split
        given = [p for p in ("validation", "val") if f"{p}_images" in shapes]
        return given[0] if given else "train"

    def _check(self, shapes, prefix):
        """Refuse arrays that do not go together."""
        missing = [
            name for name in (*_NEEDED, f"{prefix}_labels") if name not in shapes
        ]
        if missing:
            msg = (
                f"The file {self.path} has no array {' and no '.join(missing)}; it "
                f"holds {', '.join(shapes) or 'nothing'}."
            )
            raise ValueError(msg)
        images, dtype = shapes[f"{prefix}_images"]
        labels, kind = shapes[f"{prefix}_labels"]
        if dtype != np.uint8 or len(images) not in (3, 4):
            msg = (
                f"{prefix}_images in {self.path} must be uint8 of shape [n, h, w, c] "
                f"or [n, h, w]; they are {dtype} of shape {images}."
            )
            raise ValueError(msg)
        if kind.kind not in "iu" or labels not in (images[:1], (images[0], 1)):
            msg = (
                f"{prefix}_labels in {self.path} must be one integer for each of the "
                f"{images[0]} images; they are {kind} of shape {labels}."
            )
            raise ValueError(msg)
        train = shapes["train_images"][0]
        if images[1:] != train[1:]:
            msg = (
                f"{prefix}_images in {self.path} have shape {images[1:]} and "
                f"train_images {train[1:]}: they must agree."
            )
            raise ValueError(msg)

    def _labels(self, prefix, num_classes=None):
        self._check(self._shapes(), prefix)
        labels = self._array(f"{prefix}_labels").reshape(-1)
        name = f"{prefix}_labels in {self.path}"
        hint = "train_labels need every class."
        check_labels(name, labels, len(labels), num_classes, hint)
        return labels.astype(np.int32)

    def _shapes(self):
        """Shape and kind of every array, from its header alone."""
        shapes = {}
        try:
            with zipfile.ZipFile(self.path) as file:
                for name in file.namelist():
                    with file.open(name) as array:
                        major, _ = np.lib.format.read_magic(array)
                        read = getattr(np.lib.format, f"read_array_header_{major}_0")
                        shape, _, dtype = read(array)
                    shapes[name.removesuffix(".npy")] = shape, dtype
        except FileNotFoundError:
            msg = f"There is no file {self.path}."
            raise FileNotFoundError(msg) from None
        except (*_DAMAGED, AttributeError) as error:
            msg = f"{self.path} is no .npz file as np.savez writes it: {error}"
            raise ValueError(msg) from error
        return shapes

    def _array(self, name):
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return file[name]
        except _DAMAGED as error:
            msg = f"The array {name} in {self.path} is damaged ({error}): write or download the file anew."  # noqa: E501
            raise ValueError(msg) from error
