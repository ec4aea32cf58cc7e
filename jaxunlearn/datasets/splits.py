"""Which samples are for training, which for validation, which for the test."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jaxunlearn.checks import LARGEST, as_integer, short

SPLITS = ("train", "validation", "test")

_CALLED = {
    "train": ("train",),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}


class Samples(NamedTuple):
    """Images that are yet to be read.

    Attributes:
      shape: (h, w, c) of each image.
      read: the encoded images of these numbers.
      decode: one of them, as uint8 `[h, w, c]`.
      describe: what an image of this number is called.
    """

    shape: tuple[int, ...]
    read: Callable[[range], Sequence[Any]]
    decode: Callable[[Any], UInt8[np.ndarray, "h w c"]]
    describe: Callable[[int], str]


class Source(NamedTuple):
    """Labelled images somewhere.

    Attributes:
      where: begins sentences about it.
      parts: what it calls each split that it has; empty where it is not split.
      labels: those of all samples of a part; of "" where there are none.
      samples: of a part, those of some numbers, resized to a size if there is one.
      num_classes: how many classes there are.
      class_names: what they are called, in the order of their numbers, if anything.
      left_out: what looks as if it could be part of it, and is not read.
    """

    where: str
    parts: dict[str, str]
    labels: Callable[[str], Int[np.ndarray, " n"]]
    samples: Callable[[str, Int[np.ndarray, " m"], Any], Samples]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()


def check_split(split: Any, seed: Any, size: Any) -> None:
    """Refuse what no source can answer."""
    if not isinstance(split, str) or split not in SPLITS:
        msg = f"There is no split {short(split)}; the splits are {', '.join(SPLITS)}."
        raise ValueError(msg)
    if as_integer(seed) is None:
        msg = f"seed must be an integer; it is {short(seed)}."
        raise TypeError(msg)
    if seed < 0:
        msg = f"seed must be 0 or more; it is {short(seed)}."
        raise ValueError(msg)
    if size is None:
        return
    sides = list(map(as_integer, size)) if isinstance(size, tuple | list) else []
    if len(sides) != 2 or not all(side and 1 <= side <= LARGEST for side in sides):
        msg = f"size must be (height, width), both at least 1; it is {short(size)}."
        raise ValueError(msg)


def splits_among(
    names: Iterable[str], where: str, part_of: Callable[[str], str] = str
) -> dict[str, str]:
    """`{split: its name}` of those names whose part is called as a split is."""
    found: dict[str, str] = {}
    for name in names:
        for split, called in _CALLED.items():
            if part_of(name).lower() not in called:
                continue
            if split in found:
                msg = (
                    f"{where} has {found[split]} and {name}, and either may be what is "
                    f"for {split}: leave one of them out."
                )
                raise ValueError(msg)
            found[split] = name
    return found


def select(
    source: Source, split: str, seed: int
) -> tuple[str, Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """The part that holds a split, and the numbers and labels of its samples there.

    A source that is not split gives every fifth sample of a class to the test. One
    without `test` has its `validation` in its place. Without another `validation`, a
    tenth of each class of what is for training is drawn for it.
    """
    where, parts = source.where, dict(source.parts)
    if source.left_out:
        msg = f"{where} is read without {', '.join(source.left_out)}."
        warnings.warn(msg, stacklevel=3)
    if parts and "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
        if split == "test":
            msg = (
                f"{where} has no test split: {parts['test']} is used as test, and a "
                "tenth of train for validation."
            )
            warnings.warn(msg, stacklevel=3)
    needed = split if split == "test" else "train"
    if parts and needed not in parts:
        msg = (
            f"{where} has {' and '.join(parts.values())}, but no "
            f"{' or '.join(_CALLED[needed])}, from which {split} is taken."
        )
        raise ValueError(msg)
    part = parts.get(split, parts.get("train", ""))
    labels = source.labels(part)
    _check_classes(source, part, labels)
    whole = split in parts and (split != "train" or "validation" in parts)
    if whole:
        return part, np.arange(len(labels)), labels
    test = np.zeros(len(labels), bool) if parts else every_fifth(labels)
    chosen = np.flatnonzero(members(split, labels, seed, test))
    return part, chosen, labels[chosen]


def _check_classes(source, part, labels):
    """Warn of classes without samples for training; refuse those of a single one."""
    if part not in ("", source.parts.get("train")):
        return
    present, counts = np.unique(labels, return_counts=True)
    held = set(present.tolist())
    lacking = itertools.islice(
        (c for c in range(source.num_classes) if c not in held), 12
    )
    if names := _named(source, lacking):
        msg = f"{source.where} has no sample for training of the classes {names}."
        warnings.warn(msg, stacklevel=4)
    alone = present[counts == 1].tolist()
    if alone and not part:
        msg = (
            f"{source.where} is not split, and every fifth sample of a class is for "
            f"the test, the first one too: of {_named(source, alone)} there is one "
            "alone. Give it a second, or split the samples into train and test."
        )
        raise ValueError(msg)


def _named(source, classes):
    names = source.class_names
    return ", ".join(repr(names[c]) if names else str(c) for c in classes)[:300]


def members(
    split: str,
    labels: Int[np.ndarray, " n"],
    seed: int,
    test: Bool[np.ndarray, " n"],
) -> Bool[np.ndarray, " n"]:
    """Which samples a split has; a tenth of each class outside `test` is validation."""
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
