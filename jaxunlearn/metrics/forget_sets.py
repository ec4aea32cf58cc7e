"""Forget sets by difficulty: the hardest samples, or the easiest."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxunlearn.checks import as_array, check_choice, check_count, short
from jaxunlearn.metrics.difficulty import rows_and_labels
from jaxunlearn.tasks import check_classes

ORDERS = ("easiest", "hardest")


def by_margin(
    margins: Any, count: Any, *, order: str = "easiest", among: Any = None
) -> Int[np.ndarray, " m"]:
    """The samples of largest margin, or of smallest.

    Of equal margins the earlier sample comes first, so that the choice is determined.

    Args:
      margins: `[n]`, finite; any score that is larger for easier samples.
      count: how many.
      order: "easiest" or "hardest".
      among: a mask `[n]` of the samples to choose from; None is all.

    Returns:
      Their places in ascending order, as `split_by_index` takes them.

    Raises:
      TypeError: margins are no numbers, `count` no integer, or `among` no mask.
      ValueError: shapes differ, a margin is not finite, there are not so many samples,
        or there is no such order.

    >>> by_margin(np.array([0.5, 3.0, -1.0, 0.5]), 2).tolist()
    [0, 1]
    >>> by_margin(np.array([0.5, 3.0, -1.0, 0.5]), 2, order="hardest").tolist()
    [0, 2]
    """
    check_choice("order", order, ORDERS)
    count = check_count("count", count)
    values = np.asarray(as_array("margins", margins), np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        msg = f"margins must be finite, one a sample, [n]; they are {short(margins)}."
        raise ValueError(msg)
    places = np.flatnonzero(_mask(among, len(values)))
    if count > len(places):
        msg = f"count must be at most {len(places)}, the samples to choose from; it is {count}."  # noqa: E501
        raise ValueError(msg)
    signed = values[places] if order == "hardest" else -values[places]
    return np.sort(places[np.argsort(signed, kind="stable")[:count]])


def by_confusion(
    probabilities: Any,
    labels: Any,
    confused_with: Any,
    count: Any,
    *,
    order: str = "hardest",
    among: Any = None,
) -> Int[np.ndarray, " m"]:
    """The samples of other classes that have most of one class's probability.

    Args:
      probabilities: `[n, k]`, as `Difficulty` has them.
      labels: true classes, integers `[n]`.
      confused_with: the class; its own samples are not chosen.
      count: how many.
      order: "hardest", or "easiest" for those that have least of it.
      among: as for `by_margin`.

    Returns:
      Their places in ascending order.

    Raises:
      TypeError: as for `by_margin`, or the class is no integer.
      ValueError: as for `by_margin`, or there is no such class.

    >>> p = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    >>> by_confusion(p, [0, 0, 1], 1, 1).tolist()
    [0]
    """
    p, labels = rows_and_labels("probabilities", probabilities, labels)
    (other,) = check_classes([confused_with], p.shape[1], name="confused_with")
    among = _mask(among, len(p)) & (labels != other)
    return by_margin(-p[:, other], count, order=order, among=among)


def _mask(among: Any, count: int) -> Bool[np.ndarray, " n"]:
    if among is None:
        return np.ones(count, bool)
    mask = np.asarray(as_array("among", among))
    if mask.dtype != bool:
        msg = f"among must be a mask, of true and false; it is of {mask.dtype}."
        raise TypeError(msg)
    if mask.shape != (count,):
        msg = f"among must be a mask of the {count} samples; its shape is {mask.shape}."
        raise ValueError(msg)
    return mask
