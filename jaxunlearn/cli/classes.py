"""Classes that flags name, by number or by name, alone or in sets."""

from collections.abc import Sequence
from pathlib import Path

from jaxunlearn import datasets
from jaxunlearn.tasks import check_classes, class_numbers


def class_names(dataset: str, data_dir: Path | None) -> tuple[str, ...] | None:
    """What a data set's classes are called, where that is more than their numbers."""
    names = tuple(datasets.class_names(dataset, data_dir=data_dir))
    return None if names == tuple(map(str, range(len(names)))) else names


def parted_numbers(
    words: Sequence[int | str], names: Sequence[str] | None, count: int, name: str
) -> tuple[int, ...]:
    """Numbers of the classes that a flag names.

    Commas part classes as blanks do, but within the name of one.
    """
    parted = ([w] if w in (names or ()) else str(w).split(",") for w in words)
    parts = [part.strip() for some in parted for part in map(str, some)]
    numbers = class_numbers(list(filter(None, parts)), names, count, name=name)
    if not numbers:
        msg = f"{name} names no class: give at least one, as in {name} 3."
        raise ValueError(msg)
    return numbers


def forget_numbers(
    words: Sequence[int | str], names: Sequence[str] | None, num_classes: int
) -> tuple[int, ...]:
    """Numbers of the classes that --forget names; neither none nor all of them."""
    numbers = parted_numbers(words, names, num_classes, "--forget")
    return check_classes(numbers, num_classes, name="--forget")


def forget_sets(
    words: Sequence[str], names: Sequence[str] | None, num_classes: int
) -> str | list[tuple[int, ...]]:
    """Of --forget "each", or a set of classes for each word."""
    if tuple(words) == ("each",):
        return "each"
    if "each" in words:
        msg = f"--forget takes each by itself, or sets of classes; it is {' '.join(words)!r}."  # noqa: E501
        raise ValueError(msg)
    return [forget_numbers([word], names, num_classes) for word in words]
