"""What a record says of a classifier where classes, or where samples, are forgotten."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.metrics import METRICS, modified_entropy, threshold_attack
from jaxunlearn.metrics.accuracy import relative_change
from jaxunlearn.metrics.evaluation import Evaluation, evaluate, logits
from jaxunlearn.metrics.table import Judged, Metric
from jaxunlearn.tasks import Data, split_by_class


class Outputs(NamedTuple):
    """Logits of some samples, and their labels."""

    logits: np.ndarray
    labels: np.ndarray

    @property
    def accuracy(self) -> float:
        """In percent, over samples."""
        return 100 * float((self.logits.argmax(axis=1) == self.labels).mean())

    @property
    def scores(self) -> np.ndarray:
        """By which members are told apart: minus the modified entropy."""
        outputs = np.asarray(self.logits, np.float64)
        p = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return -np.asarray(modified_entropy(p, self.labels))


class SampleJudged(NamedTuple):
    """What a metric of forgotten samples may read.

    Attributes:
      forgotten: outputs on the forget samples.
      retained: on the other training samples.
      validation: on those for validation.
      test: on those for the test.
      original: the original's logits on the test samples; None for itself.
    """

    forgotten: Outputs
    retained: Outputs
    validation: Outputs
    test: Outputs
    original: np.ndarray | None = None


def _membership(judged: SampleJudged) -> float:
    shadow = judged.retained.scores, judged.validation.scores
    return threshold_attack(*shadow, judged.forgotten.scores, judged.test.scores).auc


def _change(judged: SampleJudged) -> float | None:
    if judged.original is None:
        return None
    return relative_change(judged.original, judged.test.logits)


# In place of `METRICS` where samples are forgotten. The target of each is the retrained
# model's value, which stands in the same column.
SAMPLE_METRICS: dict[str, Metric] = {
    "forgotten_samples": Metric(
        *("forget", "", ".2f", "accuracy on the samples to forget, in %"),
        lambda judged: judged.forgotten.accuracy,
    ),
    "retained_samples": Metric(
        *("retain", "", ".2f", "accuracy on the other training samples, in %"),
        lambda judged: judged.retained.accuracy,
    ),
    "test_samples": Metric(
        *("test", "", ".2f", "accuracy on the test data, in %"),
        lambda judged: judged.test.accuracy,
    ),
    "membership": Metric(
        *("member", "", ".3f", "AUC of telling samples to forget from test samples"),
        _membership,
    ),
    "test_logit_change": Metric(
        *("change", "", ".3f", "change of test logits, relative to the original's"),
        _change,
    ),
}


class ClassJudge:
    """Judges by the test samples of the forgotten classes and of all others."""

    metrics = METRICS

    def __init__(
        self,
        splits: Mapping[str, Data],
        classes: tuple[int, ...],
        mesh: Mesh | None = None,
    ):
        self._splits, self._classes, self._mesh = splits, classes, mesh
        self._kept = split_by_class(splits["test"], classes)[1].images
        self._original: np.ndarray | None = None

    def start_from(self, original: Classifier) -> None:
        """Compare with this one from here on."""
        self._original = logits(original, self._kept, mesh=self._mesh)

    def accuracies(self, classifier: Classifier) -> dict[str, Evaluation]:
        """On every split."""
        return {
            split: evaluate(classifier, data, self._classes, mesh=self._mesh)
            for split, data in self._splits.items()
        }

    def further(self, classifier: Classifier, test: Evaluation) -> dict[str, Any]:
        """What the table shows besides an evaluation on test data."""
        outputs = logits(classifier, self._kept, mesh=self._mesh)
        return further_metrics(test, outputs, self._original)

    def shown(self, classifier: Classifier) -> dict[str, Any]:
        """Every metric of the table, by name."""
        given = self._splits["test"], self._classes
        test = evaluate(classifier, *given, mesh=self._mesh)
        more = self.further(classifier, test)
        return {n: more.get(n, getattr(test, n, None)) for n in self.metrics}

    def text(self, classifier: Classifier) -> str:
        """Accuracies on test data, for people."""
        given = self._splits["test"], self._classes
        return str(evaluate(classifier, *given, mesh=self._mesh))


class SampleJudge:
    """Judges by the forgotten samples, the other training samples and the test data."""

    metrics = SAMPLE_METRICS

    def __init__(
        self,
        splits: Mapping[str, Data],
        parts: tuple[Data, Data],
        mesh: Mesh | None = None,
    ):
        forget, retain = parts
        self._splits, self._mesh = splits, mesh
        self._sets = {"forgotten": forget, "retained": retain}
        self._sets |= {name: splits[name] for name in ("validation", "test")}
        self._original: np.ndarray | None = None

    def start_from(self, original: Classifier) -> None:
        """Compare with this one from here on."""
        test = self._splits["test"].images
        self._original = logits(original, test, mesh=self._mesh)

    def accuracies(self, classifier: Classifier) -> dict[str, Evaluation]:
        """On every split; no class is forgotten."""
        return {
            split: evaluate(classifier, data, (), mesh=self._mesh)
            for split, data in self._splits.items()
        }

    def further(self, classifier: Classifier, test: Any = None) -> dict[str, Any]:
        """What the table shows."""
        del test
        outputs = {
            name: Outputs(logits(classifier, data.images, mesh=self._mesh), data.labels)
            for name, data in self._sets.items()
        }
        judged = SampleJudged(**outputs, original=self._original)
        return {name: m.function(judged) for name, m in self.metrics.items()}

    shown = further

    def text(self, classifier: Classifier) -> str:
        """Every metric with what it is, for people."""
        values = self.further(classifier).items()
        return "\n".join(
            f"{self.metrics[n].text(x):>6}  {self.metrics[n].legend}"
            for n, x in values
            if x is not None
        )


Judge = ClassJudge | SampleJudge


def further_metrics(evaluation: Evaluation, outputs, original) -> dict[str, Any]:
    """What `METRICS` has besides an evaluation on test data.

    Of the logits of the retained test images, and the original's on the same (None for
    the original itself).
    """
    judged = Judged(evaluation, outputs, original)
    return {
        name: metric.function(judged)
        for name, metric in METRICS.items()
        if not hasattr(evaluation, name)
    }
