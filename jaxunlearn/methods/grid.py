"""One field of a method, chosen on validation data by one rule for every method."""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from jaxunlearn.progress import Report
from jaxunlearn.tasks import Data, split_by_class
from jaxunlearn.tasks.classes import elements

# Points of Acc_r - Acc_f within which a smaller value is preferred.
TOLERANCE = 1.0


class Trial(NamedTuple):
    """One value of the grid, and the validation accuracies (%) that it led to."""

    value: float
    retained: float
    forgotten: float


def trial_records(
    tuned: Mapping[str, float], trials: Sequence[Trial]
) -> list[dict[str, float]]:
    """Trials as dictionaries, the value under the tuned field's name."""
    names = (*tuned, "retained", "forgotten")
    return [dict(zip(names, trial, strict=True)) for trial in trials]


def check_grid(
    method: Any,
    grid: Iterable[float] | None,
    validation: Data | None,
    sets: Sequence[tuple[int, ...]],
) -> list[Any]:
    """The method at every value of the grid, in order; nothing where it tunes nothing.

    Validation data must hold every forgotten class and others.
    """
    tuned = getattr(method, "tuned", None)
    values = [] if grid is None else elements(grid, "grid", "numbers")
    if not values or tuned is None:
        return []
    values = [v.tolist() if isinstance(v, np.generic | Array) else v for v in values]
    candidates = [dataclasses.replace(method, **{tuned: value}) for value in values]
    candidates.sort(key=operator.attrgetter(tuned))
    if validation is None:
        msg = "A grid is judged on validation data: pass validation=..., or no grid."
        raise ValueError(msg)
    for classes in sets:
        if classes:
            split_by_class(validation, classes)
    return candidates


def choose(
    candidates: Sequence[Any],
    judge: Callable[[Any], tuple[float, float]],
    report: Report,
) -> tuple[Any, tuple[Trial, ...]]:
    """The candidate of the smallest value that is nearly the best, and all trials.

    The smallest whose `Acc_r - Acc_f` is within a point of the best: a smaller learning
    rate moves the retained logits less at equal forgetting. `judge` unlearns with a
    candidate and returns both accuracies, or says that a loss is not finite: then that
    value is no candidate.
    """
    tuned = candidates[0].tuned
    trials: dict[int, Trial] = {}
    for number, candidate in enumerate(candidates):
        report("rates", number, len(candidates))
        try:
            accuracies = judge(candidate)
        except FloatingPointError:
            continue
        trials[number] = Trial(getattr(candidate, tuned), *accuracies)
    report("rates", len(candidates), len(candidates))
    if not trials:
        values = [getattr(candidate, tuned) for candidate in candidates]
        msg = f"No {tuned.replace('_', ' ')} of {values} keeps all losses finite: extend the grid downwards."  # noqa: E501
        raise FloatingPointError(msg)
    gains = {number: t.retained - t.forgotten for number, t in trials.items()}
    good = (n for n, gain in gains.items() if gain >= max(gains.values()) - TOLERANCE)
    return candidates[next(good)], tuple(trials.values())
