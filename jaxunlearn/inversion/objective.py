"""The objective of an inversion: a table of terms, and how much each of them weighs.

A further term is a function, a row of `TERMS` and a weight in `ImagePrior`.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn.capture.convolution import widened
from jaxunlearn.capture.grams import captured_gram
from jaxunlearn.capture.layers import layers
from jaxunlearn.capture.walk import Capture, capture
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.nullspace.moments import Moment
from jaxunlearn.nullspace.trees import leaf_test
from jaxunlearn.serialization import check_fields


@dataclasses.dataclass(frozen=True)
class ImagePrior:
    """Weights of what is added to the cross-entropy (whose weight is 1).

    Attributes:
      total_variation: of `mean|dx| + mean|dy|` over neighbouring pixels.
      l2: of the mean over pixels of the norm over channels.
      feature: of `sum_l |mean_l - running mean_l| + |var_l - running var_l|`, Euclidean
        norms over BatchNorm layers `l`, mean and (biased) variance of the layer's input
        over the batch. None: 0.1 where the network has BatchNorm.
      moment: of `sum_l |C_l - C'_l| / |C'_l|`, Frobenius norms over the layers whose
        second moment is given, both moments as means over rows. None: 0.1 where some
        are given.
      competition: of `1 - JS / ln 2`, JS the Jensen-Shannon divergence between the
        probabilities of the classifier and of a student: images on which the two agree
        cost most. None: 1 where a student is given.

    Raises:
      TypeError: a weight is no number.
      ValueError: a weight is negative or not finite.

    Source: DeepInversion (arXiv 1912.08795) for all but the moments; the first three
    weights are Brainwash's (arXiv 2311.11995), which shares authors with CovarNav, the
    other two our own.
    """

    total_variation: float = 1e-3
    l2: float = 1e-1
    feature: float | None = None
    moment: float | None = None
    competition: float | None = None

    def __post_init__(self):
        check_fields(self)
        for name, value in vars(self).items():
            if value is not None and not (np.isfinite(value) and value >= 0):
                msg = (
                    f"ImagePrior.{name} must be finite and not negative; it is {value}."  # noqa: E501
                )
                raise ValueError(msg)

    @property
    def weights(self) -> dict[str, float | None]:
        """Of all terms, by name."""
        return {"cross_entropy": 1.0, **vars(self)}

    def resolved(self, present: Collection[str]) -> "ImagePrior":
        """With numbers for None, given the names of the terms that there can be.

        Raises:
          ValueError: a term has a weight and nothing to compare with.
        """
        weights = {}
        for name, given in vars(self).items():
            term = TERMS[name]
            if given and name not in present:
                msg = f"ImagePrior.{name} is {given}, and {term.missing}, or leave the weight out."  # noqa: E501
                raise ValueError(msg)
            weight = term.weight if given is None else given
            weights[name] = weight if name in present else 0.0
        return dataclasses.replace(self, **weights)


class References(NamedTuple):
    """What images are compared with, besides the classifier's own statistics."""

    moments: PyTree = None  # of layers' inputs, like params
    student: Classifier | None = None


class TermInputs(NamedTuple):
    """What a term is a function of."""

    classifier: Classifier
    images: Float[Array, "n h w c"]  # in pixel space; one device's share of the batch
    labels: Int[Array, " n"]
    references: References
    captured: Capture  # the inputs of the layers
    logits: Float[Array, "n k"]  # at least float32
    axis_name: str | None  # of the devices that share the batch


@dataclasses.dataclass(frozen=True)
class Term:
    """A row of `TERMS`.

    The function gives `Float[n]`, a value for each image, or `Float[]`, one for the
    batch, the same on all devices; None if there is nothing to compare with.
    """

    function: Callable[[TermInputs], Array | None]
    weight: float = 0.0  # where `ImagePrior` has None
    missing: str = "there is nothing to compare with"  # why, and what to do


def term_values(
    classifier: Classifier,
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    references: References,
    axis_name: str | None = None,
) -> dict[str, Array]:
    """Unweighted values of all terms for which there is something to compare with."""
    captured = capture(classifier, classifier.prepare(images))
    logits = widened(captured.logits)
    inputs = TermInputs(
        classifier, images, labels, references, captured, logits, axis_name
    )
    values = {name: term.function(inputs) for name, term in TERMS.items()}
    return {name: value for name, value in values.items() if value is not None}


def objective(values: dict[str, Array], prior: ImagePrior) -> Float[Array, " n"]:
    """The weighted sum for each image; what is of the batch counts in full for each.

    A term of weight zero has no part in it, even where it is not finite.
    """
    weights = prior.weights
    return sum(weights[n] * value for n, value in values.items() if weights[n])


def inversion_terms(
    classifier: Classifier,
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    prior: ImagePrior = ImagePrior(),  # noqa: B008  (frozen)
    *,
    moments: PyTree = None,
    student: Classifier | None = None,
) -> dict[str, Float[Array, ""]]:
    """The objective of `invert` as "total", and its unweighted terms by name.

    Terms for which there is nothing to compare with are left out.

    Args:
      classifier: a `Classifier`.
      images: as the network sees them, with a `Preprocess` in pixel space.
      labels: the class of each.
      prior: weights of the terms.
      moments: as for `invert`.
      student: as for `invert`.

    Raises:
      ValueError: a term has a weight and nothing to compare with.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> class Flat(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(3)(x.reshape(x.shape[0], -1))
    >>> images = jnp.ones((2, 4, 4, 1))
    >>> classifier = ju.freeze(Flat(), Flat().init(jax.random.key(0), images))
    >>> terms = inversion_terms(classifier, images, jnp.array([0, 1]))
    >>> list(terms), float(terms["l2"])
    (['total', 'cross_entropy', 'total_variation', 'l2'], 1.0)
    """
    values = term_values(classifier, images, labels, References(moments, student))
    total = objective(values, prior.resolved(values))
    return {name: x.mean() for name, x in {"total": total, **values}.items()}


