"""One field of a method, chosen on validation data by one rule for every method."""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from jaxunlearn.methods.rules import TOLERANCE as TOLERANCE
from jaxunlearn.methods.rules import ClassRule, Rule, Trial
from jaxunlearn.methods.rules import trial_records as trial_records
from jaxunlearn.progress import Report
from jaxunlearn.tasks import Data, split_by_class
from jaxunlearn.tasks.classes import elements

# How often a grid goes on beyond either end.
DECADES = 2


def check_grid(
    method: Any,
    grid: Iterable[float] | None,
    validation: Data | None,
    sets: Sequence[tuple[int, ...]],
) -> list[Any]:
    """The method at every value of the grid, in order; nothing where it tunes nothing.

    A method whose window is narrower than usual grids says in `finer` into how many
    steps, of equal ratio, each interval is cut. Validation data must hold every
    forgotten class and others.
    """
    tuned = getattr(method, "tuned", None)
    values = [] if grid is None else elements(grid, "grid", "numbers")
    if not values or tuned is None:
        return []
    values = [v.tolist() if isinstance(v, np.generic | Array) else v for v in values]
    candidates = [dataclasses.replace(method, **{tuned: value}) for value in values]
    candidates.sort(key=operator.attrgetter(tuned))
    if (pieces := getattr(method, "finer", 1)) > 1:
        values = _cut([getattr(one, tuned) for one in candidates], pieces)
        candidates = [dataclasses.replace(method, **{tuned: value}) for value in values]
    if validation is None:
        msg = "A grid is judged on validation data: pass validation=..., or no grid."
        raise ValueError(msg)
    for classes in sets:
        if classes:
            split_by_class(validation, classes)
    return candidates


def _cut(values: Sequence[float], pieces: int) -> list[float]:
    """Values and, between each two, those that go from one to the other evenly."""
    between = [
        float(f"{low * (high / low) ** (i / pieces):.4g}")
        for low, high in itertools.pairwise(values)
        for i in range(1, pieces)
    ]
    return sorted({*values, *between})


class Choice(NamedTuple):
    """What a grid led to.

    Attributes:
      method: the candidate that was chosen.
      trials: of all values tried, in order, but those that diverged.
      at_edge: whether the chosen value is an end of all that were tried, near which it
        makes a difference: a better one may lie beyond it.
    """

    method: Any
    trials: tuple[Any, ...]
    at_edge: bool


def choose(
    candidates: Sequence[Any],
    judge: Callable[[Any], tuple[float, ...]],
    report: Report,
    rule: Rule | None = None,
) -> Choice:
    """The candidate of the smallest value that is nearly the best, and all trials.

    What is best the rule says; without one, for classes, the smallest whose
    `Acc_r - Acc_f` is within a point of the best: a smaller learning rate moves the
    retained logits less at equal forgetting. (The largest, where a method says in
    `gentlest = max` that larger values change less.) `judge` unlearns with a candidate
    and returns the accuracies that the rule asks for, or says that a loss is not
    finite: then that value is no candidate.

    A grid of three values or more whose end is chosen goes on beyond it, by a decade
    that repeats the spacing of its last one, until the choice lies inside; twice at
    most on either side, not where the method refuses a value, and not where all values
    of the last decade came to the same accuracies. So does one of which every value
    diverged, towards gentler ones.
    """
    tuned, rule = candidates[0].tuned, rule or ClassRule((), None)
    gentlest = getattr(candidates[0], "gentlest", min)
    gentler = 0.1 if gentlest is min else 10.0
    tried: dict[float, Any] = {}
    wanted = {getattr(candidate, tuned): candidate for candidate in candidates}
    room = dict.fromkeys((0.1, 10.0), DECADES if len(wanted) > 2 else 0)
    while wanted:
        total = len(tried) + len(wanted)
        for value in list(wanted):
            report("rates", len(tried), total)
            tried[value] = _trial(rule, wanted.pop(value), value, judge)
        report("rates", total, total)
        finite = [trial for trial in tried.values() if trial]
        if not finite and room[gentler]:
            room[gentler] -= 1
            wanted |= _beyond(candidates[0], tried, gentler)
            if wanted:
                continue
        if not finite:
            msg = f"No {tuned.replace('_', ' ')} of {sorted(tried)} keeps all losses finite: extend the grid downwards."  # noqa: E501
            raise FloatingPointError(msg)
        end = rule.end(gentlest, finite)
        open_ends = [factor for factor in room if _is_open(rule, tried, end, factor)]
        for factor in open_ends:
            if room[factor]:
                room[factor] -= 1
                wanted |= _beyond(candidates[0], tried, factor)
    trials = tuple(tried[value] for value in sorted(tried) if tried[value])
    best = rule.best(gentlest, finite)
    chosen = dataclasses.replace(candidates[0], **{tuned: best.value})
    return Choice(chosen, trials, bool(open_ends))


def _trial(rule: Rule, candidate, value: float, judge) -> Any:
    try:
        return rule.trial(value, *judge(candidate))
    except FloatingPointError:
        return None


def _last_decade(tried: Mapping[float, Any], factor: float) -> dict[float, Any]:
    """What was tried within a decade of the lower end, or of the upper one."""
    end = min(tried) if factor < 1 else max(tried)
    # A little less than a decade, so that no value is met again.
    near = {v for v in tried if v / end > 0 and abs(np.log10(v / end)) < 1 - 1e-6}
    return {value: tried[value] for value in sorted(near)}


def _is_open(rule: Rule, tried, end: Trial | Any, factor: float) -> bool:
    """Whether this is an end, near which the value makes a difference."""
    decade = _last_decade(tried, factor)
    outer = (min, max)[factor > 1](tried)
    if end is None or len(tried) == 1 or end.value != outer:
        return False
    return len(decade) == 1 or len({*map(rule.outcome, decade.values())}) > 1


def _beyond(method: Any, tried: Any, factor: float) -> dict[float, Any]:
    """The method at the values of the last decade times `factor`, if it takes them."""
    methods = {}
    for value in (float(f"{v * factor:.12g}") for v in _last_decade(tried, factor)):
        try:
            methods[value] = dataclasses.replace(method, **{method.tuned: value})
        except ValueError:
            continue
    return methods
