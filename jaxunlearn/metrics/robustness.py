"""Images moved by an attacker within a small ball, and what they are taken for."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxunlearn.checks import check_choice, check_count, check_labels, check_positive
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.metrics.perturbation import (
    as_floats,
    ascend,
    climb,
    escape,
    logit_gap,
    pixel_bounds,
    positive,
)
from jaxunlearn.tasks import Data, check_data

# The usual budget, of pixels in [0, 1].
EPSILON = 8 / 255
# Of projected ascent, each a quarter of epsilon.
STEPS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Attacked:
    """Images after an attack.

    Attributes:
      images: the last ones tried, within epsilon of the given ones and the bounds.
      reached: for which the attack reached its goal, then or at any step before; also
        those where the goal was reached without it.
    """

    images: Float[np.ndarray, "n h w c"]
    reached: Bool[np.ndarray, " n"]


def fgsm(
    classifier: Classifier,
    data: Data,
    *,
    epsilon: float = EPSILON,
    bounds: Any = None,
    batch_size: int = 256,
) -> Attacked:
    """One step up the sign of the loss's gradient; the goal is any other class.

        x' = clip(x + epsilon sign(d CE(z(x), y) / dx))

    Of a loss so small that its gradient is 0 in float32 the sign is the right one all
    the same: `CE = log(1 + exp g)` rises with `g = logsumexp_{c != y} z_c - z_y`, of
    which the gradient is taken.

    Args:
      classifier: the one to attack.
      data: images with their true labels.
      epsilon: the most that a pixel changes, of pixels in [0, 1] where there is a
        `Preprocess` (uint8 are 255ths), else in the unit of the images.
      bounds: of pixels; None is (0, 1) with a `Preprocess`, else the images' range.
      batch_size: images at a time.

    Raises:
      ValueError: a number is not positive, a label does not exist, or samples are
        beyond the bounds.

    Source: Goodfellow et al., arXiv 1412.6572.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> kernel = {"kernel": jnp.array([[1.0, 0.0]]), "bias": jnp.array([0.0, 0.5])}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> data = Data(np.array([0.53, 0.9], np.float32).reshape(2, 1, 1, 1), [0, 0])
    >>> attacked = fgsm(classifier, data, bounds=(0, 1))
    >>> attacked.images.ravel().astype(float).round(3).tolist()
    [0.499, 0.869]
    >>> attacked.reached.tolist()
    [True, False]
    """
    given = classifier, data, epsilon, bounds, batch_size
    return _in_batches(_one_step, escape, *given)


def pgd(
    classifier: Classifier,
    data: Data,
    *,
    goal: str = "escape",
    epsilon: float = EPSILON,
    steps: int = STEPS,
    bounds: Any = None,
    batch_size: int = 256,
) -> Attacked:
    """Projected ascent within the ball, towards any other class or back to the own one.

        x <- clip(x + (2.5 epsilon / steps) sign(dg / dx)),   |x - x_0|_inf <= epsilon

    where `g = max_{c != y} z_c - z_y` to "escape" from the class `y` and `-g` to
    "recover" it. It begins at the image itself, so that nothing is random. As with any
    attack, what it does not reach may still be within reach.

    Args:
      classifier: the one to attack.
      data: images with their true labels.
      goal: "escape": to be taken for another class; "recover": to be taken for the true
        one, such as a forgotten class.
      epsilon: as for `fgsm`.
      steps: of ascent.
      bounds: as for `fgsm`.
      batch_size: images at a time.

    Raises:
      ValueError: no such goal, or as for `fgsm`.

    Source: Madry et al., arXiv 1706.06083, with the difference of logits (Carlini and
    Wagner, arXiv 1608.04644) for the loss.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> kernel = {"kernel": jnp.array([[1.0, 0.0]]), "bias": jnp.array([0.0, 0.5])}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> data = Data(np.array([0.1, 0.48], np.float32).reshape(2, 1, 1, 1), [0, 0])
    >>> pgd(classifier, data, goal="recover", bounds=(0, 1)).reached.tolist()
    [False, True]
    """
    check_choice("goal", goal, GOALS)
    check_count("steps", steps)
    attack = functools.partial(climb, steps=steps)
    given = classifier, data, epsilon, bounds, batch_size
    return _in_batches(attack, GOALS[goal], *given)


# By name: what is above 0 where it is reached.
GOALS: dict[str, Callable[..., Float[Array, " n"]]] = {
    "escape": escape,
    "recover": logit_gap,
}


def _in_batches(attack, goal, classifier, data, epsilon, bounds, batch_size):
    check_classifier(classifier)
    check_data("data", data)
    check_positive("epsilon", epsilon)
    check_count("batch_size", batch_size)
    k = num_classes(classifier, data.images)
    check_labels("labels of data", data.labels, len(data), k)
    images, n = as_floats(classifier, data.images), len(data)
    if n == 0:
        return Attacked(images, np.zeros(0, bool))
    bounds = pixel_bounds(classifier, images, bounds)
    moved, reached = np.empty_like(images), np.zeros(n, bool)
    size = min(batch_size, 1 << (n - 1).bit_length())
    radius = jnp.full(size, epsilon, images.dtype)
    for first in range(0, n, size):
        # The last image again, so that one program serves all batches.
        rows = np.minimum(np.arange(first, first + size), n - 1)
        start, labels = jnp.asarray(images[rows]), jnp.asarray(data.labels[rows])
        before = positive(goal, classifier, start, labels)
        tried, found = attack(goal, classifier, start, labels, radius, bounds=bounds)
        moved[rows], reached[rows] = tried, before | found
    return Attacked(moved, reached)


def _one_step(goal, classifier, start, labels, radius, *, bounds):
    args = start, start, labels, radius, radius, bounds
    images = ascend(_surprise, classifier, *args)
    return images, positive(goal, classifier, images, labels)


def _surprise(classifier, images, labels):
    """What the cross-entropy rises with: `CE = log(1 + exp(_surprise))`."""
    z = classifier(images)
    own = jax.nn.one_hot(labels, z.shape[1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, z), axis=1)
    return others - jnp.where(own, z, 0).sum(axis=1)
