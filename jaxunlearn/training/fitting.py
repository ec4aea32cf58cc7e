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
from jaxunlearn.checks import check_labels
from jaxunlearn.classifier.classifier import (
    Classifier,
    Preprocess,
    check_images,
    freeze,
)
from jaxunlearn.classifier.function import UNTRAINABLE, Function
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.progress import Progress, reporting
from jaxunlearn.tasks import Data
from jaxunlearn.training.checkpoints import Checkpoints, differences, fingerprint
from jaxunlearn.training.loop import LoopState, run_epochs
from jaxunlearn.training.recipe import Recipe
from jaxunlearn.training.reports import Reports
from jaxunlearn.training.step import begin

# One name for all messages of a training.
_log = logging.getLogger("jaxunlearn.training")


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
    shape = train.images.shape[1:]
    classifier, description = _start(model, shape, preprocess, init_key)
    for name, data in (("train", train), ("validation", validation)):
        if data is not None:
            classes = num_classes(classifier, data.images)
            hint = f"The network has {classes} logits: make it wider."
            check_labels(f"labels of {name}", data.labels, len(data), classes, hint)
    batch_size = min(recipe.batch_size, len(train))
    mesh = parallel.mesh_for_batch(mesh, batch_size)
    if checkpoints is not None and mesh is not None and mesh.is_multi_process:
        msg = (
            "checkpoint_dir is for one process, and mesh holds devices of several: "
            "train without checkpoints there."
        )
        raise ValueError(msg)
    step, carry, constants = begin(recipe, classifier, step_key, mesh)
    best = None if recipe.patience is None else classifier
    state, save = LoopState(carry, best), None
    steps = len(train) // batch_size
    if checkpoints is not None:
        decisive = description, classifier, train, validation, recipe, key
        training, made_with = fingerprint(*decisive), parallel.machine(mesh)
        identity = {"training": training, "made_with": made_with}
        state = _resumed(checkpoints, state, identity)
        if state.finished:
            _log.info("the training was finished after %d steps", state.step)
            return state.result()
        checkpoint_every = checkpoint_every or steps

        def save(state):
            numbers = {"numbers": state[2:]}
            checkpoints.save(state.step, state[:2], identity | numbers)

    with reporting(progress) as report:
        reports = Reports(recipe, steps, batch_size, callback, log, report)
        if not validation or (recipe.patience is None and not reports.wanted):
            validation = None
        state = run_epochs(
            *(state, step, constants, recipe, train, validation, reports),
            order_key=order_key,
            every=checkpoint_every,
            save=save,
        )
    return parallel.from_mesh(state.result(), mesh)


def _resumed(checkpoints, start, identity) -> LoopState:
    """The state in the newest checkpoint of this training, or its start."""
    newest = checkpoints.newest()
    if newest is None:
        return start
    others = differences(newest.facts.get("training", {}), identity["training"])
    if others:
        msg = (
            f"{newest.folder} is a checkpoint of another training, which differs in "
            f"{'; '.join(others)}: give the settings of that one, or choose another "
            "folder."
        )
        raise ValueError(msg)
    state = LoopState(*newest.arrays(start[:2]), *newest.facts["numbers"])
    changes = differences(newest.facts.get("made_with", {}), identity["made_with"])
    if changes and not state.finished:
        _log.warning(
            "%s was made with other means, which differ in %s: the result will not "
            "agree to the last bit.",
            newest.folder,
            "; ".join(changes),
        )
    _log.info("resuming after %d steps", state.step)
    return state


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init(network, key, image_shape):
    return network.init(key, image_shape)


def _start(model, image_shape, preprocess, key):
    """The classifier that training starts from, and its network in words."""
    if isinstance(model, Function):
        raise TypeError(UNTRAINABLE)
    if isinstance(model, nnx.Module):
        classifier = freeze(model, preprocess=preprocess)
        return classifier, repr(classifier.network.original)
    network = freeze(model, {"params": {}}).network
    params, state = _init(network, key, image_shape)
    variables = {"params": params, **state}
    return freeze(model, variables, preprocess=preprocess), repr(model)


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
