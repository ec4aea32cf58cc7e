"""Training a classifier: the model to unlearn from, and the one retrained without."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn import parallel
from jaxunlearn.classifier.classifier import (
    Classifier,
    Preprocess,
    check_images,
    freeze,
)
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.tasks import Data
from jaxunlearn.training.checkpoints import Checkpoints
from jaxunlearn.training.fingerprint import differences
from jaxunlearn.training.loop import Best, Loop, Position
from jaxunlearn.training.recipe import Recipe
from jaxunlearn.training.reports import Reports
from jaxunlearn.training.step import TrainingStep
from jaxunlearn.training.training_fingerprint import fingerprint

# One name for all that is said of a training.
_log = logging.getLogger("jaxunlearn.training")


def fit(
    model: nn.Module | nnx.Module,
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

    Returns:
      The classifier. A linen one `thaw`s to nested dictionaries, without boxes such as
      `nn.Partitioned`.

    Raises:
      TypeError: the images are of a type that the classifier does not take.
      ValueError: there are no samples, or labels beyond the network's logits; a
        patience without validation data; `checkpoint_dir` holds checkpoints and
        `resume` is not set, or those of another training, or `mesh` holds devices of
        several processes; numbers out of range.
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
    _check_data(train, validation, recipe)
    checkpoints = _checkpoints(checkpoint_dir, checkpoint_every, resume, keep)
    check_images(train.images, preprocess)
    order_key, init_key, step_key = jax.random.split(key, 3)
    classifier = _start(model, train.images.shape[1:], preprocess, init_key)
    _check_labels(classifier, train, "train")
    if validation is not None:
        _check_labels(classifier, validation, "validation")
    batch_size = min(recipe.batch_size, len(train))
    steps = len(train) // batch_size
    mesh = parallel.mesh_for_batch(mesh, batch_size)
    if checkpoints is not None and mesh is not None and mesh.is_multi_process:
        msg = (
            "checkpoint_dir is for one process, and mesh holds devices of several: "
            "train without checkpoints there."
        )
        raise ValueError(msg)
    step = TrainingStep.of(recipe, mesh)
    best = None if recipe.patience is None else Best(classifier, -1.0, 0)
    start = Position(0, step.start(classifier), best, finished=False)

    def run(position, every, save):
        loop = Loop(
            step,
            recipe,
            train,
            validation,
            Reports(recipe, steps, batch_size, callback, log),
            order_key=order_key,
            step_key=step_key,
            every=every,
        )
        return parallel.from_mesh(loop.run(position, save).result(), mesh)

    if checkpoints is None:
        return run(start, None, None)
    identity = fingerprint(
        _description(model, classifier), classifier, train, validation, recipe, key
    )
    made_with = parallel.machine(mesh)

    def save(position):
        facts = position.facts() | {"training": identity, "made_with": made_with}
        checkpoints.save(position.step, position.tree(), facts)

    position = _resumed(checkpoints, start, identity, made_with)
    if position.finished:
        _log.info("the training was finished after %d steps", position.step)
        return position.result()
    return run(position, checkpoint_every or steps, save)


def _resumed(checkpoints, start, identity, made_with) -> Position:
    """Where to go on: the newest checkpoint of this training, or its start."""
    found = checkpoints.newest()
    if found is None:
        return start
    others = differences(found.facts.get("training", {}), identity)
    if others:
        msg = (
            f"{found.folder} is a checkpoint of another training, which differs in "
            f"{'; '.join(others)}: give the settings of that one, or choose another "
            "folder."
        )
        raise ValueError(msg)
    position = start.at(found.step, found.arrays(start.tree()), found.facts)
    changes = differences(found.facts.get("made_with", {}), made_with)
    if changes and not position.finished:
        _log.warning(
            "%s was made with other means, which differ in %s: the result will not "
            "agree to the last bit.",
            found.folder,
            "; ".join(changes),
        )
    _log.info("resuming after %d steps", found.step)
    return position


def _description(model, classifier):
    """The network in words."""
    if isinstance(model, nnx.Module):
        return repr(classifier.network.original)
    return repr(model)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init(network, key, image_shape):
    return network.init(key, image_shape)


def _start(model, image_shape, preprocess, key):
    if isinstance(model, nnx.Module):
        return freeze(model, preprocess=preprocess)
    network = freeze(model, {"params": {}}).network
    params, state = _init(network, key, image_shape)
    return freeze(model, {"params": params, **state}, preprocess=preprocess)


def _check_labels(classifier, data, name):
    classes = num_classes(classifier, data.images)
    if len(data) and data.labels.max() >= classes:
        msg = (
            f"{name} has label {data.labels.max()}, and the network's {classes} logits "
            f"stand for classes 0 to {classes - 1}: make it wider."
        )
        raise ValueError(msg)


def _check_data(train, validation, recipe):
    if len(train) == 0:
        msg = "train holds no samples: there is nothing to train on."
        raise ValueError(msg)
    if recipe.patience is not None and (validation is None or len(validation) == 0):
        msg = (
            f"Recipe.patience is {recipe.patience}, and stopping early looks at "
            "validation samples: give some, or let patience be None."
        )
        raise ValueError(msg)


def _checkpoints(folder, every, resume, keep) -> Checkpoints | None:
    """Those of a folder, in which a training may begin or go on."""
    if folder is None and (resume or every is not None):
        name = "resume" if resume else "checkpoint_every"
        msg = f"{name} has no effect without checkpoint_dir: name a folder."
        raise ValueError(msg)
    if every is not None and every < 1:
        msg = f"checkpoint_every must be at least 1 step; it is {every}."
        raise ValueError(msg)
    if folder is None:
        return None
    checkpoints = Checkpoints(folder, keep=keep)
    steps = checkpoints.steps()
    if steps and not resume:
        msg = (
            f"{checkpoints.folder} holds checkpoints (the newest is {steps[-1]}): go "
            "on from there with resume=True, or choose an empty folder."
        )
        raise ValueError(msg)
    return checkpoints
