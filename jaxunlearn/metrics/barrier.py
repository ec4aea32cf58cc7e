"""The loss on the straight line between two models."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import log_softmax

from jaxunlearn.checks import as_number, check_count, check_labels
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.metrics.evaluation import logits, num_classes
from jaxunlearn.metrics.shadows import same_network
from jaxunlearn.tasks import Data, check_data


@dataclasses.dataclass(frozen=True)
class LossBarrier:
    """What lies on the line.

    Attributes:
      barrier: the largest excess of the loss over the line between its ends; 0 if there
        is none: the two are linearly connected.
      at: where it is, from 0 (the first model) to 1.
      positions: where the loss was taken.
      losses: mean cross-entropies, in nats.
      accuracies: in percent of all samples.
    """

    barrier: float
    at: float
    positions: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]


def loss_barrier(
    first: Classifier,
    second: Classifier,
    data: Data,
    *,
    points: int = 11,
    batch_size: int = 256,
) -> LossBarrier:
    """The barrier of the loss on the straight line from one model to the other.

        max_t [L(w_t) - (1 - t) L(w_0) - t L(w_1)],   w_t = (1 - t) w_0 + t w_1

    State of floating point (statistics of BatchNorm) goes along the line too; any other
    leaf stays the first model's. A model that unlearning has hardly moved is connected
    to the original without a barrier, and is taught again in few steps.

    Args:
      first: such as the original.
      second: of the same network, such as the unlearned one.
      data: labelled samples.
      points: on the line, both ends included.
      batch_size: images at a time.

    Raises:
      ValueError: two networks, no sample, fewer than three points.
      FloatingPointError: a loss at an end is not finite.

    Source: Frankle et al. (arXiv 1912.05671); a predictor of relearning in arXiv
    2505.22310.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> ends = [{"kernel": s * jnp.eye(2), "bias": jnp.zeros(2)} for s in (1.0, 3.0)]
    >>> ends = [ju.freeze(model, {"params": {"layers_1": end}}) for end in ends]
    >>> data = Data(np.eye(2, dtype=np.float32).reshape(2, 1, 2, 1), [0, 1])
    >>> loss_barrier(*ends, data).barrier  # the loss of a linear model is convex
    0.0
    """
    check_classifier(first, "first")
    check_classifier(second, "second")
    same_network((first, second))
    check_data("data", data)
    if not len(data):
        msg = "data hold no sample, and a loss is a mean over samples."
        raise ValueError(msg)
    k = num_classes(first, data.images)
    check_labels("labels of data", data.labels, len(data), k)
    if check_count("points", points) < 3:
        msg = f"points must be 3 or more, both ends included; it is {points}."
        raise ValueError(msg)
    positions = np.linspace(0, 1, points)
    between = (interpolated(first, second, t) for t in positions[1:-1])
    line = itertools.chain([first], between, [second])
    measured = [_judged(one, data, batch_size) for one in line]
    losses, accuracies = map(np.array, zip(*measured, strict=True))
    if not np.isfinite(losses[[0, -1]]).all():
        msg = (
            f"The losses of first and second are {losses[0]} and {losses[-1]}: a model "
            "that has diverged has no barrier."
        )
        raise FloatingPointError(msg)
    # Not a number between the ends is as bad as a loss can be.
    losses = np.where(np.isnan(losses), np.inf, losses)
    excess = losses - (losses[0] + positions * (losses[-1] - losses[0]))
    excess[[0, -1]] = 0
    place = int(excess.argmax())
    return LossBarrier(
        float(excess[place]),
        float(positions[place]),
        *(tuple(map(float, column)) for column in (positions, losses, accuracies)),
    )


def interpolated(first: Classifier, second: Classifier, t: Any) -> Classifier:
    """The classifier at `(1 - t) first + t second`, state included.

    Raises:
      TypeError: `t` is no number.
    """
    if as_number(t) is None:
        msg = f"t must be a number, 0 for the first; it is {t!r}."
        raise TypeError(msg)
    return between(first, second, jnp.float32(t))


@jax.jit
def between(first: Classifier, second: Classifier, t: Float[Array, ""]) -> Classifier:
    """`interpolated` for a traced `t`, unchecked."""

    def mixed(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(jnp.result_type(old), jnp.floating):
            return old
        # Exact where nothing has changed.
        return old + t.astype(old.dtype) * (new - old)

    return jax.tree.map(mixed, first, second)


def _judged(classifier, data, batch_size):
    z = np.asarray(logits(classifier, data.images, batch_size=batch_size), np.float64)
    rows = np.arange(len(data))
    loss = -log_softmax(z, axis=1)[rows, data.labels].mean()
    return loss, 100 * (z.argmax(axis=1) == data.labels).mean()
