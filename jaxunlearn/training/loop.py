"""The steps of a training, from any of its states to its end."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jaxunlearn import parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.loop import (
    chunk_length,
    gather_minibatches,
    minibatches,
    own_copy,
    run_steps,
)
from jaxunlearn.descent.step import check_losses, check_parameters
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.tasks import Data
from jaxunlearn.training.recipe import Recipe
from jaxunlearn.training.reports import Reports
from jaxunlearn.training.step import TrainingStep

_log = logging.getLogger("jaxunlearn.training")


class LoopState(NamedTuple):
    """How far a training has come: arrays, then numbers, and all that it needs."""

    carry: tuple[Classifier, PyTree]  # with the momentum
    best: Classifier | None  # of the best epoch; None if the recipe has no patience
    step: int = 0  # how many are done
    accuracy: float = -1.0  # of `best` on validation data, in percent
    epochs_since: int = 0  # how many epochs ago that was
    finished: bool = False

    def after_epoch(self, accuracy: float, patience: int) -> "LoopState":
        """With the best epoch up to date; finished if it is `patience` epochs ago."""
        if accuracy > self.accuracy:
            best = own_copy(self.carry[0])
            return self._replace(best=best, accuracy=accuracy, epochs_since=0)
        since = self.epochs_since + 1
        finished = self.finished or since >= patience
        return self._replace(epochs_since=since, finished=finished)

    def result(self) -> Classifier:
        """The classifier, as of the best epoch where there is one."""
        return self.carry[0] if self.best is None else self.best


def run_epochs(
    state: LoopState,
    step: TrainingStep,
    constants: PyTree,
    recipe: Recipe,
    train: Data,
    validation: Data | None,
    reports: Reports,
    *,
    order_key: Array,
    every: int | None,
    save: Callable[[LoopState], Any] | None,
) -> LoopState:
    """Train from a state to the end.

    After each epoch the accuracy on validation data is taken, if there are any. After
    `every` so many steps, and at the end, `save` takes the state, whose arrays live
    until it returns.
    """
    size = min(recipe.batch_size, len(train))
    steps, total = len(train) // size, recipe.steps(len(train))
    every = every or total
    advice = (
        f"The training has diverged. Lower the learning rate ({recipe.learning_rate}), "
        f"or lengthen the warm-up ({recipe.warmup_epochs} epochs)."
    )

    def on_chunk(stop, carry, losses):
        del carry
        check_losses(losses, stop - len(losses), advice)
        reports.losses(stop, losses)

    feed = _feed(recipe, train, size, step.mesh, order_key)
    # Where loops are slow, an interruption waits for one step alone.
    slow = parallel.loops_are_slow()
    chunk = 1 if slow else chunk_length(size * np.asarray(train.images[0]).nbytes)
    carry = own_copy(parallel.place_whole(state.carry, step.mesh))
    while not state.finished:
        first = state.step
        stop = min(total, *(first - first % n + n for n in (steps, every)))
        carry, _ = run_steps(
            *(step, carry, constants),
            start=first,
            steps=stop - first,
            feed=feed,
            chunk=chunk,
            ahead=True,
            donate=True,
            on_chunk=on_chunk,
        )
        state = state._replace(carry=carry, step=stop, finished=stop == total)
        if stop % steps == 0:
            accuracy = None
            if validation is not None:
                judged = evaluate(carry[0], validation, (), mesh=step.mesh)
                accuracy = judged.retained_weighted
            reports.epoch(stop // steps, accuracy)
            if recipe.patience is not None:
                state = state.after_epoch(accuracy, recipe.patience)
        if state.finished or stop % every == 0:
            check_parameters(carry[0], advice)
            if save is not None:
                save(state)
    if state.step < total:
        _log.info(
            "stopped after %d epochs without a better validation accuracy than %.2f %%",
            *(state.epochs_since, state.accuracy),
        )
    return state


def _feed(recipe, train, size, mesh, key):
    """Images and labels of each step, and its learning rate."""
    order = minibatches(key, len(train), size, drop_remainder=True)
    rates = recipe.learning_rates(len(train) // size)
    # Each of several devices is sent its share of every minibatch, and holds no others.
    put = jax.device_put if mesh is None else jax.device_get
    arrays = put((train.images, train.labels))

    def feed(first, stop):
        # In a chunk, what lies behind the last step is not used.
        indices = np.minimum(np.arange(first, stop), len(rates) - 1)
        return gather_minibatches(arrays, order, mesh, first, stop), rates[indices]

    return feed
