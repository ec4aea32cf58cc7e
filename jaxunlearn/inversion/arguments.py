"""What the arguments of an inversion must be, said before anything is computed."""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from jaxunlearn.capture.grams import layouts
from jaxunlearn.capture.layers import unmatched_state
from jaxunlearn.checks import (
    check_count,
    check_finite,
    check_key,
    check_labels,
    check_optimizer,
)
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.independence import check_program
from jaxunlearn.classifier.network import REFUSALS
from jaxunlearn.inversion.objective import TERMS, ImagePrior, References, term_values
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.nullspace.moments import Moment
from jaxunlearn.nullspace.trees import map_leaves


def bounds_of(
    classifier: Classifier, bounds: tuple[float, float] | None
) -> tuple[np.float32, np.float32]:
    """The box for every pixel, infinite where there is none."""
    if bounds is None:
        pixels = classifier.preprocess is not None
        bounds = (0.0, 1.0) if pixels else (-np.inf, np.inf)
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        msg = f"bounds must be (low, high) with low < high; they are {bounds}."
        raise ValueError(msg)
    return np.float32(bounds[0]), np.float32(bounds[1])


def checked_arguments(
    classifier: Classifier,
    labels: ArrayLike | Sequence[int],
    image_shape: tuple[int, ...],
    *,
    key: Array,
    prior: ImagePrior,
    references: References,
    start: Any = None,
    jitter: int,
    **counts: int,
) -> tuple[Int[np.ndarray, " n"], ImagePrior]:
    """Labels as an array, and the prior with numbers for all its weights."""
    check_key(key)
    for name, value in counts.items():
        check_count(name, value)
    if not isinstance(jitter, int | np.integer) or jitter < 0:
        msg = f"jitter must be 0 or more pixels; it is {jitter}."
        raise ValueError(msg)
    whole = all(isinstance(n, int | np.integer) for n in image_shape)
    if len(image_shape) != 3 or not whole or min(image_shape) < 1:
        msg = f"image_shape must be (h, w, c); it is {image_shape}."
        raise ValueError(msg)
    sample = np.full((1, *image_shape), 0.5, np.float32)
    classes = _classes("network", classifier, sample)
    values = np.asarray(labels)
    if values.ndim != 1 or values.size == 0:
        msg = f"labels must be one integer an image, at least one; their shape is {values.shape}."  # noqa: E501
        raise ValueError(msg)
    hint = f"The network has {classes} logits."
    values = check_labels("labels", values, len(values), classes, hint).astype(np.int32)
    _check_references(classifier, references, classes, sample)
    present = _traced_terms.eval_shape(
        classifier, sample, values[:1], references, tuple(TERMS.items())
    )
    if prior.feature != 0:
        _warn_of_state(classifier, sample)
    prior = prior.resolved(present)
    if start is not None:
        expected, kind = (len(values), *image_shape), jnp.result_type(start)
        if jnp.shape(start) != expected or not jnp.issubdtype(kind, jnp.floating):
            msg = (
                f"start must be floating-point images of shape {expected}; it is "
                f"{kind} of shape {jnp.shape(start)}."
            )
            raise ValueError(msg)
        check_finite(start)
    check_program(classifier, sample)
    return values, prior


def _warn_of_state(classifier, sample) -> None:
    """Say which statistics the feature term leaves out."""
    missed = unmatched_state(classifier, sample)
    if missed:
        more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
        msg = (
            f"The feature term leaves out {', '.join(missed[:5])}{more}: the logits "
            "depend on these state leaves, and no BatchNorm was recognised that "
            "normalises its input by them. ImagePrior(feature=0) does without it; "
            "moments= takes statistics of any layer."
        )
        warnings.warn(msg, stacklevel=4)


@functools.partial(jax.jit, static_argnums=4)
def _traced_terms(classifier, images, labels, references, table):
    """Traced once for each network and table; nothing is computed."""
    del table
    return term_values(classifier, images, labels, references)


def _classes(name, classifier, sample) -> int:
    classifier.prepare(sample)
    try:
        return num_classes(classifier, sample)
    except REFUSALS as error:
        first = str(error).strip().partition("\n")[0]
        msg = (
            f"The {name} cannot take images of image_shape {sample.shape[1:]} "
            f"({first}): give the shape that it was trained on."
        )
        raise ValueError(msg) from error


def check_image_optimizer(optimizer: Any, image_shape: tuple[int, ...]) -> None:
    """Refuse what is no optimizer, and one that asks for more than gradients."""
    check_optimizer(optimizer)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    state = jax.eval_shape(optimizer.init, images)
    try:
        jax.eval_shape(optimizer.update, images, state, images)
    except TypeError as error:
        msg = (
            "optimizer must get along with gradients and images alone; this one does "
            f"not ({error}). Adam and SGD do."
        )
        raise ValueError(msg) from error


def _check_references(classifier, references, classes, sample) -> None:
    moments, student = references
    if moments is not None:
        given = {"the classifier's params": layouts(classifier, sample)}
        map_leaves(_check_moment, Moment, "moments", moments, **given)
    if student is not None:
        others = _classes("student", student, sample)
        if others != classes:
            msg = (
                f"student tells {others} classes apart and the classifier {classes}: "
                "they must be the same."
            )
            raise ValueError(msg)


def _check_moment(name: str, moment: Moment, layout: Any) -> None:
    if moment.classes is not None:
        msg = f"moments hold a class axis at {name}: add classes up with sum_classes first."  # noqa: E501
        raise ValueError(msg)
    if moment.layout != layout:
        msg = (
            f"moments at {name} are of a weight read as {moment.layout}, and the "
            f"classifier's is read as {layout}: take them from this network."
        )
        raise ValueError(msg)
    size = float(np.square(np.asarray(moment.gram, np.float64)).sum())
    if not (np.isfinite(size) and size > 0 and float(moment.rows) > 0):
        msg = f"moments at {name} are zero or not finite: take them from images that reach it, or put None there."  # noqa: E501
        raise ValueError(msg)
