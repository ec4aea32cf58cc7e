"""Which samples are for training, which for validation, which for the test."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

SPLITS = ("train", "validation", "test")


class Samples(NamedTuple):
    """One split, whose images are yet to be read.

    Attributes:
      labels: `[n]`.
      shape: (h, w, c) of each image.
      batches: the images in the order of the labels, uint8 `[b, h, w, c]` at a time.
    """

    labels: Int[np.ndarray, " n"]
    shape: tuple[int, ...]
    batches: Iterator[UInt8[np.ndarray, "b h w c"]]


class Source:
    """Labelled images somewhere."""

    def samples(self, split: str, seed: int, size: tuple[int, int] | None) -> Samples:
        """One split, resized to `size` if there is one."""
        raise NotImplementedError

    def class_names(self) -> list[str]:
        """What the classes are called, in the order of their numbers."""
        raise NotImplementedError

    def num_classes(self) -> int:
        """How many classes there are; no image is read."""
        return len(self.class_names())


def check_split(split: str, seed: int, size: tuple[int, int] | None) -> None:
    """Refuse what no source can answer."""
    if split not in SPLITS:
        msg = f"There is no split {split!r}; the splits are {', '.join(SPLITS)}."
        raise ValueError(msg)
    if seed < 0:
        msg = f"seed must be 0 or more; it is {seed}."
        raise ValueError(msg)
    if size is not None and (len(size) != 2 or min(size) < 1):
        msg = f"size must be (height, width), both at least 1; it is {size}."
        raise ValueError(msg)


def members(
    split: str,
    labels: Int[np.ndarray, " n"],
    seed: int,
    test: Bool[np.ndarray, " n"] | None = None,
) -> Bool[np.ndarray, " n"]:
    """Which samples a split has; a tenth of each class outside `test` is validation."""
    test = np.zeros(len(labels), bool) if test is None else test
    generator = np.random.default_rng(seed)
    validation = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        drawn = generator.permutation(np.flatnonzero((labels == c) & ~test))
        validation[drawn[: len(drawn) // 10]] = True
    train = ~test & ~validation
    return {"train": train, "validation": validation, "test": test}[split]


def every_fifth(labels: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """The first, sixth, eleventh ... sample of each class."""
    chosen = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        chosen[np.flatnonzero(labels == c)[::5]] = True
    return chosen
