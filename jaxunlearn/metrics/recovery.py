"""How small a change of the input brings a forgotten class back."""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxunlearn.checks import check_choice, check_count, check_labels
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.metrics.evaluation import logits, num_classes
from jaxunlearn.metrics.perturbation import (
    NORMS,
    as_floats,
    climb,
    escape,
    logit_gap,
    pixel_bounds,
    positive,
)
from jaxunlearn.tasks import Data, check_data

# Radii to an octave: each is 9 % larger than the one before.
_PER_OCTAVE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class RecoveryRadius:
    """Medians of radii; of a class out of reach the largest tried, a bound.

    Attributes:
      forgotten: that brings samples of the forgotten classes back to their class.
      retained: that changes what retained samples are taken for.
      censored: whether either median is only a bound from below.
      forgotten_radii: of every sample; infinite where the largest did not do.
      retained_radii: likewise.
      norm: "linf" or "l2".
      largest: the radius that was tried last.
    """

    forgotten: float
    retained: float
    censored: tuple[bool, bool]
    forgotten_radii: Float[np.ndarray, " n"]
    retained_radii: Float[np.ndarray, " m"]
    norm: str
    largest: float

    @property
    def selectivity(self) -> float:
        """`forgotten / retained`: a fragile network forgets nothing by that."""
        return self.forgotten / self.retained if self.retained else math.nan


def recovery_radius(
    classifier: Classifier,
    forgotten: Data,
    retained: Data,
    *,
    norm: str = "linf",
    steps: int = 20,
    levels: int = 64,
    bounds: Any = None,
    batch_size: int = 256,
) -> RecoveryRadius:
    """The smallest change of an image that recovers its forgotten class.

        min |d|   such that   argmax z(x + d) = y,   x + d within the bounds

    by projected ascent of `z_y - max_{c != y} z_c`, bisected over a fixed grid of radii
    (an upper bound, as any attack gives). Beside it, for retained samples, the smallest
    change after which they are taken for *any* other class. Both are small where a
    network is fragile, so that the first alone says nothing of forgetting.

    Args:
      classifier: the one to attack.
      forgotten: samples of the forgotten classes with their true labels, at best held
        out.
      retained: samples of retained classes; their labels do not matter.
      norm: "linf" or "l2", of pixels in [0, 1] where there is a `Preprocess`.
      steps: of ascent, each 2.5 / steps of the radius.
      levels: how many radii, 9 % apart; the largest spans the bounds.
      bounds: of pixels; None is (0, 1) with a `Preprocess`, else the range of the
        forgotten samples.
      batch_size: images at a time.

    Raises:
      ValueError: no samples, no such norm, or samples beyond the bounds.

    Source: the recovery radius of ForgetGate, and its control of global fragility.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> kernel = {"kernel": jnp.array([[1.0, 0.0]]), "bias": jnp.array([0.0, 0.5])}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> zero, one = (Data(np.full((2, 1, 1, 1), v), [0, 0]) for v in (0.25, 1.0))
    >>> radius = recovery_radius(classifier, zero, one, bounds=(0, 1))
    >>> 0.25 <= radius.forgotten < 0.28, 0.5 <= radius.retained < 0.55
    (True, True)
    """
    check_classifier(classifier)
    check_choice("norm", norm, NORMS)
    check_count("steps", steps)
    check_count("levels", levels)
    check_count("batch_size", batch_size)
    for name, data in (("forgotten", forgotten), ("retained", retained)):
        check_data(name, data)
        if not len(data):
            msg = f"{name} holds no sample, and a radius is a median over samples."
            raise ValueError(msg)
    k = num_classes(classifier, forgotten.images)
    check_labels("labels of forgotten", forgotten.labels, len(forgotten), k)
    images = as_floats(classifier, forgotten.images)
    others = as_floats(classifier, retained.images)
    # One range for both, so that their radii are of one grid.
    joint = np.array(
        [f(g(images), g(others)) for f, g in ((min, np.min), (max, np.max))]
    )
    bounds = pixel_bounds(classifier, joint, bounds)
    largest = bounds[1] - bounds[0]
    if norm == "l2":
        largest *= math.sqrt(math.prod(images.shape[1:]))
    radii = largest * 2.0 ** ((np.arange(levels) - levels + 1) / _PER_OCTAVE)
    search = functools.partial(
        _radii,
        classifier,
        radii=radii,
        bounds=bounds,
        norm=norm,
        steps=steps,
        batch_size=batch_size,
    )
    back = search(images, forgotten.labels, objective=logit_gap)
    taken = logits(classifier, others, batch_size=batch_size).argmax(axis=1)
    away = search(others, taken, objective=escape)
    medians = [float(np.median(values)) for values in (back, away)]
    censored = tuple(math.isinf(value) for value in medians)
    forgotten_median, retained_median = (min(value, largest) for value in medians)
    pair = forgotten_median, retained_median
    return RecoveryRadius(*pair, censored, back, away, norm, largest)


def _radii(classifier, images, target, *, batch_size, **how):
    n, parts = len(images), []
    size = min(batch_size, 1 << (n - 1).bit_length())
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        parts.append(_bisected(classifier, images[rows], target[rows], **how))
    return np.concatenate(parts)[:n]


def _bisected(classifier, images, target, *, objective, radii, **how):
    """The smallest radius of the grid at which the objective turns positive."""
    start, target = jnp.asarray(images), jnp.asarray(target, jnp.int32)
    attack = functools.partial(climb, objective, classifier, start, target, **how)
    already = np.asarray(positive(objective, classifier, start, target))
    low = np.zeros(len(images), int)
    high = np.full(len(images), len(radii))
    for _ in range(len(radii).bit_length()):
        middle = np.minimum((low + high) // 2, len(radii) - 1)
        # What is settled is attacked along with the rest, and not looked at.
        _, found = attack(jnp.asarray(radii[middle], images.dtype))
        active = low < high
        high = np.where(active & found, middle, high)
        low = np.where(active & ~found, middle + 1, low)
    return np.where(already, 0.0, np.append(radii, np.inf)[high])
