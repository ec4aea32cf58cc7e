"""Training a classifier: the model to unlearn from, and the one retrained without."""

import logging
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxunlearn import parallel
from jaxunlearn.checks import check_functions
from jaxunlearn.classifier.classifier import Classifier, Preprocess
from jaxunlearn.descent.loop import (
    chunk_length,
    gather_minibatches,
    minibatches,
    own_copy,
    run_steps,
)
from jaxunlearn.descent.step import check_losses, check_parameters
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.progress import Progress, reporting
from jaxunlearn.tasks import Data
from jaxunlearn.training.arguments import check_arguments, start
from jaxunlearn.training.checkpoints import (
    fingerprint,
    newest_of,
    open_checkpoints,
)
from jaxunlearn.training.recipe import Recipe
from jaxunlearn.training.reports import Reports
from jaxunlearn.training.step import begin

# One name for all messages of a training.
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


def fit(
    model: nn.Module | nnx.Module | Any,
    train: Data,
    *,
    recipe: Recipe,
    key: Array,
    preprocess: Preprocess | None = None,
    validation: Data | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    keep: int = 3,
    mesh: Mesh | None = None,
    callback: Callable[[int, float], Any] | None = None,
    log: Callable[[dict[str, Any]], Any] | None = None,
    progress: Progress = None,
    channels: int | None = None,
    **call_options: Hashable,
) -> Classifier:
    """Train a classifier with the cross-entropy loss, deterministically in `key`.

    The data are placed on the device once, as they are, and minibatches are gathered
    there; of several devices each is sent its share of every minibatch. What is
    compiled depends on the network and the shape of a minibatch: another key, learning
    rate or number of samples compiles nothing of weight, so that retraining without a
    forget set starts at once.

    A training that was killed and resumed ends with the very bits of one that was not,
    given the same versions and the same kind and number of devices (and cores of a
    CPU); a warning says if they are not the same.

    Args:
      model: a linen module, freshly initialised; or an NNX module, trained from its own
        parameters and not modified.
      train: what to train on.
      recipe: how.
      key: draws the parameters (linen), the order of samples, augmentation and dropout.
      preprocess: from pixels to what the network expects; uint8 images need one.
      validation: its accuracy after each epoch is logged at level INFO. Nothing else
        depends on it, unless the recipe has a `patience`.
      checkpoint_dir: for checkpoints, in folders named by their step. One process at a
        time may use it.
      checkpoint_every: steps between two of them; by default those of an epoch. One
        more is made at the end.
      resume: go on from the newest whole checkpoint in `checkpoint_dir`. With none
        there, start anew; where the training was finished, return its classifier. An
        NNX module's own parameters do not matter then.
      keep: how many of the newest checkpoints stay.
      mesh: a one-axis mesh whose devices share each minibatch. By default, on a GPU or
        TPU, as many local devices as divide it; on a CPU one. Under several processes
        all arguments are the same in each.
      callback: `(step, loss)`, for every step in order, shortly after it.
      log: takes a dictionary for every step: step, epoch, loss and learning_rate, and
        at the end of an epoch images_per_second and validation_accuracy in percent.
      progress: None, "bar" or a function; see `jaxunlearn.progress`.
      channels: the length of the images' last axis, where it is not 1, 3 or 4.
      **call_options: passed to the module's `__call__`, as by `freeze`. Flags such as
        `train`, `deterministic` and `mode` are set anyway.

    In training the module may return a tuple that begins with the logits; the loss is
    of these alone.

    Returns:
      The classifier. A linen one `thaw`s to nested dictionaries, without boxes such as
      `nn.Partitioned`.

    Raises:
      TypeError: an argument is of another type, or the images of one that the
        classifier does not take; the call is inside a transformation such as `jit`.
      ValueError: there are no samples, labels beyond the network's logits, or images
        that it cannot take; a patience without validation data; `checkpoint_dir` holds
        checkpoints and `resume` is not set, or those of another training, or `mesh`
        holds devices of several processes; numbers out of range.
      OSError: a checkpoint cannot be written.
      FloatingPointError: the loss or a parameter is infinite or not a number.

    >>> from jaxunlearn import datasets, models
    >>> classifier = fit(
    ...     models.create("smallcnn", num_classes=10, width=4),
    ...     datasets.load("digits", "validation"),
    ...     recipe=Recipe(epochs=1),
    ...     key=jax.random.key(0),
    ...     preprocess=datasets.preprocess("digits"),
    ... )
    >>> classifier(datasets.load("digits", "test").images[:5]).shape
    (5, 10)
    """
    check_functions(callback=callback, log=log)
    check_arguments(train, validation, recipe, key, preprocess, channels)
    checkpoints = open_checkpoints(checkpoint_dir, checkpoint_every, resume, keep)
    order_key, init_key, step_key = jax.random.split(key, 3)
    size = min(recipe.batch_size, len(train))
    data = train, validation, preprocess
    classifier, description = start(model, *data, init_key, size, call_options)
    mesh = parallel.mesh_for_batch(mesh, size)
    if checkpoints is not None and mesh is not None and mesh.is_multi_process:
        msg = (
            "checkpoint_dir is for one process, and mesh holds devices of several: "
            "train without checkpoints there."
        )
        raise ValueError(msg)
    step, carry, constants = begin(recipe, classifier, step_key, mesh)
    state = LoopState(carry, None if recipe.patience is None else classifier)
    identity = {}
    if checkpoints is not None:
        decisive = description, classifier, train, validation, recipe, key
        training, made_with = fingerprint(*decisive), parallel.machine(mesh)
        identity = {"training": training, "made_with": made_with}
        newest = newest_of(checkpoints, **identity)
        if newest is not None:
            state = LoopState(*newest.arrays(state[:2]), *newest.facts["numbers"])
            done = "the training was finished" if state.finished else "resuming"
            _log.info("%s after %d steps", done, state.step)
            if state.finished:
                return state.result()

    steps = len(train) // size  # in an epoch
    total = recipe.epochs * steps
    every = total
    if checkpoints is not None:
        every = checkpoint_every or steps
    advice = (
        f"The training has diverged. Lower the learning rate ({recipe.learning_rate}), "
        f"or lengthen the warm-up ({recipe.warmup_epochs} epochs)."
    )
    feed = _feed(recipe, train, size, mesh, order_key)
    # Where loops are slow, an interruption waits for one step alone.
    slow = parallel.loops_are_slow()
    chunk = 1 if slow else chunk_length(size * np.asarray(train.images[0]).nbytes)
    carry = own_copy(parallel.place_whole(state.carry, mesh))
    with reporting(progress) as report:
        reports = Reports(recipe, steps, size, callback, log, report)
        judged = recipe.patience is not None or reports.wanted

        def on_chunk(stop, carry, losses):
            del carry
            check_losses(losses, stop - len(losses), advice)
            reports.losses(stop, losses)

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
                if validation and judged:
                    evaluation = evaluate(carry[0], validation, (), mesh=mesh)
                    accuracy = evaluation.retained_weighted
                reports.epoch(stop // steps, accuracy)
                if recipe.patience is not None:
                    state = state.after_epoch(accuracy, recipe.patience)
            if state.finished or stop % every == 0:
                check_parameters(carry[0], advice)
                if checkpoints is not None:
                    facts = identity | {"numbers": state[2:]}
                    checkpoints.save(stop, state[:2], facts)
    if state.step < total:
        _log.info(
            "stopped after %d epochs without a better validation accuracy than %.2f %%",
            *(state.epochs_since, state.accuracy),
        )
    return parallel.from_mesh(state.result(), mesh)


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
