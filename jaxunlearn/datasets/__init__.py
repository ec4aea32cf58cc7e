"""Labelled images by name."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxunlearn.classifier import Preprocess
from jaxunlearn.datasets import digits
from jaxunlearn.tasks import Data

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class _DataSet:
    load: Callable[..., Data]  # (split, *, data_dir, seed)
    preprocess: Preprocess
    num_classes: int


_BY_NAME = {
    "digits": _DataSet(digits.load, digits.PREPROCESS, digits.NUM_CLASSES),
}


def names() -> list[str]:
    """The data sets that there are.

    >>> "digits" in names()
    True
    """
    return sorted(_BY_NAME)


def load(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> Data:
    """Images, uint8 `[n, h, w, c]`, with their labels.

    Args:
      name: one of `names()`.
      split: "train", "validation" or "test".
      data_dir: where files are kept, for data sets that are read from disk.
      seed: which of the samples outside the test split are for validation.
      size: (h, w) to resize to, bilinearly; shrinking averages over all pixels.

    Raises:
      ValueError: name or split is unknown, the seed negative or the size not positive.

    >>> load("digits", "test").images.shape
    (364, 8, 8, 1)
    """
    data_set = _find(name)
    if split not in _SPLITS:
        msg = f"There is no split {split!r}; the splits are {', '.join(_SPLITS)}."
        raise ValueError(msg)
    if seed < 0:
        msg = f"seed must be 0 or more; it is {seed}."
        raise ValueError(msg)
    if size is not None and (len(size) != 2 or min(size) < 1):
        msg = f"size must be (height, width), both at least 1; it is {size}."
        raise ValueError(msg)
    data = data_set.load(split, data_dir=data_dir, seed=seed)
    return data if size is None else Data(_resize(data.images, size), data.labels)


def preprocess(name: str) -> Preprocess:
    """The standardisation of a data set's pixels.

    >>> preprocess("digits").mean
    (0.30546,)
    """
    return _find(name).preprocess


def num_classes(name: str) -> int:
    """How many classes a data set has.

    >>> num_classes("digits")
    10
    """
    return _find(name).num_classes


def _find(name):
    if name not in _BY_NAME:
        msg = f"There is no data set {name!r}; there are: {', '.join(names())}."
        raise ValueError(msg)
    return _BY_NAME[name]


def _resize(images, size):
    # Pillow rather than jax.image: integer arithmetic, the same on every machine.
    from PIL import Image

    def resize_plane(plane):
        shape = (size[1], size[0])
        return np.asarray(
            Image.fromarray(plane).resize(shape, Image.Resampling.BILINEAR)
        )

    n, _, _, c = images.shape
    resized = np.empty((n, *size, c), np.uint8)
    for i in range(n):
        for j in range(c):
            # Pillow wants rows without gaps between pixels.
            resized[i, :, :, j] = resize_plane(np.ascontiguousarray(images[i, :, :, j]))
    return resized
