"""The terms of the inversion's objective."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn.capture.inputs import captured_gram, layers
from jaxunlearn.capture.walk import Capture, capture
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.inversion.prior import ImagePrior
from jaxunlearn.nullspace.moments import Moment
from jaxunlearn.nullspace.trees import leaf_test


class Terms(NamedTuple):
    """The unweighted terms of the objective, and its weighted total."""

    total: Array
    cross_entropy: Array
    total_variation: Array
    l2: Array
    feature: Array
    moment: Array
    competition: Array


# Which terms belong to single images, and which to the batch as a whole.
SINGLE = ("cross_entropy", "total_variation", "l2", "competition")
SHARED = ("feature", "moment")


def inversion_terms(
    classifier: Classifier,
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    prior: ImagePrior = ImagePrior(),  # noqa: B008  (frozen)
    *,
    moments: PyTree = None,
    student: Classifier | None = None,
) -> Terms:
    """The objective of `invert` for images in pixel space.

    Args:
      classifier: a `Classifier`.
      images: as the network sees them, with a `Preprocess` in pixel space.
      labels: the class of each.
      prior: weights of the terms.
      moments: as for `invert`.
      student: as for `invert`.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> class Flat(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(3)(x.reshape(x.shape[0], -1))
    >>> images = jnp.ones((2, 4, 4, 1))
    >>> classifier = ju.freeze(Flat(), Flat().init(jax.random.key(0), images))
    >>> float(inversion_terms(classifier, images, jnp.array([0, 1])).l2)
    1.0
    """
    parts, batch_norm = raw_terms(
        classifier, images, labels, moments=moments, student=student
    )
    prior = prior.resolved(
        batch_norm=batch_norm,
        moments=moments is not None,
        student=student is not None,
    )
    terms = Terms(total=weighted(parts, prior), **parts)
    return jax.tree.map(jnp.mean, terms)


def weighted(parts: dict[str, Array], prior: ImagePrior) -> Float[Array, " n"]:
    """The objective of each image; what is shared counts in full for each.

    A term of weight zero has no part in it, even where it is not finite.
    """
    total = parts["cross_entropy"]
    for name in (*SINGLE[1:], *SHARED):
        weight = getattr(prior, name)
        if weight:
            total = total + weight * parts[name]
    return total


def raw_terms(
    classifier: Classifier,
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    *,
    moments: PyTree = None,
    student: Classifier | None = None,
    axis_name: str | None = None,
) -> tuple[dict[str, Array], bool]:
    """Unweighted terms: `[n]` of single images, `[]` of the batch; and if BatchNorm is.

    Args:
      classifier: as for `inversion_terms`, like all that is not named here.
      images: this device's share of the batch.
      labels: likewise.
      moments: as for `invert`.
      student: as for `invert`.
      axis_name: of the devices over which the statistics of the batch are taken; None
        takes those of the images at hand.
    """
    captured = capture(classifier, classifier.prepare(images))
    logits = _at_least_float32(captured.logits)
    # As means over each image, whose mean over images is the mean over all.
    variation = sum(
        jnp.abs(jnp.diff(images, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2)
    )
    parts = {
        "cross_entropy": optax.softmax_cross_entropy_with_integer_labels(
            logits, labels
        ),
        "total_variation": variation,
        "l2": jnp.sqrt(jnp.square(images).sum(-1) + 1e-12).mean(axis=(1, 2)),
        "competition": jnp.zeros(len(images), logits.dtype),
        "feature": feature_distance(classifier.state, captured, axis_name),
        "moment": jnp.zeros((), logits.dtype),
    }
    if student is not None:
        other = _at_least_float32(student(images))
        parts["competition"] = 1 - jensen_shannon(logits, other) / np.log(2)
    if moments is not None:
        parts["moment"] = moment_distance(classifier, captured, moments, axis_name)
    return parts, bool(captured.normalisations)


def feature_distance(
    state: PyTree, captured: Capture, axis_name: str | None = None
) -> Float[Array, ""]:
    """`sum_l |mean_l - running mean_l| + |var_l - running var_l|` over BatchNorms.

    Batch statistics are those of the layers' inputs, over the images of all devices of
    an axis where one is named; zero without BatchNorm.
    """
    leaves = jax.tree.leaves(state)
    distance = jnp.zeros(())
    for key, layer in captured.normalisations.items():
        inputs = _at_least_float32(captured.operands[key][0])
        # Axes of the statistics: slices of a scan, then those of the layer itself.
        slices = [i + 1 for i, kind in enumerate(layer.scans) if kind == "groups"]
        kept = (*slices, *(a + 1 + len(layer.scans) for a in layer.axes))
        over = tuple(a for a in range(inputs.ndim) if a not in kept)
        statistics = _mean_and_variance(inputs, over, axis_name)
        for batch, index in zip(statistics, (layer.mean, layer.variance), strict=True):
            running = _at_least_float32(leaves[index])
            gap = (batch.reshape(running.shape) - running) ** 2
            norms = gap.reshape(*gap.shape[: len(slices)], -1).sum(-1)
            distance += jnp.sqrt(norms + 1e-12).sum()
    return distance


def moment_distance(
    classifier: Classifier,
    captured: Capture,
    moments: PyTree,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """`sum_l |C_l - C'_l|_F / |C'_l|_F` over the layers that have a moment `C'_l`.

    `C_l` is the mean of `x xT` over the rows `x` that meet the weight, likewise `C'_l`.
    The images' own rows come from a forward pass at the default precision: where that
    is TF32 or bfloat16, the distance of the very images is not zero.
    """
    leaves = jax.tree.leaves(moments, is_leaf=leaf_test(Moment))
    distance = jnp.zeros(())
    for layer, wanted in zip(layers(captured, len(leaves)), leaves, strict=True):
        if wanted is None:
            continue
        if isinstance(layer, str):
            msg = f"moments hold a moment of a leaf without input: {layer}."
            raise ValueError(msg)
        found = captured_gram(captured, layer, jnp.ones(len(captured.logits)))
        gram, rows = found.gram, found.rows
        if axis_name is not None:
            gram, rows = lax.psum((gram, rows), axis_name)
        target = wanted.gram / wanted.rows
        gap = jnp.sqrt(jnp.square(gram / rows - target).sum() + 1e-30)
        distance += gap / jnp.sqrt(jnp.square(target).sum())
    return distance


def jensen_shannon(
    first: Float[Array, "n k"], second: Float[Array, "n k"]
) -> Float[Array, " n"]:
    """`(KL(p || m) + KL(q || m)) / 2`, `m = (p + q) / 2`, of two rows of logits.

    In nats; through logarithms, so that a probability of zero does no harm.
    """
    p, q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    m = jnp.logaddexp(p, q) - np.log(2)
    return 0.5 * (jnp.exp(p) * (p - m) + jnp.exp(q) * (q - m)).sum(-1)


def _mean_and_variance(inputs, over, axis_name):
    mean, variance = inputs.mean(over), inputs.var(over)
    if axis_name is None:
        return mean, variance
    # Devices hold equally many images.
    whole = lax.pmean(mean, axis_name)
    return whole, lax.pmean(variance + jnp.square(mean - whole), axis_name)


def _at_least_float32(array):
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
