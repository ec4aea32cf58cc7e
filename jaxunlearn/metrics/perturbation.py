"""Images moved up a gradient, within a ball around where they began.

Everything is in the space that a classifier takes: pixels in [0, 1] with a
`Preprocess`, else whatever floats it takes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.images import check_images
from jaxunlearn.descent.step import to_pixels

Bounds = tuple[float, float]


def pixel_bounds(classifier: Classifier, images: np.ndarray, bounds: Any) -> Bounds:
    """The least and largest pixel that an image may have.

    None is (0, 1) with a `Preprocess`, else the range of the images themselves.

    Raises:
      ValueError: not two finite numbers, the lower first, or images beyond them.
    """
    low, high = float(images.min()), float(images.max())
    if bounds is None:
        # Pixels slightly outside [0, 1], as resizing makes them, stay as they are.
        inside = classifier.preprocess is not None
        return (min(low, 0.0), max(high, 1.0)) if inside else (low, high)
    given = np.asarray(bounds, float)
    if given.shape != (2,) or not np.isfinite(given).all() or given[0] >= given[1]:
        msg = f"bounds must be two numbers, the lower first; they are {bounds}."
        raise ValueError(msg)
    if low < given[0] or high > given[1]:
        msg = (
            f"bounds are {tuple(given.tolist())} and the images range from "
            f"{low:.4g} to {high:.4g}: bounds must hold them."
        )
        raise ValueError(msg)
    return float(given[0]), float(given[1])


def as_floats(classifier: Classifier, images: Any) -> Float[np.ndarray, "n h w c"]:
    """The images, checked, as floats in the space that the classifier takes."""
    checked = check_images(images, classifier.preprocess)
    return np.asarray(to_pixels(jnp.asarray(checked)))


@functools.partial(jax.jit, static_argnames=("objective", "norm"))
def ascend(
    objective: Callable[..., Array],
    classifier: Classifier,
    images: Array,
    start: Array,
    target: Array,
    radius: Array,
    step: Array,
    bounds: tuple[Any, Any],
    norm: str = "linf",
) -> Float[Array, "n h w c"]:
    """One step up the gradient of `objective(classifier, images, target)`, `[n]`.

    Images stay within `radius[i]` of `start[i]` and within the bounds.
    """
    gradient = jax.grad(lambda x: objective(classifier, x, target).sum())(images)
    direction, into_ball = NORMS[norm]
    moved = images + _per_image(step) * direction(gradient)
    inside = start + into_ball(moved - start, _per_image(radius))
    # The start lies within the bounds, so that clipping leads no farther from it.
    return jnp.clip(inside, *bounds)


def climb(
    objective: Callable[..., Array],
    classifier: Classifier,
    start: Array,
    target: Array,
    radius: Array,
    *,
    bounds: tuple[Any, Any],
    norm: str = "linf",
    steps: int,
) -> tuple[Float[Array, "n h w c"], Bool[np.ndarray, " n"]]:
    """Images after so many steps of `ascend`, and whether any step was positive.

    Each is 2.5 / steps of the radius, so that a wall that is met can be followed.
    """
    step = 2.5 / steps * radius
    images, found = start, np.zeros(len(radius), bool)
    for _ in range(steps):
        # A call a step: in a loop XLA's CPU backend takes convolution gradients slowly.
        args = (images, start, target, radius, step, bounds)
        images = ascend(objective, classifier, *args, norm=norm)
        found = found | positive(objective, classifier, images, target)
    return images, np.asarray(found)


@functools.partial(jax.jit, static_argnames="objective")
def positive(
    objective: Callable[..., Array],
    classifier: Classifier,
    images: Array,
    target: Array,
) -> Bool[Array, " n"]:
    """Of which images the objective is above 0."""
    return objective(classifier, images, target) > 0


def logit_gap(classifier: Classifier, images: Array, target: Array) -> Array:
    """By how much the target's logit exceeds the largest other one, `[n]`."""
    z = classifier(images)
    own = jax.nn.one_hot(target, z.shape[1], dtype=bool)
    return jnp.where(own, z, 0).sum(axis=1) - jnp.where(own, -jnp.inf, z).max(axis=1)


def escape(classifier: Classifier, images: Array, taken: Array) -> Float[Array, " n"]:
    """By how much the largest other logit exceeds that of `taken`, `[n]`."""
    return -logit_gap(classifier, images, taken)


def _per_image(values):
    return values[:, None, None, None]


def _length(x):
    return jnp.sqrt(jnp.square(x).sum(axis=(1, 2, 3), keepdims=True))


def _unit(x):
    return x / jnp.maximum(_length(x), 1e-30)


def _into_sphere(change, radius):
    return change * jnp.minimum(1, radius / jnp.maximum(_length(change), 1e-30))


def _into_cube(change, radius):
    return jnp.clip(change, -radius, radius)


# By norm: the steepest direction, and the way back into the ball.
NORMS = {"linf": (jnp.sign, _into_cube), "l2": (_unit, _into_sphere)}
