"""What an audit says of one model, and how sure it is of that."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.metrics.subject import Samples, Subject


class Value(NamedTuple):
    """What an audit says of one model.

    Attributes:
      value: the number; NaN where it has no meaning.
      count: of how many samples it is a share, or None.
      whole: what the share of all would be: 100 for percent, 1 for a fraction.
      error: two standard errors of the value itself, where it is no share.
      censored: whether it is only a bound from below.
    """

    value: float
    count: int | None = None
    whole: float = 100
    error: float = 0.0
    censored: bool = False

    def noise(self, mean: float) -> float:
        """Two standard errors, of a share about the retrained models' mean.

        Where all or none of the samples are meant the binomial error is 0, which is no
        noise: two samples of each kind are then added (Agresti and Coull, 1998).
        """
        if self.count is None:
            return self.error
        share, count = min(max(mean / self.whole, 0.0), 1.0), self.count
        if share in (0.0, 1.0):
            share, count = (share * count + 2) / (count + 4), count + 4
        return 2 * self.whole * math.sqrt(share * (1 - share) / count)


Values = dict[str, Value]
# (model, original, retrained, samples) to its parts; "" is the audit itself.
Function = Callable[[Subject, Subject, Sequence[Subject], Samples], Values]


def class_mean(right: np.ndarray, truth: np.ndarray) -> float:
    """Percent right, the unweighted mean over classes."""
    return 100 * float(np.mean([right[truth == c].mean() for c in np.unique(truth)]))


def mean(values: Iterable[Any]) -> float:
    """Of numbers of any kind."""
    return float(np.mean([float(v) for v in values]))
