"""How many directions to keep: the four rules, of which a caller gives one."""

import dataclasses
import numbers
from typing import Any

import numpy as np

from jaxunlearn.checks import short


@dataclasses.dataclass(frozen=True)
class RankRule:
    """One of `energy`, `rank`, `protected_fraction` and `rtol`, with its value."""

    name: str
    value: Any

    def rank(self, spectrum: np.ndarray, resolution: float) -> int:
        """How many of all `d` eigenvalues (float64, descending, none negative) to keep.

        `energy` takes for zero what is at most `resolution` times the largest.
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
        # Four units in the last place for each term: shares are sums of rounded terms.
        noise = 4 * d * np.finfo(np.float64).eps
        reached = np.cumsum(resolved) / np.sum(resolved) >= self.value - noise
        return int(np.argmax(reached)) + 1

    def upper_bound(self, d: int) -> int:
        """The largest rank in `d` dimensions that is possible before data are seen."""
        if self.name == "rank":
            return min(int(self.value), d)
        if self.name == "protected_fraction":
            return round(float(self.value) * d)
        return d


# What kind of number each rule takes, in words, and which of them.
_VALUES = {
    "energy": (numbers.Real, lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "rank": (numbers.Integral, lambda x: x >= 0, "at least 0"),
    "protected_fraction": (numbers.Real, lambda x: 0 <= x <= 1, "from 0 to 1"),
    "rtol": (numbers.Real, lambda x: 0 < x < 1, "between 0 and 1, exclusive"),
}


def choose_rule(energy: Any, rank: Any, protected_fraction: Any, rtol: Any) -> RankRule:
    """The one rule that is given, its value checked."""
    values = zip(_VALUES, (energy, rank, protected_fraction, rtol), strict=True)
    given = {name: value for name, value in values if value is not None}
    if len(given) != 1:
        seen = " and ".join(given) or "none"
        msg = f"Give exactly one of energy, rank, protected_fraction and rtol; given: {seen}."  # noqa: E501
        raise ValueError(msg)
    [(name, value)] = given.items()
    kind, allows, described = _VALUES[name]
    if isinstance(value, bool) or not isinstance(value, kind):
        number = "an integer" if kind is numbers.Integral else "a number"
        msg = f"{name} must be {number}; it is {short(value)}."
        raise TypeError(msg)
    if not allows(value):
        msg = f"{name} must be {described}; it is {short(value)}."
        raise ValueError(msg)
    return RankRule(name, value)
