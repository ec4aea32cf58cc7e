"""The measures of a classifier that tables, JSON files and reports show.

A new one is a function of `Judged` and a row of `METRICS`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.metrics.accuracy import relative_change
from jaxunlearn.metrics.evaluation import Evaluation, evaluate, logits
from jaxunlearn.tasks import Data


class Judged(NamedTuple):
    """What a metric may read.

    Attributes:
      evaluation: accuracies on the data.
      logits: on the samples of the retained classes, `[n, k]`.
      original: the original's on the same, or None for the original itself.
    """

    evaluation: Evaluation
    logits: np.ndarray
    original: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Metric:
    """A row of `METRICS`.

    Attributes:
      heading: of its column.
      unit: "%", or "" for a pure number.
      form: how a value is written, as `format` takes it.
      legend: what it is, in a line.
      function: from what is judged to a number, or to None where it has no meaning.
    """

    heading: str
    unit: str
    form: str
    legend: str
    function: Callable[[Judged], float | None]

    def text(self, value: float | None) -> str:
        """A value as tables show it.

        >>> METRICS["retained"].text(98.765)
        '98.77'
        """
        return "" if value is None else format(value, self.form)


def _change(judged: Judged) -> float | None:
    if judged.original is None:
        return None
    return relative_change(judged.original, judged.logits)


METRICS: dict[str, Metric] = {
    "retained": Metric(
        *("Acc_r", "%", ".2f", "accuracy, mean over retained classes"),
        lambda judged: judged.evaluation.retained,
    ),
    "forgotten": Metric(
        *("Acc_f", "%", ".2f", "accuracy, mean over forgotten classes"),
        lambda judged: judged.evaluation.forgotten,
    ),
    "retained_logit_change": Metric(
        *("change", "", ".3f", "of retained logits, relative to the original's"),
        _change,
    ),
}


def measure(
    classifier: Classifier,
    data: Data,
    forget_classes: Sequence[int],
    *,
    original: Classifier | None = None,
    mesh: Mesh | None = None,
) -> dict[str, float | None]:
    """Every metric of a classifier, by name.

    Args:
      classifier: the one to judge.
      data: of all classes, such as the test data.
      forget_classes: `()` if samples rather than classes were forgotten.
      original: the one that it was made from, or None for the original itself.
      mesh: as for `evaluate`.

    Raises:
      TypeError: what `evaluate` refuses, like ValueError and FloatingPointError.

    >>> import flax.linen as nn
    >>> import jax.numpy as jnp
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> kernel = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> data = Data(np.array([1.0, -1.0, 1.0]).reshape(3, 1, 1, 1), [0, 1, 1])
    >>> measure(classifier, data, [1])
    {'retained': 100.0, 'forgotten': 50.0, 'retained_logit_change': None}
    """
    kept = data.images[~np.isin(data.labels, list(forget_classes))]
    judged = Judged(
        evaluate(classifier, data, forget_classes, mesh=mesh),
        logits(classifier, kept, mesh=mesh),
        None if original is None else logits(original, kept, mesh=mesh),
    )
    return {name: metric.function(judged) for name, metric in METRICS.items()}
