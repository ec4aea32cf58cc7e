"""The steps of a training, from one position to its end."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxunlearn import parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.loop import own_copy, send_chunk
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.tasks import Data
from jaxunlearn.training.recipe import Recipe
from jaxunlearn.training.reports import Reports, diverged
from jaxunlearn.training.step import TrainingStep, numbers

_log = logging.getLogger("jaxunlearn.training")

# Steps in one call where loops are fast: an epoch of CIFAR at batch 512. Their images
# lie on the device next to the data set, hence the second limit.
_CHUNK = 128
_CHUNK_BYTES = 2**29


class Best(NamedTuple):
    """The best epoch so far, of a training that may stop early."""

    classifier: Classifier
    accuracy: float
    epochs_since: int

    def after(self, classifier: Classifier, accuracy: float) -> "Best":
        """The best after one more epoch."""
        if accuracy > self.accuracy:
            return Best(own_copy(classifier), accuracy, 0)
        return self._replace(epochs_since=self.epochs_since + 1)


class Position(NamedTuple):
    """How far a training has come: all that it needs to go on.

    Attributes:
      step: how many steps are done.
      carry: classifier and momentum.
      best: the best epoch, or None if the recipe has no patience.
      finished: whether it has come to its end.
    """

    step: int
    carry: tuple[Classifier, PyTree]
    best: Best | None
    finished: bool

    def tree(self) -> dict[str, Any]:
        """Its arrays, under speaking names."""
        classifier, momentum = self.carry
        found = {
            "params": classifier.params,
            "state": classifier.state,
            "momentum": momentum,
        }
        if self.best is not None:
            best = self.best.classifier
            found["best"] = {"params": best.params, "state": best.state}
        return found

    def facts(self) -> dict[str, Any]:
        """The rest of it, as plain values."""
        best = self.best and (self.best.accuracy, self.best.epochs_since)
        return {"step": self.step, "finished": self.finished, "best": best}

    def at(self, step: int, tree: dict[str, Any], facts: dict[str, Any]) -> "Position":
        """The same training at another position, from its `tree` and `facts`."""
        classifier = self.carry[0]
        best = self.best
        if best is not None:
            best = Best(best.classifier.replace(**tree["best"]), *facts["best"])
        here = classifier.replace(params=tree["params"], state=tree["state"])
        return Position(step, (here, tree["momentum"]), best, facts["finished"])

    def result(self) -> Classifier:
        """The classifier, as of the best epoch where there is one."""
        return self.carry[0] if self.best is None else self.best.classifier


class Loop:
    """Sends off one chunk of steps after the other.

    Args:
      step: what to do with a minibatch.
      recipe: how often.
      train: placed on the device once; with several, cut minibatch by minibatch.
      validation: likewise; judged after each epoch if anybody wants to know.
      reports: told of every step.
      order_key: draws the order of the samples, anew in each epoch.
      step_key: what `step` draws from.
      every: steps between two positions to save, or None.
    """

    def __init__(
        self,
        step: TrainingStep,
        recipe: Recipe,
        train: Data,
        validation: Data | None,
        reports: Reports,
        *,
        order_key: Array,
        step_key: Array,
        every: int | None,
    ):
        self._step, self._recipe, self._reports = step, recipe, reports
        self._batch_size = min(recipe.batch_size, len(train))
        self._steps = len(train) // self._batch_size
        self._every = every or self._steps * recipe.epochs
        self._rates = recipe.learning_rates(self._steps)
        self._order = functools.lru_cache(1)(
            functools.partial(_order, order_key, len(train))
        )
        self._constants = (step_key, numbers(recipe))
        self._samples = self._place(train)
        self._validation = None
        wanted = recipe.patience is not None or reports.wanted
        if wanted and validation is not None and len(validation):
            self._validation = self._place(validation)
        self._chunk = _chunk_length(self._steps, self._batch_size, train.images)

    def run(
        self, position: Position, save: Callable[[Position], Any] | None
    ) -> Position:
        """Train until the end; what is handed to `save` lives until it returns.

        Raises:
          FloatingPointError: the loss or a parameter is infinite or not a number.
        """
        total = self._recipe.epochs * self._steps
        patience = self._recipe.patience or self._recipe.epochs
        first, best = position.step, position.best
        carry = own_copy(parallel.place_whole(position.carry, self._step.mesh))
        while not position.finished:
            ends = (_next_multiple(first, n) for n in (self._steps, self._every))
            stop = min(first + self._chunk, *ends, total)
            carry, losses = send_chunk(
                self._step,
                carry,
                self._constants,
                first,
                stop,
                feed=self._feed,
                chunk=self._chunk,
            )
            self._reports.send(first, stop, losses)
            finished, first = stop == total, stop
            if stop % self._steps == 0 and self._validation is not None:
                judge = functools.partial(self._accuracy, carry[0])
                accuracy = self._reports.wait(judge)
                if best is not None and accuracy is not None:
                    best = best.after(carry[0], accuracy)
                    finished |= best.epochs_since >= patience
            if finished or stop % self._every == 0:
                self._reports.wait()
                _check_finite(carry[0], stop, self._recipe)
                position = Position(stop, carry, best, finished)
                if save is not None:
                    save(position)
        if best is not None and first < total:
            _log.info(
                "stopped after %d epochs without a better validation accuracy than %.2f"
                " %%",
                best.epochs_since,
                best.accuracy,
            )
        return position

    def _place(self, data):
        pair = (data.images, data.labels)
        if self._step.mesh is None:
            return jax.device_put(pair)
        # Each device is sent its share of every minibatch, and holds no others.
        return jax.device_get(pair)

    def _accuracy(self, classifier):
        images, labels = self._validation
        outputs = logits(classifier, images, mesh=self._step.mesh)
        return 100 * float(np.mean(outputs.argmax(axis=1) == np.asarray(labels)))

    def _feed(self, first, stop):
        """Minibatches and learning rates of these steps, all of them in one epoch."""
        epoch, begin = divmod(first, self._steps)
        # What fills up the last chunk of an epoch is not used.
        places = np.minimum(np.arange(begin, begin + stop - first), self._steps - 1)
        order = self._order(epoch)[: self._steps * self._batch_size]
        rows = order.reshape(self._steps, self._batch_size)[places]
        if self._step.mesh is None:
            # A program apart, or that of the steps would depend on how many there are.
            images, labels = _gather(*self._samples, rows)
        else:
            cut = parallel.place_gathered(self._samples, rows, self._step.mesh)
            images, labels = cut
        return images, labels, self._rates[epoch * self._steps + places]


def _order(key, size, epoch):
    """A permutation of the samples, known for each epoch without those before."""
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng([*words, epoch]).permutation(size).astype(np.int32)


@jax.jit
def _gather(images, labels, rows):
    return images[rows], labels[rows]


@jax.jit
def _all_finite(tree):
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in floats]).all()


def _check_finite(classifier, steps, recipe):
    # The loss of a step is that before it: of the last one it says nothing.
    if not _all_finite((classifier.params, classifier.state)):
        what = "parameters are not finite after the update"
        raise diverged(what, steps - 1, recipe)


def _chunk_length(steps, batch_size, images):
    if parallel.loops_are_slow():
        # The host runs one step ahead of the device.
        return 1
    bytes_each = batch_size * int(np.prod(images.shape[1:])) * images.dtype.itemsize
    # Powers of two: nearly as many samples in an epoch shall share a program.
    full = 1 << (steps - 1).bit_length()
    return max(1, min(_CHUNK, full, _CHUNK_BYTES // bytes_each))


def _next_multiple(step, of):
    return step - step % of + of
