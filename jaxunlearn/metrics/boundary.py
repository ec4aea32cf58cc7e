"""What unlearning has done beside the forgotten class, near its decision boundary."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxunlearn.checks import (
    check_choice,
    check_count,
    check_key,
    check_labels,
    check_positive,
)
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.metrics.distances import js_by_sample
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.metrics.perturbation import as_floats, ascend, pixel_bounds
from jaxunlearn.tasks import Data, check_classes, check_data, check_leaves_some

SPOTTER = "as-coded:spotter-unlearning"


@dataclasses.dataclass(frozen=True)
class Neighbourhood:
    """Where over-unlearning is measured; stored beside the number.

    Attributes:
      epsilon: the most that any pixel changes, of pixels in [0, 1].
      noise: "pgd" walks towards the original's best retained class and keeps the step
        nearest to the boundary; "gaussian" draws.
      step: of a step of the walk.
      steps: of the walk.
      sigma: of the Gaussian.
      beta: samples count whose `|p_y - max_{c retained} p_c|` under the original is at
        most this afterwards; 1 takes all.
      variant: "exact", or "as-coded:spotter-unlearning": the walk leads *away* from the
        best retained class, standardised inputs are clipped to [0, 1], all samples
        count.

    Raises:
      TypeError: a number is not one.
      ValueError: a number is not positive, or there is no such noise or variant.
    """

    epsilon: float = 0.03
    noise: str = "pgd"
    step: float = 0.01
    steps: int = 3
    sigma: float = 0.01
    beta: float = 0.9
    variant: str = "exact"

    def __post_init__(self):
        check_choice("noise", self.noise, _NOISES)
        check_choice("variant", self.variant, ("exact", SPOTTER))
        check_count("steps", self.steps)
        for name in ("epsilon", "step", "sigma", "beta"):
            check_positive(name, getattr(self, name))


@dataclasses.dataclass(frozen=True)
class OverUnlearning:
    """How far outputs beside the forgotten class have moved.

    Attributes:
      value: the mean divergence, in nats; NaN where no sample is near the boundary.
      error: two standard errors of that mean.
      samples: near the boundary.
      tried: samples that were perturbed.
      protocol: the neighbourhood.
    """

    value: float
    error: float
    samples: int
    tried: int
    protocol: Neighbourhood


def over_unlearning(
    original: Classifier,
    unlearned: Classifier,
    forget: Data,
    forget_classes: Any,
    *,
    protocol: Neighbourhood | None = None,
    key: Any,
    bounds: Any = None,
    batch_size: int = 256,
) -> OverUnlearning:
    """OU@eps: divergence from the original without its forgotten classes.

        mean_x' JS(softmax(z_o(x') masked), softmax(z_u(x'))),   |x' - x| <= eps

    Forgotten samples are moved towards the decision boundary. There the original, its
    forgotten classes masked, says what its other classes should do; the unlearned
    model's softmax is not masked. The target is the retrained model's value, not 0.

    Args:
      original: the model before unlearning, which alone decides where `x'` lies.
      unlearned: the one to judge.
      forget: samples of the forgotten classes.
      forget_classes: the forgotten classes.
      protocol: None is `Neighbourhood()`.
      key: a `jax.random.key`, for Gaussian noise.
      bounds: of pixels; None is (0, 1) with a `Preprocess`, else the samples' range.
      batch_size: images at a time.

    Raises:
      TypeError: a forget class is not an integer.
      ValueError: no sample, samples of other classes, no class left, or samples beyond
        the bounds.

    Source: Spotter, arXiv 2506.01318.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> kernel = {"kernel": jnp.array([[1.0, 0, 0]]), "bias": jnp.array([0.0, 0.3, 0])}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> data = Data(np.full((2, 1, 1, 1), 0.4, np.float32), [0, 0])
    >>> given = dict(key=jax.random.key(0), bounds=(0, 1))
    >>> 0 < over_unlearning(classifier, classifier, data, [0], **given).value < 0.2
    True
    """
    protocol = Neighbourhood() if protocol is None else protocol
    check_classifier(unlearned, "unlearned")
    boundary = boundary_images(
        original,
        forget,
        forget_classes,
        protocol=protocol,
        key=key,
        bounds=bounds,
        batch_size=batch_size,
    )
    return divergence_at(boundary, unlearned, protocol=protocol, batch_size=batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Boundary:
    """Forgotten samples near the original's decision boundary.

    Attributes:
      images: perturbed ones.
      near: which count.
      expected: the original's probabilities there, forgotten classes masked.
    """

    images: Float[np.ndarray, "n h w c"]
    near: Bool[np.ndarray, " n"]
    expected: Float[np.ndarray, "n k"]


def boundary_images(
    original: Classifier,
    forget: Data,
    forget_classes: Any,
    *,
    protocol: Neighbourhood,
    key: Any,
    bounds: Any = None,
    batch_size: int = 256,
) -> Boundary:
    """The samples of `over_unlearning`, which are the same for all models judged.

    Raises:
      TypeError: as for `over_unlearning`, like ValueError.
    """
    check_classifier(original, "original")
    check_data("forget", forget)
    check_key(key)
    check_count("batch_size", batch_size)
    k = num_classes(original, forget.images)
    classes = check_classes(forget_classes, k)
    check_leaves_some("forget_classes", classes, range(k))
    check_labels("labels of forget", forget.labels, len(forget), k)
    strangers = sorted(set(forget.labels.tolist()) - set(classes))
    if not len(forget) or strangers:
        msg = (
            "forget must be samples of the forgotten classes, one or more; it holds "
            f"{len(forget)}, of classes {sorted(set(forget.labels.tolist()))}, and "
            f"forget_classes are {list(classes)}."
        )
        raise ValueError(msg)
    start = as_floats(original, forget.images)
    if protocol.variant == SPOTTER:
        # The network's own inputs in place of pixels, and the range of pixels for them.
        original, start = _standardised(original), np.asarray(original.prepare(start))
        bounds = (0.0, 1.0)
    else:
        bounds = pixel_bounds(original, start, bounds)
    mask = jnp.zeros(k, bool).at[jnp.array(classes)].set(True)
    n, parts = len(start), []
    noise = np.asarray(jax.random.normal(key, start.shape, start.dtype))
    size = min(batch_size, 1 << (n - 1).bit_length())
    for first in range(0, n, size):
        rows = np.minimum(np.arange(first, first + size), n - 1)
        labels = jnp.asarray(forget.labels[rows], jnp.int32)
        given = jnp.asarray(start[rows]), jnp.asarray(noise[rows]), labels
        moved = _NOISES[protocol.noise](original, *given, mask, bounds, protocol)
        judged = _margins(original, moved, labels, mask)
        parts.append(jax.device_get((moved, *judged)))
    images, gaps, expected = (np.concatenate(p)[:n] for p in zip(*parts, strict=True))
    beta = math.inf if protocol.variant == SPOTTER else protocol.beta
    return Boundary(images, np.abs(gaps) <= beta, expected)


def divergence_at(
    boundary: Boundary,
    unlearned: Classifier,
    *,
    protocol: Neighbourhood,
    batch_size: int = 256,
) -> OverUnlearning:
    """The divergence of a model on images that `boundary_images` has found."""
    if protocol.variant == SPOTTER:
        unlearned = _standardised(unlearned)
    n, parts = len(boundary.images), []
    size = min(batch_size, 1 << (n - 1).bit_length())
    for first in range(0, n, size):
        rows = np.minimum(np.arange(first, first + size), n - 1)
        each = _divergences(unlearned, boundary.images[rows], boundary.expected[rows])
        parts.append(np.asarray(each, np.float64))
    each = np.concatenate(parts)[:n][boundary.near]
    count = each.size
    value = float(each.mean()) if count else math.nan
    error = 2 * float(each.std() / math.sqrt(count)) if count else 0.0
    return OverUnlearning(value, error, count, n, protocol)


def _standardised(classifier):
    """The network behind the preprocessing."""
    return classifier.replace(preprocess=None)


def _walk(original, start, noise, labels, mask, bounds, protocol):
    del noise
    target = _best_retained(original, start, mask)
    toward = -1.0 if protocol.variant == SPOTTER else 1.0
    radius = jnp.full(len(start), protocol.epsilon, start.dtype)
    step = jnp.full(len(start), toward * protocol.step, start.dtype)
    images = start
    best, nearest = start, _margins(original, start, labels, mask)[0]
    for _ in range(protocol.steps):
        args = (images, start, target, radius, step, bounds)
        images = ascend(_log_probability, original, *args)
        gap = _margins(original, images, labels, mask)[0]
        nearer = jnp.abs(gap) < jnp.abs(nearest)
        best = jnp.where(nearer[:, None, None, None], images, best)
        nearest = jnp.where(nearer, gap, nearest)
    return images if protocol.variant == SPOTTER else best


def _draw(original, start, noise, labels, mask, bounds, protocol):
    del original, labels, mask
    change = jnp.clip(protocol.sigma * noise, -protocol.epsilon, protocol.epsilon)
    return jnp.clip(start + change, *bounds)


_NOISES = {"pgd": _walk, "gaussian": _draw}


def _log_probability(classifier, images, target):
    logs = jax.nn.log_softmax(classifier(images), axis=1)
    return jnp.take_along_axis(logs, target[:, None], axis=1)[:, 0]


@jax.jit
def _best_retained(classifier, images, mask):
    return jnp.where(mask[None], -jnp.inf, classifier(images)).argmax(axis=1)


@jax.jit
def _margins(
    classifier, images, labels, mask
) -> tuple[Float[Array, " n"], Float[Array, "n k"]]:
    """By how much the own class leads the best retained one; masked probabilities."""
    z = classifier(images)
    p = jax.nn.softmax(z, axis=1)
    own = jnp.take_along_axis(p, labels[:, None], axis=1)[:, 0]
    best = jnp.where(mask[None], 0, p).max(axis=1)
    return own - best, jax.nn.softmax(jnp.where(mask[None], -jnp.inf, z), axis=1)


@jax.jit
def _divergences(classifier, images, expected):
    return js_by_sample(expected, jax.nn.softmax(classifier(images), axis=1))
