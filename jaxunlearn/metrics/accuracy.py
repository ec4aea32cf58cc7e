"""Accuracy, class by class, and how far logits have moved.

Everything here runs on the host, in NumPy.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn.checks import check_labels


def confusion_matrix(
    labels: Array | np.ndarray, predictions: Array | np.ndarray, num_classes: int
) -> Int[np.ndarray, "k k"]:
    """How many samples of class `i` (row) are taken for class `j` (column).

    Args:
      labels: true classes, integers `[n]`.
      predictions: predicted classes, integers `[n]`.
      num_classes: `k`.

    Raises:
      TypeError: either is not of integers.
      ValueError: shapes differ, or a class is not one of 0 to k - 1.

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape:
        msg = (
            "labels and predictions must be one class number a sample each; their "
            f"shapes are {labels.shape} and {predictions.shape}."
        )
        raise ValueError(msg)
    for name, values in (("labels", labels), ("predictions", predictions)):
        check_labels(name, values, len(labels), num_classes)
    pairs = labels.astype(np.int64) * num_classes + predictions
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def class_accuracy(confusion: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Accuracy of each class in percent, NaN for a class without samples.

        100 * confusion[i, i] / sum_j confusion[i, j]

    >>> class_accuracy(np.array([[3, 1], [0, 0]])).tolist()
    [75.0, nan]
    """
    counts = confusion.sum(axis=1)
    share = np.diag(confusion) / np.maximum(counts, 1)
    return np.where(counts > 0, 100 * share, np.nan)


def relative_change(before: Any, after: Any) -> float:
    """How far an array has moved, relative to its size, in float64.

        |after - before|_F / |before|_F

    Of retained logits before and after unlearning it is the headline of a projected
    method: accuracies can agree where the network has changed a great deal.

    Args:
      before: an array of any shape.
      after: another of that shape.

    Raises:
      ValueError: shapes differ, or `before` is zero.

    >>> relative_change(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    0.1
    """
    before, after = (np.asarray(a, dtype=np.float64) for a in (before, after))
    if before.shape != after.shape:
        msg = (
            "before and after must have the same shape; they have "
            f"{before.shape} and {after.shape}."
        )
        raise ValueError(msg)
    size = np.linalg.norm(before.ravel())
    if size == 0:
        msg = (
            "before is zero (or empty), so that a change relative to it has no meaning."  # noqa: E501
        )
        raise ValueError(msg)
    return float(np.linalg.norm((after - before).ravel()) / size)
