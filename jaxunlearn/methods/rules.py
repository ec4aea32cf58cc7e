"""By which accuracies on validation data a value of a grid is chosen."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.unlearning import Result
from jaxunlearn.metrics.accuracy import (
    class_accuracy,
    confusion_matrix,
    relative_change,
)
from jaxunlearn.metrics.evaluation import evaluate, logits
from jaxunlearn.tasks import Data

# Points within which a gentler value is preferred.
TOLERANCE = 1.0
# Points of validation accuracy that a value may cost where samples are forgotten.
MARGIN = 1.0


class NotForgotten(UserWarning):
    """No value of a grid forgets the samples at a cost that is allowed."""


class Trial(NamedTuple):
    """One value of the grid, and the validation accuracies (%) that it led to."""

    value: float
    retained: float
    forgotten: float


class SampleTrial(NamedTuple):
    """One value of the grid where samples are forgotten; accuracies in %.

    Attributes:
      value: of the tuned field.
      validation: accuracy on all validation samples.
      heldout: accuracy on them, each class weighted as it is among the forget samples.
      forgotten: accuracy on the forget samples.
      change: of the validation samples' logits, relative to the original's.
    """

    value: float
    validation: float
    heldout: float
    forgotten: float
    change: float

    @property
    def gap(self) -> float:
        """What membership among the forget samples is worth, in points."""
        return abs(self.forgotten - self.heldout)


class ClassRule:
    """Of whole classes: as little of them, and as much of the others, as can be had."""

    trial: ClassVar[type] = Trial
    sentence: ClassVar[str] = (
        f"Acc_r - Acc_f on validation data is within {TOLERANCE:g} of the best"
    )

    def __init__(
        self,
        classes: Sequence[tuple[int, ...]],
        validation: Data | None,
        mesh: Mesh | None = None,
    ):
        self._given = classes, validation, mesh

    def judge(self, results: Sequence[Result]) -> tuple[float, ...]:
        """Means over the requests of both accuracies."""
        classes, data, mesh = self._given
        pairs = zip(results, classes, strict=True)
        ends = [evaluate(r.classifier, data, some, mesh=mesh) for r, some in pairs]
        names = ("retained", "forgotten")
        return tuple(float(np.mean([getattr(e, n) for e in ends])) for n in names)

    def best(self, gentlest: Any, trials: Sequence[Trial]) -> Trial:
        """The gentlest whose `Acc_r - Acc_f` is within a point of the best."""
        best = max(t.retained - t.forgotten for t in trials) - TOLERANCE
        good = [t for t in trials if t.retained - t.forgotten >= best]
        return gentlest(good, key=lambda t: t.value)

    def end(self, gentlest: Any, trials: Sequence[Trial]) -> Trial | None:
        """The trial that must not be an end of the grid."""
        return self.best(gentlest, trials)

    def outcome(self, trial: Trial | None) -> Any:
        """By which two values are told apart."""
        return trial and trial[1:]

    def caution(self, method: Any, trials: Sequence[Trial], result: Any) -> str:
        """What is to be said of the choice; nothing here."""
        del method, trials, result
        return ""


class SampleRule:
    """Of samples: as right on them as on others like them, at little cost.

    A model retrained without the samples is about as good on them as on any others of
    their classes that it never saw. That holds for samples that are like the others; on
    harder ones than these a retrained model is worse.
    """

    trial: ClassVar[type] = SampleTrial
    sentence: ClassVar[str] = (
        "accuracy on the forget samples is nearer than the original's to that on "
        "validation samples of the same classes in the same shares, and within "
        f"{TOLERANCE:g} of the nearest, at a cost of at most {MARGIN:g} point of "
        "accuracy on all validation samples; the gentlest where there is none"
    )

    def __init__(
        self,
        original: Classifier,
        forget: Data,
        validation: Data,
        mesh: Mesh | None = None,
    ):
        self._forget, self._mesh = forget, mesh
        self._heldout = heldout(validation, forget)
        self._logits = logits(original, self._heldout.images, mesh=mesh)
        self._weights = np.bincount(forget.labels, minlength=self._logits.shape[1])
        self._original = SampleTrial(0.0, *self._judge(original))

    def judge(self, results: Sequence[Result]) -> tuple[float, ...]:
        """The numbers of a trial."""
        (result,) = results
        return self._judge(result.classifier)

    def _judge(self, classifier: Classifier) -> tuple[float, ...]:
        labels, mesh = self._heldout.labels, self._mesh
        outputs = logits(classifier, self._heldout.images, mesh=mesh)
        forgotten = logits(classifier, self._forget.images, mesh=mesh)
        for values in (outputs, forgotten):
            if np.isnan(values).any():
                msg = "The classifier's logits are not a number: it has diverged."
                raise FloatingPointError(msg)
        predicted = outputs.argmax(axis=1)
        confusion = confusion_matrix(labels, predicted, outputs.shape[1])
        return (
            100 * float((predicted == labels).mean()),
            weighted(class_accuracy(confusion), self._weights),
            100 * float((forgotten.argmax(axis=1) == self._forget.labels).mean()),
            relative_change(self._logits, outputs),
        )

    def keeps(self, trial: SampleTrial) -> bool:
        """Whether it costs no more validation accuracy than is allowed."""
        return trial.validation >= self._original.validation - MARGIN

    def nearer(self, trials: Sequence[SampleTrial]) -> list[SampleTrial]:
        """Those of allowed cost that are nearer to held-out accuracy than before."""
        return [t for t in trials if self.keeps(t) and t.gap < self._original.gap]

    def best(self, gentlest: Any, trials: Sequence[SampleTrial]) -> SampleTrial:
        """See `sentence`."""
        good = self.nearer(trials)
        least = min((t.gap for t in good), default=0.0) + TOLERANCE
        good = [t for t in good if t.gap <= least] or list(trials)
        return gentlest(good, key=lambda t: t.value)

    def end(self, gentlest: Any, trials: Sequence[SampleTrial]) -> SampleTrial | None:
        """The trial beyond which a better one may lie.

        Where none is nearer that is the harshest, if even that costs too little, or the
        gentlest, if even that costs too much.
        """
        if self.nearer(trials):
            return self.best(gentlest, trials)
        harshest = max if gentlest is min else min
        ends = [one(trials, key=lambda t: t.value) for one in (harshest, gentlest)]
        kept = list(map(self.keeps, ends))
        return {(True, True): ends[0], (False, False): ends[1]}.get(tuple(kept))

    def outcome(self, trial: SampleTrial | None) -> Any:
        """By which two values are told apart: accuracies alone."""
        return trial and trial[1:4]

    def caution(
        self, method: Any, trials: Sequence[SampleTrial], result: Result
    ) -> str:
        """Why the samples are not forgotten, or only in part, where that is so."""
        before, field = self._original, method.tuned.replace("_", " ")
        taken = self.best(getattr(method, "gentlest", min), trials)
        if taken.gap <= max(TOLERANCE, before.gap / 2) and self.nearer(trials):
            return ""
        lost = [t for t in trials if not self.keeps(t)]
        text = (
            f"{type(method).__name__} does not forget these samples. The original is "
            f"right on {before.forgotten:.1f} % of them and on {before.heldout:.1f} % "
            "of held-out samples like them"
        )
        if before.gap < TOLERANCE:
            text += ", so that accuracy shows little to forget"
        if self.nearer(trials):
            text += (
                f". At a cost of at most {MARGIN:g} point of its validation accuracy "
                f"of {before.validation:.1f} %, no {field} that was tried takes more "
                f"than {before.gap - min(t.gap for t in self.nearer(trials)):.1f} of "
                f"these {before.gap:.1f} points away."
            )
        else:
            text += (
                f", and no {field} that was tried brings the two nearer at a cost of "
                f"at most {MARGIN:g} point of its validation accuracy of "
                f"{before.validation:.1f} %: the gentlest is taken."
            )
        if lost:
            least = max(lost, key=lambda t: t.validation)
            text += (
                f" At {field} {least.value:g} it would be right on "
                f"{least.forgotten:.1f} % of them and on {least.validation:.1f} % of "
                f"all validation samples, whose logits change by {least.change:.2f}."
            )
        surviving = result.trace.surviving_gradient
        if surviving and max(surviving.values()) < 1:
            name = max(surviving, key=surviving.__getitem__)
            text += (
                f" The projection leaves at most {100 * surviving[name]:.2g} % of the "
                f"forget gradient of a layer ({name})."
            )
        return text


Rule = ClassRule | SampleRule


def heldout(validation: Data, forget: Data) -> Data:
    """Validation samples that are none of the forget set, of all of its classes.

    Raises:
      ValueError: of a forgotten class there is none.
    """
    known = {image.tobytes() for image in np.asarray(forget.images)}
    images = np.asarray(validation.images)
    fresh = np.array([image.tobytes() not in known for image in images], bool)
    lacking = sorted({*forget.labels.tolist()} - {*validation.labels[fresh].tolist()})
    if lacking:
        msg = (
            f"validation holds no sample of class {lacking[0]} that is not to be "
            "forgotten: samples are forgotten once a classifier is as right on them "
            "as on others of their classes, which it never saw."
        )
        raise ValueError(msg)
    return validation.take(fresh)


def weighted(
    per_class: Float[np.ndarray, " k"], weights: Sequence[int] | np.ndarray
) -> float:
    """The mean over classes, each weighted; those of weight 0 need no value.

        sum_c w_c a_c / sum_c w_c

    >>> weighted(np.array([90.0, 60.0, np.nan]), [1, 2, 0])
    70.0
    """
    weights = np.asarray(weights)
    held = weights > 0
    return float(per_class[held] @ weights[held] / weights.sum())


def trial_records(
    tuned: Mapping[str, float], trials: Sequence[Any]
) -> list[dict[str, float]]:
    """Trials as dictionaries, the value under the tuned field's name."""
    return [
        dict(zip(itertools.chain(tuned, t._fields[1:]), t, strict=True)) for t in trials
    ]
