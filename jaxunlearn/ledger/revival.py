"""Does a class that was forgotten come back with later requests?"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from jaxunlearn.checks import check_count, short
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.metrics.layer_features import features
from jaxunlearn.metrics.probes import linear_probe
from jaxunlearn.metrics.relearning import Relearning, relearn_steps
from jaxunlearn.tasks import Data
from jaxunlearn.tasks.classes import name_classes


@dataclasses.dataclass(frozen=True)
class Revived:
    """What the current classifier still knows, or knows again, of a forgotten class.

    Attributes:
      accuracy: on its test samples, in percent.
      probe: recall of a linear probe on the input of the head, in percent.
      relearn_steps: minibatches of training until `target` is reached; at most the cap.
      censored: whether the cap came first.
      target: the accuracy that relearning was to reach, in percent.

    >>> str(Revived(0.0, 62.5, 150, True, 90.0))
    'accuracy 0.0 %, probe 62.5 %, relearned in >150 steps'
    """

    accuracy: float
    probe: float
    relearn_steps: int
    censored: bool
    target: float

    def __str__(self):
        bound = ">" if self.censored else ""
        return (
            f"accuracy {self.accuracy:.1f} %, probe {self.probe:.1f} %, relearned in "
            f"{bound}{self.relearn_steps} steps"
        )


def check_revival(
    train: Data, test: Data, classes: Sequence[int], target: Any, cap: Any
) -> None:
    """Refuse what cannot be measured, before anything is computed."""
    if cap is not None:
        check_count("cap", cap)
    if not isinstance(target, int | float) or not 0 < target <= 100:
        msg = f"target must be an accuracy in percent, in (0, 100]; it is {short(target)}."  # noqa: E501
        raise ValueError(msg)
    if not classes:
        msg = "There is nothing to measure: no class is forgotten."
        raise ValueError(msg)
    for name, data in (("train", train), ("test", test)):
        absent = sorted(set(classes) - set(data.labels.tolist()))
        if absent:
            msg = f"{name} holds no sample of {name_classes(absent)}: without, nothing says whether it comes back."  # noqa: E501
            raise ValueError(msg)


def revived(
    classifier: Classifier,
    train: Data,
    test: Data,
    classes: Sequence[int],
    *,
    key: Array,
    target: float,
    cap: int | None,
) -> dict[int, Revived]:
    """Of each of these classes; both sets hold samples of it."""
    found = evaluate(classifier, test, classes)
    x, heldout = (features(classifier, data.images) for data in (train, test))
    predicted = linear_probe(x, train.labels, heldout)
    protocol, records = Relearning(cap=cap), {}
    for c in classes:
        own = test.labels == c
        relearned = relearn_steps(
            *(classifier, train, test, [c]), target=target, protocol=protocol, key=key
        )
        records[c] = Revived(
            float(found.per_class[c]),
            float(100 * np.mean(predicted[own] == c)),
            relearned.steps,
            relearned.censored,
            target,
        )
    return records
