"""ESC: drop the forget set's strongest directions from the last features."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jaxunlearn.methods.baseline import check_whole_classes
from jaxunlearn.methods.edit import Edit, change_head
from jaxunlearn.metrics.layer_features import features
from jaxunlearn.nullspace.linalg import singular_pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class EraseConcept(Edit):
    """Take the leading directions of the forget set's features off the head.

        H = U diag(s) VT,   W <- (I - U_k U_kT) W   (H: features x samples)

    `U_k` are the first `k` columns, of features as they are, uncentred. The projection
    is folded into the head's kernel: the logits are those of the projected features,
    and the network stays the same. No retained data are read. Refused are samples
    without whole classes, whose directions are those of all data.

    Attributes:
      percent: of the directions that is dropped, rounded down; one at least.

    Source: ESC, arXiv 2504.02199, the variant without training. A mean that all classes
    share may be the first direction.

    >>> EraseConcept().percent
    1.5
    """

    percent: float = 1.5

    tuned: ClassVar[str | None] = "percent"
    grid: ClassVar[tuple[float, ...]] = (0.5, 1.0, 1.5, 3.0, 5.0, 10.0, 20.0, 30.0)
    read: ClassVar[tuple[str, ...]] = ("forget",)
    classwise: ClassVar[str] = "drops the directions that features of a class share"

    def __post_init__(self):
        if not 0 < self.percent < 100:
            msg = f"percent must lie in (0, 100); it is {self.percent}."
            raise ValueError(msg)

    def measured(self, classifier, task, key):
        """The directions of the forget set's features, strongest first."""
        del key
        check_whole_classes(task, self)
        rows = features(classifier, task.forget.images)
        return singular_pairs(np.asarray(rows, np.float64).T)[1]

    def edited(self, classifier, task, key, measured):
        """The head off the leading directions, and all else as it was."""
        del key
        count = max(1, math.floor(len(measured) * self.percent / 100))
        leading = measured[:, :count]

        def kernel(matrix):
            old = np.asarray(matrix, np.float64)
            return jnp.asarray(old - leading @ (leading.T @ old), matrix.dtype)

        return change_head(classifier, task.forget.images[:1], kernel)
