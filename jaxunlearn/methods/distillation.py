"""Training what is above a cut on what a teacher says of cached activations."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from scipy.special import logsumexp

from jaxunlearn.capture.cutting import Cut
from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.loop import (
    chunk_length,
    gather_minibatches,
    minibatches,
    run_steps,
)
from jaxunlearn.descent.optimizers import start_optimizer
from jaxunlearn.descent.step import check_losses, check_parameters, update_params


def distil_above(
    classifier: Classifier,
    cut: Cut,
    activations: Float[Array, "n ..."] | Float[np.ndarray, "n ..."],
    targets: Float[np.ndarray, "n k"],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int,
    key: Array,
    temperature: float = 1.0,
    report: Callable[[str, int, int], Any] = lambda stage, done, total: None,
) -> tuple[Classifier, np.ndarray]:
    """The classifier after `steps` updates of what is above the cut, and the losses.

    The loss is `T^2` times the cross-entropy of `softmax(logits / T)` to the targets,
    `T` the temperature, in training mode: batch statistics and dropout above the cut
    are on, and running statistics move. Activations are held on the device, and
    minibatches are of two or more.
    """
    names = leaf_paths(classifier.params)
    trained = tuple(i for i, name in enumerate(names) if name in cut.above)
    leaves = jax.tree.leaves(classifier.params)
    params = [leaves[i] for i in trained]
    size = min(batch_size, len(activations))
    order, draw = jax.random.split(key)
    arrays = jax.device_put((activations, jnp.asarray(targets, jnp.float32)))
    feed = functools.partial(
        gather_minibatches, arrays, minibatches(order, len(activations), size), None
    )
    update, state = start_optimizer(optimizer, params, jnp.float32)

    def on_chunk(stop, carry, losses):
        del carry
        check_losses(losses, stop - len(losses), "Lower the learning rate.")
        report("steps", stop, steps)

    row_bytes = 4 * size * int(np.prod(activations.shape[1:])) + 1
    (params, _, network_state), losses = run_steps(
        _Step(cut, trained, update.run, temperature),
        (params, state, classifier.state),
        (classifier.replace(state=None), draw, update.consts),
        steps=steps,
        feed=feed,
        chunk=chunk_length(row_bytes),
        on_chunk=on_chunk,
    )
    check_parameters(params)
    return _with(classifier, trained, params, network_state), losses


@dataclasses.dataclass(frozen=True)
class _Step:
    """One update on a minibatch. Static, and equal to its equals."""

    cut: Cut
    trained: tuple[int, ...]
    update: Callable[..., Any]
    temperature: float

    def __call__(self, carry, constants, index, row):
        params, optimizer, state = carry
        classifier, key, update_consts = constants
        activations, targets = row
        key = jax.random.fold_in(key, index)

        def loss(params):
            whole = _with(classifier, self.trained, params, state)
            logits, new = self.cut.logits_in_training(whole, activations, key)
            loss = optax.softmax_cross_entropy(logits / self.temperature, targets)
            return self.temperature**2 * loss.mean(), new

        update = functools.partial(self.update, update_consts)
        both, value, state = update_params(loss, params, optimizer, update)
        return (*both, state), value


def _with(classifier, places: Sequence[int], params, state) -> Classifier:
    leaves, structure = jax.tree.flatten(classifier.params)
    for place, leaf in zip(places, params, strict=True):
        leaves[place] = leaf
    return classifier.replace(params=jax.tree.unflatten(structure, leaves), state=state)


def leaf_paths(params: PyTree) -> list[str]:
    """Paths of all parameter leaves, in their order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def activations_below(
    classifier: Classifier, cut: Cut, images: Any, *, batch_size: int = 256
) -> Float[np.ndarray, "n ..."]:
    """What the cut hands on of every image, in inference mode."""
    parts = []
    for start in range(0, len(images), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        parts.append(jax.device_get(_below(classifier, images[rows], cut)))
    return np.concatenate(parts)[: len(images)]


@functools.partial(jax.jit, static_argnames="cut")
def _below(classifier, images, cut):
    return cut.below(classifier, classifier.prepare(images))


def match_confidence(outputs: Float[np.ndarray, "n k"], confidence: float) -> float:
    """The temperature `T` at which `outputs / T` are as sure as that on average.

        mean_x max_c softmax(outputs / T)_c = confidence,   1/20 <= T <= 20

    A confidence above .9999 counts as that: no temperature gives 1. Where none in the
    range does, it is the nearer end.

    >>> outputs = np.log([[0.9, 0.1], [0.8, 0.2]])
    >>> round(match_confidence(outputs, 0.85), 6)
    1.0
    """
    outputs, confidence = np.asarray(outputs, np.float64), min(confidence, 0.9999)

    def mean(log_temperature: float) -> float:
        scaled = outputs / math.exp(log_temperature)
        return float(np.exp(scaled.max(axis=1) - logsumexp(scaled, axis=1)).mean())

    low, high = -math.log(20), math.log(20)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) > confidence else (low, middle)
    return math.exp((low + high) / 2)
