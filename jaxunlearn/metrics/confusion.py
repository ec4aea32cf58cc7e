"""Which classes are hard to tell from which others."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxunlearn.checks import check_type
from jaxunlearn.metrics.difficulty import Difficulty, rows_and_labels
from jaxunlearn.tasks import check_classes


@dataclasses.dataclass(frozen=True)
class ClassDifficulty:
    """How hard a class is to tell from others.

    Attributes:
      number: of the class.
      samples: how many it has.
      accuracy: in percent.
      median_margin: over its samples.
      confusion: its mean probability, in [0, 1], of all retained classes together.
      confused_with: the retained class of which it has most.
      mass: its mean probability of that one, in [0, 1].
    """

    number: int
    samples: int
    accuracy: float
    median_margin: float
    confusion: float
    confused_with: int
    mass: float


def class_confusion(probabilities: Any, labels: Any) -> Float[np.ndarray, "k k"]:
    """The mean probability that samples of a class (row) have of each other class.

        M_cd = mean_{i: y_i = c} p_i(d) for c != d,   M_cc = 0

    Unlike counts of wrong answers it tells classes apart where a network is right on
    nearly all of its training samples.

    Args:
      probabilities: `[n, k]`, as `Difficulty` has them.
      labels: true classes, integers `[n]`.

    Returns:
      NaN in the row of a class without samples.

    Raises:
      TypeError: probabilities are no array of numbers, or labels are not integers.
      ValueError: shapes differ, or a label or probability is none.

    >>> class_confusion(np.array([[0.6, 0.4], [0.8, 0.2]]), [0, 0]).round(6).tolist()
    [[0.0, 0.3], [nan, nan]]
    """
    p, labels = rows_and_labels("probabilities", probabilities, labels)
    k = p.shape[1]
    means = np.full((k, k), np.nan)
    for c in np.unique(labels):
        means[c] = p[labels == c].mean(axis=0)
        means[c, c] = 0
    return means


def class_difficulties(
    difficulty: Difficulty, forget_classes: Iterable = ()
) -> list[ClassDifficulty]:
    """Every class that has samples, from the least to the most confused.

    Classes are ordered by their mean probability of all retained classes,

        sum_{d != c, d retained} M_cd

    with `M` that of `class_confusion`; of equal ones the smaller number comes first.

    Args:
      difficulty: of samples, by `sample_difficulty`.
      forget_classes: classes that go together: confusion with them does not count.

    Raises:
      TypeError: `difficulty` is none, or a class no integer.
      ValueError: a class does not exist, or no other is left.

    >>> p = np.array([[0.6, 0.4], [0.8, 0.2], [0.1, 0.9]])
    >>> judged = Difficulty(np.ones(3), p, np.ones(3), np.array([0, 0, 1]))
    >>> [(c.number, round(c.confusion, 6)) for c in class_difficulties(judged)]
    [(1, 0.1), (0, 0.3)]
    """
    check_type("difficulty", difficulty, Difficulty, "sample_difficulty makes one.")
    masses = class_confusion(difficulty.probabilities, difficulty.labels)
    k = len(masses)
    gone = check_classes(forget_classes, k)
    retained = ~np.isin(np.arange(k), gone)
    rows = []
    for c in map(int, np.unique(difficulty.labels)):
        own = difficulty.labels == c
        kept = retained & (np.arange(k) != c)
        if not kept.any():
            msg = f"forget_classes leaves class {c} no other that is retained: name fewer."  # noqa: E501
            raise ValueError(msg)
        near = int(np.where(kept, masses[c], -math.inf).argmax())
        rows.append(
            ClassDifficulty(
                number=c,
                samples=int(own.sum()),
                accuracy=float(100 * difficulty.right[own].mean()),
                median_margin=float(np.median(difficulty.margins[own])),
                confusion=float(masses[c, kept].sum()),
                confused_with=near,
                mass=float(masses[c, near]),
            )
        )
    return sorted(rows, key=lambda row: (row.confusion, row.number))
