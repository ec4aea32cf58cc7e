"""Training a classifier: the model to unlearn from, and the one retrained without."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from jaxunlearn import parallel
from jaxunlearn.classifier import Classifier, Preprocess, check_images, freeze
from jaxunlearn.evaluation import logits, num_classes
from jaxunlearn.recipe import Recipe as Recipe
from jaxunlearn.tasks import Data

_log = logging.getLogger(__name__)

# Steps in one call where loops are fast. The images of so many minibatches lie on the
# device at a time, next to the data set.
_CHUNK = 32

# What a step takes from the recipe besides its learning rate.
_TRACED = ("momentum", "weight_decay", "label_smoothing")


def fit(
    model: nn.Module | nnx.Module,
    train: Data,
    *,
    recipe: Recipe,
    key: Array,
    preprocess: Preprocess | None = None,
    validation: Data | None = None,
    callback: Callable[[int, float], Any] | None = None,
) -> Classifier:
    """Train a classifier with the cross-entropy loss, deterministically in `key`.

    The data are placed on the device once, as they are. What is compiled depends on the
    network and the shape of a minibatch alone: another recipe, key or number of samples
    compiles nothing of weight, so that retraining without a forget set starts at once.

    Args:
      model: a linen module, freshly initialised; or an NNX module, trained from its own
        parameters and not modified.
      train: what to train on.
      recipe: how.
      key: draws the parameters (linen), the order of the samples, and dropout.
      preprocess: from pixels to what the network expects; uint8 images need one.
      validation: its accuracy after each epoch is logged at level INFO. Nothing else
        depends on it.
      callback: `(step, loss)`, for every step from 0 on, at the end of its epoch.

    Returns:
      The classifier. A linen one `thaw`s to nested dictionaries, without boxes such as
      `nn.Partitioned`.

    Raises:
      TypeError: the images are of a type that the classifier does not take.
      ValueError: there are no samples, or labels beyond the network's logits.
      FloatingPointError: the loss is infinite or not a number.

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
    if len(train) == 0:
        msg = "train holds no samples: there is nothing to train on."
        raise ValueError(msg)
    check_images(train.images, preprocess)
    order_key, init_key, dropout_key = jax.random.split(key, 3)
    classifier = _start(model, train.images.shape[1:], preprocess, init_key)
    _check_labels(classifier, train, "train")
    if validation is not None:
        _check_labels(classifier, validation, "validation")
    batch_size = min(recipe.batch_size, len(train))
    steps = len(train) // batch_size
    samples = jax.device_put((train.images, train.labels))
    rates = recipe.learning_rates(steps)
    seed = np.asarray(jax.random.bits(order_key, (4,), jnp.uint32))
    generator = np.random.default_rng(seed)
    options = {name: float(getattr(recipe, name)) for name in _TRACED}
    carry = (classifier, _sgd(options).init(classifier.params))
    for epoch in range(recipe.epochs):
        order = generator.permutation(len(train))[: steps * batch_size]
        order = order.reshape(steps, batch_size)
        first = epoch * steps
        schedule = (first, rates[first : first + steps])
        carry, losses = _epoch(carry, samples, order, schedule, dropout_key, options)
        _check_losses(losses, first, recipe)
        if callback is not None:
            for step, loss in enumerate(losses.tolist(), start=first):
                callback(step, loss)
        _log_epoch(epoch, recipe, losses, carry[0], validation)
    return carry[0]


def _epoch(carry, samples, order, schedule, key, options):
    """One pass: the new carry, and the loss of every step on the host."""
    first, rates = schedule
    slow = parallel.loops_are_slow()
    chunk = 1 if slow else _CHUNK
    losses = []
    for start in range(0, len(order), chunk):
        # A short last chunk is filled up, and its count tells how much of it is meant.
        rows = np.minimum(np.arange(start, start + chunk), len(order) - 1)
        count = min(chunk, len(order) - start)
        # A program apart, or that of the steps would depend on the number of samples.
        batches = _gather(*samples, order[rows])
        advance = _one_step if slow else _many_steps
        carry, loss = advance(
            carry, batches, rates[rows], first + start, count, key, options
        )
        losses.append(loss[:count])
    return carry, np.concatenate(jax.device_get(losses))


@jax.jit
def _gather(images, labels, rows):
    return images[rows], labels[rows]


@jax.jit
def _one_step(carry, batches, rates, first, count, key, options):
    del count  # one, where loops are slow
    images, labels = batches
    batch = (images[0], labels[0], rates[0], jax.random.fold_in(key, first))
    carry, loss = _step(carry, *batch, options)
    return carry, loss[None]


@jax.jit
def _many_steps(carry, batches, rates, first, count, key, options):
    images, labels = batches

    def body(i, carry_and_losses):
        carry, losses = carry_and_losses
        step_key = jax.random.fold_in(key, first + i)
        carry, loss = _step(carry, images[i], labels[i], rates[i], step_key, options)
        return carry, losses.at[i].set(loss)

    # The count is traced: chunks of any length share one program.
    losses = jnp.zeros(len(rates), jnp.float32)
    return jax.lax.fori_loop(0, count, body, (carry, losses))


def _step(carry, images, labels, rate, key, options):
    classifier, momentum = carry

    def loss_function(params):
        network, prepared = classifier.network, classifier.prepare(images)
        outputs, state = network.apply_train(params, classifier.state, prepared, key)
        targets = jax.nn.one_hot(labels, outputs.shape[1], dtype=jnp.float32)
        targets = optax.smooth_labels(targets, options["label_smoothing"])
        outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        return optax.softmax_cross_entropy(outputs, targets).mean(), state

    gradient = jax.value_and_grad(loss_function, has_aux=True)
    (loss, state), gradients = gradient(classifier.params)
    updates, momentum = _sgd(options).update(gradients, momentum, classifier.params)
    updates = jax.tree.map(lambda u: -rate * u, updates)
    params = optax.apply_updates(classifier.params, updates)
    carry = (classifier.replace(params=params, state=state), momentum)
    return carry, loss.astype(jnp.float32)


def _sgd(options):
    """All but the learning rate. Built from traced numbers: a sweep compiles once."""
    return optax.chain(
        optax.add_decayed_weights(
            options["weight_decay"],
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
        optax.trace(options["momentum"], nesterov=True),
    )


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


def _check_losses(losses, first, recipe):
    bad = ~np.isfinite(losses)
    if bad.any():
        step = int(bad.argmax())
        msg = (
            f"The loss is {losses[step]} at step {first + step}: the training has "
            f"diverged. Lower the learning rate ({recipe.learning_rate}), or lengthen "
            f"the warm-up ({recipe.warmup_epochs} epochs)."
        )
        raise FloatingPointError(msg)


def _log_epoch(epoch, recipe, losses, classifier, validation):
    if not _log.isEnabledFor(logging.INFO):
        return
    line = f"epoch {epoch + 1} of {recipe.epochs}: loss {losses.mean():.4f}"
    if validation is not None and len(validation):
        guesses = logits(classifier, validation.images).argmax(axis=1)
        accuracy = 100 * np.mean(guesses == validation.labels)
        line += f", validation accuracy {accuracy:.2f} %"
    _log.info(line)
