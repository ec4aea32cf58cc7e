"""The learning rate, chosen on validation data by one rule for every method."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.methods.descent import Descent, Setting
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.tasks import Data, Task

# Points of Acc_r - Acc_f within which a smaller rate is preferred.
TOLERANCE = 1.0


class Trial(NamedTuple):
    """One rate of the grid, and the validation accuracies (%) that it led to."""

    learning_rate: float
    retained: float
    forgotten: float


def choose_learning_rate(
    method: Descent,
    classifier: Classifier,
    task: Task,
    setting: Setting,
    validation: Data,
    rates: Iterable[float],
    *,
    key: Array,
    progress: Callable[[int, int], Any] | None = None,
    mesh: Mesh | None = None,
) -> tuple[float, list[Trial]]:
    """The smallest rate whose `Acc_r - Acc_f` is within a point of the grid's best.

    Both accuracies are unweighted class means on validation data. The smallest, because
    a smaller rate moves the retained logits less at equal forgetting. A rate at which
    the loss is not finite is no candidate.

    Args:
      method: whose other settings are kept.
      classifier: the original.
      task: what to forget.
      setting: `method.prepare(...)`, made once.
      validation: holds forgotten and retained classes; never the test data.
      rates: the grid.
      key: the same for every rate.
      progress: `(rates done, rates in all)`.
      mesh: as for `method`.

    Raises:
      ValueError: the grid is empty.
      FloatingPointError: no rate leads to a finite loss.
    """
    trials: list[Trial] = []
    rates = sorted(rates)
    if not rates:
        msg = "The grid of learning rates is empty."
        raise ValueError(msg)
    for number, rate in enumerate(rates, start=1):
        candidate = method.replace(learning_rate=rate)
        try:
            result = candidate.descend(classifier, task, setting, key=key, mesh=mesh)
            judged = (result.classifier, validation, task.forget_classes)
            found = evaluate(*judged, mesh=mesh)
        except FloatingPointError:
            continue
        finally:
            if progress is not None:
                progress(number, len(rates))
        trials.append(Trial(rate, found.retained, found.forgotten))
    if not trials:
        msg = f"No learning rate of {rates} leads to a finite loss: extend the grid downwards."  # noqa: E501
        raise FloatingPointError(msg)
    return smallest_good_rate(trials), trials


def smallest_good_rate(trials: Sequence[Trial]) -> float:
    """The first rate whose `Acc_r - Acc_f` is within a point of the best.

    Args:
      trials: at least one, in the order of their rates.

    >>> smallest_good_rate([Trial(0.1, 97.5, 4.0), Trial(1.0, 98.0, 4.0)])
    0.1
    """
    best = max(t.retained - t.forgotten for t in trials)
    good = (t for t in trials if t.retained - t.forgotten >= best - TOLERANCE)
    return next(good).learning_rate
