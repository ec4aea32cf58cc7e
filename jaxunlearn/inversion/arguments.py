"""What the arguments of an inversion must be, said before anything is computed."""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from jaxunlearn import parallel
from jaxunlearn.capture.grams import layouts
from jaxunlearn.capture.layers import unmatched_state
from jaxunlearn.checks import (
    as_array,
    as_integer,
    as_number,
    check_count,
    check_eager,
    check_finite,
    check_key,
    check_labels,
    check_optimizer,
    check_type,
    short,
)
from jaxunlearn.classifier.classifier import Classifier, Preprocess, check_images
from jaxunlearn.classifier.independence import check_program
from jaxunlearn.classifier.network import REFUSALS
from jaxunlearn.inversion.objective import TERMS, ImagePrior, References, term_values
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.nullspace.moments import Moment
from jaxunlearn.nullspace.trees import map_leaves

# Schedules count steps in float32.
_MOST_STEPS = 2**24


def bounds_of(
    classifier: Classifier, bounds: tuple[float, float] | None
) -> tuple[np.float32, np.float32]:
    """The box for every pixel, infinite where there is none."""
    check_type("classifier", classifier, Classifier, "freeze(model, ...) makes one.")
    pixels = classifier.preprocess is not None
    if bounds is None:
        bounds = (0.0, 1.0) if pixels else (-np.inf, np.inf)
    try:
        pair = (None, None) if np.ma.is_masked(bounds) else bounds
        with np.errstate(over="ignore"):
            # Where it is no number, None becomes NaN.
            low, high = (np.array(as_number(x), np.float32)[()] for x in pair)
    except (TypeError, ValueError):  # it cannot be iterated over, or is no pair
        low = high = np.float32(np.nan)
    if not low < high:
        msg = f"bounds must be (low, high) with low < high; they are {short(bounds)}."
        raise ValueError(msg)
    if pixels:
        box = np.array([low, high], np.float32).reshape(1, 1, 2, 1)
        try:
            check_images(box, Preprocess(0.0, 1.0))
        except ValueError as error:
            msg = (
                f"bounds are {short(bounds)}, and the classifier has a Preprocess, for "
                "which pixels lie in [0, 1]: give bounds within."
            )
            raise ValueError(msg) from error
    return low, high


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
    steps: int = 1,
    batch_size: int = 1,
) -> tuple[Int[np.ndarray, " n"], ImagePrior]:
    """Labels as an array, and the prior with numbers for all its weights."""
    check_eager("invert", key, classifier, labels, start, references)
    check_type("prior", prior, ImagePrior)
    check_type("student", references.student, Classifier, optional=True)
    check_key(key)
    for name, value in {"steps": steps, "batch_size": batch_size}.items():
        check_count(name, value)
    if steps > _MOST_STEPS:
        msg = f"steps must be at most {_MOST_STEPS:,}; it is {short(steps)}."
        raise ValueError(msg)
    pixels = as_integer(jitter)
    if pixels is None or pixels < 0:
        msg = f"jitter must be 0 or more pixels; it is {short(jitter)}."
        raise ValueError(msg)
    values = _labels(labels)
    shape = _shape(image_shape, len(values))
    sample = np.full((1, *shape), 0.5, np.float32)
    classes = _classes("network", classifier, sample)
    hint = f"The network has {classes} logits."
    values = check_labels("labels", values, len(values), classes, hint).astype(np.int32)
    _check_references(classifier, references, classes, sample)
    present = traced_terms.eval_shape(
        classifier, sample, values[:1], references, tuple(TERMS.items())
    )
    if prior.feature != 0:
        _warn_of_state(classifier, sample)
    prior = prior.resolved(present)
    if start is not None:
        expected = (len(values), *shape)
        if start.shape != expected or not jnp.issubdtype(start.dtype, jnp.floating):
            msg = f"start must be floating-point images of shape {expected}; it is {short(start)}."  # noqa: E501
            raise ValueError(msg)
        check_finite(start)
        check_images(start, classifier.preprocess)
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


def _labels(labels) -> np.ndarray:
    values = np.asarray(as_array("labels", labels))
    if values.ndim != 1 or values.size == 0:
        msg = (
            "labels must be one integer an image, at least one; their shape is "
            f"{values.shape}."
        )
        raise ValueError(msg)
    return values


def _shape(image_shape, count) -> tuple[int, ...]:
    """Of an image, as integers, where so many of them fit into memory."""
    try:
        shape = tuple(as_integer(n) for n in image_shape)
    except TypeError:  # it cannot be iterated over
        shape = ()
    if len(shape) != 3 or None in shape or min(shape) < 1:
        msg = f"image_shape must be (h, w, c); it is {short(image_shape)}."
        raise ValueError(msg)
    needed, free = 4 * count * math.prod(shape), parallel.free_host_memory()
    if needed > free:
        msg = (
            f"{count} images of image_shape {short(image_shape)} take {needed:.3g} "
            f"bytes, and {free:.3g} are free: take fewer or smaller ones."
        )
        raise ValueError(msg)
    return shape


@functools.partial(jax.jit, static_argnums=4)
def traced_terms(classifier, images, labels, references, table):
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
