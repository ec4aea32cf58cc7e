"""Indices of samples: read from a file, drawn at random, and told apart by a hash."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxunlearn.checks import short
from jaxunlearn.serialization import atomic_write
from jaxunlearn.tasks.hashes import digest as digest
from jaxunlearn.tasks.hashes import lines

Indices = Int[np.ndarray, " n"]

_FORMS = (
    "a text of one index a line (or parted by commas), a .json file with a list, or a "
    ".npy file with an array [n]"
)


def write_indices(path: Path, indices: Sequence[int] | Indices) -> None:
    """In ascending order, one a line."""
    with atomic_write(path) as temporary:
        temporary.write_text(lines(indices), encoding="ascii")


def read_indices(path: Path, count: int, flag: str = "--forget-indices") -> Indices:
    """Indices from a file, in ascending order: some of 0 to `count - 1`, each once.

    Raises:
      ValueError: there is no such file, or it holds anything else.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        msg = f"{path} {what}: {flag} takes {_FORMS}."
        raise ValueError(msg)
    read = {".npy": _of_npy, ".json": _of_json}.get(path.suffix.lower(), _of_text)
    try:
        found = read(path)
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror or error})."
        raise ValueError(msg) from error
    except ValueError as error:
        msg = f"{path} holds no indices. {error} {flag} takes {_FORMS}."
        raise ValueError(msg) from error
    return checked(found, count, str(path))


def checked(indices: Sequence[int] | Indices, count: int, what: str) -> Indices:
    """In ascending order, after refusing what no split of so many samples has."""
    found = list(map(int, indices))
    if not found:
        msg = f"{what} names no sample: give at least one index."
        raise ValueError(msg)
    beyond = [i for i in found if not 0 <= i < count]
    if beyond:
        number = beyond[0]
        msg = (
            f"{what} names sample {short(number)}, which does not exist: those of the "
            f"training split are 0 to {count - 1}, without validation samples."
        )
        raise ValueError(msg)
    unique, times = np.unique(np.asarray(found, np.int64), return_counts=True)
    if times.max() > 1:
        msg = f"{what} names sample {unique[times.argmax()]} {times.max()} times: name each once."  # noqa: E501
        raise ValueError(msg)
    if len(unique) == count:
        msg = (
            f"{what} names all {count} training samples: leave at least one to retain."  # noqa: E501
        )
        raise ValueError(msg)
    return unique


def _of_npy(path: Path) -> list[int]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        msg = "It is no array of numbers."
        raise ValueError(msg) from error
    if not isinstance(array, np.ndarray) or array.ndim != 1:
        msg = f"Its array has shape {getattr(array, 'shape', None)}."
        raise ValueError(msg)
    if array.dtype.kind not in "iu":
        hint = " np.flatnonzero makes indices of a mask." * (array.dtype.kind == "b")
        msg = f"Its array is of {array.dtype}, and indices are integers.{hint}"
        raise ValueError(msg)
    return array.tolist()


def _of_json(path: Path) -> list[int]:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        msg = f"It is no JSON ({str(error) or type(error).__name__})."
        raise ValueError(msg) from error
    if not isinstance(values, list):
        msg = f"Its JSON is {short(values)}, no list."
        raise ValueError(msg)
    return [_integer(value, f"entry {n}") for n, value in enumerate(values)]


def _of_text(path: Path) -> list[int]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        msg = "It is no text."
        raise ValueError(msg) from error
    words = (
        (number, word)
        for number, line in enumerate(lines, start=1)
        for word in re.split(r"[\s,;]+", line.partition("#")[0].strip())
        if word
    )
    return [_integer(word, f"line {number}") for number, word in words]


def _integer(value: Any, where: str) -> int:
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        msg = f"{where.capitalize()} is {short(value)}, and indices are integers."
        raise ValueError(msg)
    return int(text)


def how_many(word: str, count: int, flag: str = "--forget-random") -> int:
    """How many of `count` samples are meant: a number, or a share.

    >>> how_many("100", 1000), how_many("0.1", 1000), how_many("2.5%", 1000)
    (100, 100, 25)
    """
    kind, value = parse_amount(word, flag)
    number = round(value * count) if kind == "share" else int(value)
    if number < 1:
        msg = f"{flag} {word} of {count} training samples is none: ask for more."
        raise ValueError(msg)
    if number >= count:
        msg = f"{flag} {word} asks for {number} of {count} training samples: leave at least one to retain."  # noqa: E501
        raise ValueError(msg)
    return number


def parse_amount(word: str, flag: str = "--forget-random") -> tuple[str, float]:
    """A number of samples or a share of all, without knowing how many there are."""
    text = word.replace(" ", "")
    if re.fullmatch(r"[0-9]{1,18}", text):
        if int(text) == 0:
            msg = f"{flag} must ask for at least one sample; it is {word}."
            raise ValueError(msg)
        return "number", float(text)
    percent = text.endswith("%")
    if re.fullmatch(r"[0-9]*\.?[0-9]+", text.rstrip("%")) and text.count("%") < 2:
        share = float(text.rstrip("%")) / (100 if percent else 1)
        if percent and not 0 < share < 1:
            msg = f"{flag} must lie between 0% and 100%, both excluded; it is {word}."
            raise ValueError(msg)
        if 0 < share < 1:
            return "share", share
        if share:
            msg = (
                f"{flag} {word} has two readings: write {int(share)} for so many "
                "samples, or a share below 1, such as 0.1 or 10%."
            )
            raise ValueError(msg)
    msg = (
        f"{flag} must be a number of samples, such as 100, or a share of them, such as "
        f"0.1 or 10%; it is {short(word)}."
    )
    raise ValueError(msg)


def drawn(number: int, count: int, seed: int) -> Indices:
    """So many of `count` samples, in ascending order, without repetition."""
    chosen = np.random.default_rng(seed).choice(count, number, replace=False)
    return np.sort(chosen)
