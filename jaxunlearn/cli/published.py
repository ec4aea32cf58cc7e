"""Published comparisons: how each was made, and what it may come to when made again."""

import dataclasses
import math
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.cli.compare import Compare
from jaxunlearn.cli.comparison import COLUMNS
from jaxunlearn.cli.flags import parse
from jaxunlearn.cli.indices import digest
from jaxunlearn.cli.stored import names_in, read_stored
from jaxunlearn.tasks import Data

# What does not depend on the machine's speed, and is a value and no bound.
MEASURES = tuple(name for name in COLUMNS if name not in ("share", "anamnesis"))
# By how much a mean may differ in any case: where all seeds agree, as on an Acc_f of 0,
# their spread says nothing about other machines. In percent, and of shares.
_LEAST_PERCENT, _LEAST_SHARE = 0.5, 0.01

Interval = tuple[float, float]
Intervals = dict[str, dict[str, Interval]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A comparison of ours that is written down somewhere.

    Attributes:
      about: what it is, in a line.
      where: the page that shows it.
      command: flags of `jaxunlearn compare`.
      forgets: SHA-256 of the indices of the forgotten training samples, by what is
        forgotten; data of other indices are other data.
      minutes: about how long it takes on `hardware`, from nothing; 0 if nobody has
        measured that.
      hardware: on what its numbers were measured.
      awaits: what it needs before its numbers can be told, or "".
      versions: of the packages that made it.
      intervals: by row and measure, where a mean over the same seeds lies in 95 % of
        all cases.
      others: by row and measure, what others have published.
    """

    about: str
    where: str
    command: str
    forgets: dict[str, str] = dataclasses.field(default_factory=dict)
    minutes: float = 0.0
    hardware: str = ""
    awaits: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    intervals: Intervals = dataclasses.field(default_factory=dict)
    others: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def settings(self) -> Compare:
        """The command's settings."""
        return parse("compare", Compare, shlex.split(self.command))


class Compared(NamedTuple):
    """A number that was made again, and the stored interval."""

    row: str
    measure: str
    value: float
    interval: Interval

    @property
    def within(self) -> bool:
        """Whether it lies there."""
        low, high = self.interval
        return low <= self.value <= high


def names() -> list[str]:
    """All that there are."""
    return names_in("comparisons")


def published(name: str) -> Published:
    """The one of this name, which is one of `names()`."""
    return read_stored(Published, "comparisons", name)


def hashes(settings: Compare, train: Data) -> dict[str, str]:
    """What would be forgotten of these training samples, and the hash of indices."""
    found = {}
    for forgotten in settings.requests({"train": train}):
        classes, indices = forgotten.classes, forgotten.indices
        if indices is None:
            indices = np.flatnonzero(np.isin(train.labels, classes))
        found[",".join(map(str, classes)) or "samples"] = digest(indices)
    return found


def intervals(tables: list[Mapping[str, Any]]) -> Intervals:
    """Of the last table of a comparison's record, by row and measure.

    Of `n` training seeds with mean `m` and 95 % t-interval `m +- w`, another mean of
    `n` seeds lies in `m +- sqrt(2) w` in 95 % of all cases: both means vary. A training
    from the same seed on another machine is taken for one from another seed, as
    rounding tells them apart within a few hundred steps.
    """
    found: Intervals = {}
    for row, measures in tables[-1]["rows"].items():
        for name in MEASURES:
            measure = measures.get(name)
            if measure is None or measure["bound"] or measure["half_width"] is None:
                continue
            mean, width = measure["mean"], math.sqrt(2) * measure["half_width"]
            width = max(width, _least(name))
            found.setdefault(row, {})[name] = (mean - width, mean + width)
    return found


def compared(stored: Intervals, tables: list[Mapping[str, Any]]) -> list[Compared]:
    """Every stored number beside what it is now; what is missing is NaN."""
    rows, missing = tables[-1]["rows"], {"mean": None}
    return [
        Compared(row, name, _number(rows.get(row, {}).get(name, missing)), interval)
        for row, measures in stored.items()
        for name, interval in measures.items()
    ]


def most_outside(count: int) -> int:
    """How many of so many 95 % intervals are missed at most, in 99 of 100 cases.

    >>> most_outside(100)
    11
    """
    from scipy.stats import binom

    return int(binom.ppf(0.99, count, 0.05))


def _least(name: str) -> float:
    return _LEAST_PERCENT if "%" in COLUMNS[name].legend else _LEAST_SHARE


def _number(measure: Mapping[str, Any]) -> float:
    return math.nan if measure["mean"] is None else float(measure["mean"])
