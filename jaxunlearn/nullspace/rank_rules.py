"""How many directions to keep: the four rules, of which a caller gives one."""

import dataclasses
import numbers
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rule:
    """One of `energy`, `rank`, `protected_fraction` and `rtol`, with its value."""

    name: str
    value: Any

    def rank(self, spectrum: np.ndarray, resolution: float) -> int:
        """How many of these eigenvalues (float64, descending, none negative) to keep.

        Args:
          spectrum: all `d` of them.
          resolution: `energy` takes for zero what is at most this times the largest.
        """
        d, largest = len(spectrum), spectrum[0]
        if self.name in ("rank", "protected_fraction"):
            return self.upper_bound(d)
        if largest == 0:
            return 0
        if self.name == "rtol":
            return int(np.count_nonzero(spectrum > self.value**2 * largest))
        resolved = np.where(spectrum > resolution * largest, spectrum, 0)
        if self.value == 1:
            return int(np.count_nonzero(resolved))
        return int(np.argmax(self._reached(resolved, np.sum(resolved), d))) + 1

    def rank_of_leading(
        self, leading: np.ndarray, rest: float, d: int, resolution: float
    ) -> int | None:
        """The same from the leading eigenvalues alone, or None if these are too few.

        Args:
          leading: the largest eigenvalues, float64, descending, at least one.
          rest: what all others add up to. None of them is larger than that. Where
            some of them are not resolved, `energy` counts them nevertheless, so that
            it may keep a little more than `rank` does, and never less.
          d: how many eigenvalues there are.
          resolution: as for `rank`.
        """
        found, largest = len(leading), leading[0]
        if self.name in ("rank", "protected_fraction"):
            rank = self.upper_bound(d)
            return rank if rank <= found else None
        if largest <= 0:
            return 0
        threshold = largest * (self.value**2 if self.name == "rtol" else resolution)
        above = int(np.count_nonzero(leading > threshold))
        # All of them are known that are above the threshold.
        complete = above < found or found == d or rest <= threshold
        if self.name == "rtol" or self.value == 1:
            return above if complete else None
        leading = leading[:above]
        total = np.sum(leading) + (0 if complete else rest)
        reached = self._reached(leading, total, d)
        return int(np.argmax(reached)) + 1 if reached.any() else None

    def upper_bound(self, d: int) -> int:
        """The largest rank in `d` dimensions that is possible before data are seen."""
        if self.name == "rank":
            return min(int(self.value), d)
        if self.name == "protected_fraction":
            return round(float(self.value) * d)
        return d

    def _reached(self, spectrum: np.ndarray, total: float, d: int) -> np.ndarray:
        """Whether the first 1, 2, ... eigenvalues reach the energy."""
        # Four units in the last place for each term: shares are sums of rounded terms.
        noise = 4 * d * np.finfo(np.float64).eps
        return np.cumsum(spectrum) / total >= self.value - noise


def choose_rule(energy: Any, rank: Any, protected_fraction: Any, rtol: Any) -> Rule:
    """The one rule that is given, its value checked.

    Raises:
      TypeError: `rank` is no integer, or another value no number.
      ValueError: none or several are given, or the value is out of range.
    """
    values = {
        "energy": energy,
        "rank": rank,
        "protected_fraction": protected_fraction,
        "rtol": rtol,
    }
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) != 1:
        seen = " and ".join(given) or "none"
        msg = f"Give exactly one of energy, rank, protected_fraction and rtol; given: {seen}."  # noqa: E501
        raise ValueError(msg)
    [(name, value)] = given.items()
    kind, described = (
        (numbers.Integral, "an integer")
        if name == "rank"
        else (numbers.Real, "a number")
    )
    if isinstance(value, bool) or not isinstance(value, kind):
        msg = f"{name} must be {described}; it is {value!r}."
        raise TypeError(msg)
    number = float(value)
    allowed, described = {
        "energy": (0 < number <= 1, "above 0 and at most 1"),
        "rank": (number >= 0, "at least 0"),
        "protected_fraction": (0 <= number <= 1, "from 0 to 1"),
        "rtol": (0 < number < 1, "between 0 and 1, exclusive"),
    }[name]
    if not allowed:
        msg = f"{name} must be {described}; it is {value}."
        raise ValueError(msg)
    return Rule(name, value)