# The terms.


def cross_entropy(inputs: TermInputs) -> Float[Array, " n"]:
    """`-log p(label)`."""
    return optax.softmax_cross_entropy_with_integer_labels(inputs.logits, inputs.labels)


def total_variation(inputs: TermInputs) -> Float[Array, " n"]:
    """`mean|dx| + mean|dy|`, whose mean over images is the mean over all pixels."""
    steps = (jnp.diff(inputs.images, axis=axis) for axis in (1, 2))
    # Images of one row or one column have no neighbours that way.
    means = [jnp.abs(s).mean(axis=(1, 2, 3)) for s in steps if s.size]
    return sum(means, jnp.zeros(len(inputs.images)))


def l2(inputs: TermInputs) -> Float[Array, " n"]:
    """The mean over pixels of the norm over channels."""
    return jnp.sqrt(jnp.square(inputs.images).sum(-1) + 1e-12).mean(axis=(1, 2))


def competition(inputs: TermInputs) -> Float[Array, " n"] | None:
    """`1 - JS / ln 2` of the classifier's and the student's probabilities."""
    student = inputs.references.student
    if student is None:
        return None
    other = widened(student(inputs.images))
    return 1 - _jensen_shannon(inputs.logits, other) / np.log(2)


def feature(inputs: TermInputs) -> Float[Array, ""] | None:
    """`sum_l |mean_l - running mean_l| + |var_l - running var_l|` over BatchNorms.

    Batch statistics are those of the layers' inputs, over the images of all devices.
    """
    captured = inputs.captured
    if not captured.normalisations:
        return None
    leaves = jax.tree.leaves(inputs.classifier.state)
    distance = jnp.zeros(())
    for key, layer in captured.normalisations.items():
        rows = widened(captured.operands[key][0])
        # Axes of the statistics: slices of a scan, then those of the layer itself.
        slices = [i + 1 for i, kind in enumerate(layer.scans) if kind == "groups"]
        kept = (*slices, *(a + 1 + len(layer.scans) for a in layer.axes))
        over = tuple(a for a in range(rows.ndim) if a not in kept)
        statistics = _mean_and_variance(rows, over, inputs.axis_name)
        for batch, index in zip(statistics, (layer.mean, layer.variance), strict=True):
            running = widened(leaves[index])
            gap = (batch.reshape(running.shape) - running) ** 2
            norms = gap.reshape(*gap.shape[: len(slices)], -1).sum(-1)
            distance += jnp.sqrt(norms + 1e-12).sum()
    return distance


def moment(inputs: TermInputs) -> Float[Array, ""] | None:
    """`sum_l |C_l - C'_l|_F / |C'_l|_F` over the layers that have a moment `C'_l`.

    `C_l` is the mean of `x xT` over the rows `x` that meet the weight, likewise `C'_l`.
    The images' own rows come from a forward pass at the default precision: where that
    is TF32 or bfloat16, the distance of the very images is not zero.
    """
    if inputs.references.moments is None:
        return None
    captured = inputs.captured
    leaves = jax.tree.leaves(inputs.references.moments, is_leaf=leaf_test(Moment))
    distance = jnp.zeros(())
    for layer, wanted in zip(layers(captured, len(leaves)), leaves, strict=True):
        if wanted is None:
            continue
        if isinstance(layer, str):
            msg = f"moments hold a moment of a leaf without input: {layer}."
            raise ValueError(msg)
        own = captured_gram(captured, layer, jnp.ones(len(captured.logits)))
        gram, rows = own.gram, own.rows
        if inputs.axis_name is not None:
            gram, rows = lax.psum((gram, rows), inputs.axis_name)
        target = wanted.gram / wanted.rows
        gap = jnp.sqrt(jnp.square(gram / rows - target).sum() + 1e-30)
        distance += gap / jnp.sqrt(jnp.square(target).sum())
    return distance


TERMS = {
    "cross_entropy": Term(cross_entropy),
    "total_variation": Term(total_variation),
    "l2": Term(l2),
    "competition": Term(
        competition,
        1.0,
        "there is no student to compete with. Give one (student=, another Classifier)",
    ),
    "feature": Term(
        feature,
        1e-1,
        "the network has no BatchNorm whose running statistics its images could "
        "match. Give second moments of its layers' inputs instead (moments=)",
    ),
    "moment": Term(
        moment,
        1e-1,
        "there are no moments to match. Give those of some layers (moments=, as "
        "second_moments returns them)",
    ),
}


def _jensen_shannon(first, second):
    """`(KL(p || m) + KL(q || m)) / 2`, `m = (p + q) / 2`, of rows of logits."""
    # Through logarithms, so that a probability of zero does no harm.
    p, q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    m = jnp.logaddexp(p, q) - np.log(2)
    return 0.5 * (jnp.exp(p) * (p - m) + jnp.exp(q) * (q - m)).sum(-1)


def _mean_and_variance(rows, over, axis_name):
    mean, variance = rows.mean(over), rows.var(over)
    if axis_name is None:
        return mean, variance
    # Devices hold equally many images.
    whole = lax.pmean(mean, axis_name)
    return whole, lax.pmean(variance + jnp.square(mean - whole), axis_name)
