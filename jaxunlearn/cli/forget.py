"""One method at the learning rate that validation data choose."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result
from jaxunlearn.methods import Descent
from jaxunlearn.methods.descent import Progress
from jaxunlearn.methods.learning_rates import Trial, choose_learning_rate
from jaxunlearn.tasks import Data, Task


class Forgotten(NamedTuple):
    """A method's result, its learning rate, and what each rate of the grid led to."""

    result: Result
    learning_rate: float | None
    trials: list[Trial]


def forget(
    method: Any,
    classifier: Classifier,
    task: Task,
    validation: Data,
    rates: Sequence[float],
    *,
    key: Array,
    progress: Progress,
    mesh: Mesh | None = None,
) -> Forgotten:
    """What `method(classifier, task, key=key)` does, at the best of the rates.

    Args:
      method: of `jaxunlearn.methods`. One that does not descend has no rate.
      classifier: the original.
      task: what to forget.
      validation: what rates are judged by.
      rates: the grid; where it is empty the method keeps its own rate.
      key: a `jax.random.key`.
      progress: `(stage, done, total)`.
      mesh: as for the methods.
    """
    if not isinstance(method, Descent):
        return Forgotten(method(classifier, task, key=key, mesh=mesh), None, [])
    # As in `Descent.__call__`, so that a script gets the same from the chosen rate.
    setting_key, steps_key = jax.random.split(key)
    shown = {"progress": progress, "mesh": mesh}
    setting = method.prepare(classifier, task, key=setting_key, **shown)
    trials: list[Trial] = []
    watch = Stopwatch()
    if rates:
        progress("rates", 0, len(rates))
        with watch.stage("rates"):
            rate, trials = choose_learning_rate(
                method,
                classifier,
                task,
                setting,
                validation,
                rates,
                key=steps_key,
                progress=lambda done, total: progress("rates", done, total),
                mesh=mesh,
            )
        method = method.replace(learning_rate=rate)
    result = method.descend(classifier, task, setting, key=steps_key, **shown)
    watch.add(result.trace.seconds)
    trace = dataclasses.replace(result.trace, seconds=watch.seconds)
    result = dataclasses.replace(result, trace=trace)
    return Forgotten(result, method.learning_rate, trials)


def keys(seed: int) -> tuple[Array, Array]:
    """What the original is trained from, and what every method starts from."""
    original, method = jax.random.split(jax.random.key(seed))
    return original, method
