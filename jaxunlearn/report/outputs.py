"""Accuracies and confusions, read from records or taken anew."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.methods.multiply_adds import Costs
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.report.contents import Contents, MissingError
from jaxunlearn.report.limits import Limits
from jaxunlearn.tasks import Data

# A quarter of a minute of two cores, over all models.
_MULTIPLY_ADDS = 5e11
_FEWEST = 64


class Evaluated(NamedTuple):
    """Of a model on test data.

    Attributes:
      per_class: in percent; NaN for a class without samples.
      confusion: how many of class `i` (row) are taken for class `j`.
    """

    per_class: np.ndarray
    confusion: np.ndarray


def evaluations(contents: Contents, limits: Limits) -> Mapping[str, Evaluated]:
    """By the model's name; those of its record where there are some."""
    found = {}
    for model in contents.models:
        if (stored := model.record.get("test")) is not None:
            found[model.name] = _of_record(stored)
        elif model.classifier is not None and contents.samples is not None:
            test = contents.samples.test
            test = part(test, affordable(contents, test.images, limits.samples))
            value = evaluate(model.classifier, test, contents.forget_classes)
            found[model.name] = Evaluated(value.per_class, value.confusion)
    if not found:
        raise MissingError(contents.absent)
    return found


def affordable(contents: Contents, images, most: int) -> int:
    """So many of these images can go through every model in seconds."""
    models = contents.loaded
    each = Costs(models[0].classifier, images).forward() * len(models)
    return min(most, max(_FEWEST, int(_MULTIPLY_ADDS / max(each, 1))))


def part(data: Data, most: int) -> Data:
    """At most so many samples, drawn alike each time, in their order.

    >>> len(part(Data(np.zeros((100, 1, 1, 1)), np.arange(100)), 4))
    4
    """
    if len(data) <= most:
        return data
    rows = np.sort(np.random.default_rng(0).permutation(len(data))[:most])
    return data.take(rows)


def _of_record(stored: Mapping[str, Any]) -> Evaluated:
    per_class = np.array(stored["per_class"], np.float64)  # None becomes NaN
    return Evaluated(per_class, np.array(stored["confusion"], np.int64))
