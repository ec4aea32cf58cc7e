"""How hard samples are to tell from those of other classes.

All but the logits is computed on the host, in float64.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from scipy.special import softmax

from jaxunlearn.checks import as_array, check_labels, check_type
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.independence import num_classes
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.tasks import check_data


@dataclasses.dataclass(frozen=True, eq=False)
class Difficulty:
    """How hard each of `n` samples is for a classifier, or for several on average.

    Attributes:
      margins: `[n]`, `classification_margins`.
      probabilities: `[n, k]`, the softmax of the logits.
      right: `[n]`, the share of the classifiers that are right.
      labels: `[n]`, the true classes.
    """

    margins: Float[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n k"]
    right: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]


def classification_margins(logits: Any, labels: Any) -> Float[np.ndarray, " n"]:
    """By how much the true class's logit exceeds the largest other one.

        z_y - max_{c != y} z_c

    Below 0 a sample is taken for another class. (`margins`, of the audits, has the soft
    maximum in place of the maximum.)

    Args:
      logits: `[n, k]`, finite, of at least two classes.
      labels: true classes, integers `[n]`.

    Returns:
      Float64.

    Raises:
      TypeError: logits are no array of numbers, or labels are not integers.
      ValueError: shapes differ, there are fewer than two classes, a label is none of
        them, or a logit is not finite.

    Source: Crammer and Singer, JMLR 2 (2001).

    >>> classification_margins(np.array([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0]]), [0, 1])
    array([ 0.5, -0.5])
    """
    z, labels = rows_and_labels("logits", logits, labels)
    own = np.eye(z.shape[1], dtype=bool)[labels]
    return z[own] - np.where(own, -np.inf, z).max(axis=1)


def sample_difficulty(
    classifiers: Any,
    data: Any,
    *,
    batch_size: int = 256,
    mesh: Mesh | None = None,
) -> Difficulty:
    """How hard each sample is, by the logits of one classifier or of several.

    Of several, such as training seeds of one network, margins and probabilities are
    unweighted means, so that what is chosen by them does not hang on one of them.
    Samples that a classifier was trained on seem easier to it than others.

    Args:
      classifiers: one, or a list of several, in inference mode.
      data: the samples, such as the training split.
      batch_size: images at a time.
      mesh: as for `evaluate`.

    Raises:
      TypeError: a classifier is none, or `data` no `Data`.
      ValueError: there are no classifiers or no samples, classifiers differ in their
        number of classes, or a label does not exist.
      FloatingPointError: a logit is not finite.

    >>> import flax.linen as nn
    >>> import jax.numpy as jnp
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> kernel = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> data = ju.Data(np.array([1.0, 3.0, 2.0]).reshape(3, 1, 1, 1), [0, 0, 1])
    >>> sample_difficulty(classifier, data).margins
    array([ 2.,  6., -4.])
    """
    check_data("data", data)
    several = [classifiers] if isinstance(classifiers, Classifier) else classifiers
    check_type("classifiers", several, Sequence, "Give one, or a list of several.")
    if not several or not len(data):
        lacking = "no sample" if several else "no classifier"
        msg = f"There is {lacking} to judge difficulty by: give at least one."
        raise ValueError(msg)
    for number, classifier in enumerate(several):
        check_type(f"classifiers[{number}]", classifier, Classifier)
    counts = [num_classes(classifier, data.images) for classifier in several]
    if len({*counts}) > 1 or counts[0] < 2:
        msg = (
            "classifiers must tell the same classes apart, two at least; their logits "
            f"are of {', '.join(map(str, counts))}."
        )
        raise ValueError(msg)
    hint = f"The classifier has {counts[0]} logits."
    check_labels("labels of data", data.labels, len(data), counts[0], hint)
    margins, probabilities, right = [], [], []
    for number, classifier in enumerate(several):
        z = logits(classifier, data.images, batch_size=batch_size, mesh=mesh)
        bad = ~np.isfinite(z).all(axis=1)
        if bad.any():
            msg = (
                f"The logits of classifiers[{number}] are not finite for {bad.sum()} "
                f"of {len(data)} images: it has diverged, and has no margins there."
            )
            raise FloatingPointError(msg)
        margins.append(classification_margins(z, data.labels))
        probabilities.append(softmax(z.astype(np.float64), axis=1))
        right.append(z.argmax(axis=1) == data.labels)
    means = (np.mean(values, axis=0) for values in (margins, probabilities, right))
    return Difficulty(*means, data.labels)


def rows_and_labels(
    name: str, values: Any, labels: Any
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, " n"]]:
    """A row of finite numbers for each sample, in float64, and the true classes."""
    array = np.asarray(as_array(name, values), np.float64)
    if array.ndim != 2 or array.shape[1] < 2:
        msg = (
            f"{name} must be [n, k], a row a sample, of at least two classes; their "
            f"shape is {array.shape}."
        )
        raise ValueError(msg)
    if not np.isfinite(array).all():
        row = int((~np.isfinite(array)).any(axis=1).argmax())
        msg = f"{name} must be finite; those of sample {row} are not."
        raise ValueError(msg)
    return array, np.asarray(check_labels("labels", labels, *array.shape))
