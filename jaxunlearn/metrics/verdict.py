"""An unlearned model beside the original and retrained ones, and a verdict."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxunlearn.checks import check_choice, check_key, check_labels
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.metrics.audits import AUDITS
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.metrics.relearning import rows_of
from jaxunlearn.metrics.rows.values import Value
from jaxunlearn.metrics.subject import Samples, Subject
from jaxunlearn.progress import Progress, reporting
from jaxunlearn.tasks import Data, check_classes

# A share of the way from retraining to the original's accuracy. Of 1,000 samples the
# noise about 0 % is .3 points: alone it would call .4 % of 67 % not forgotten.
_FORGOTTEN = 0.05
# Here forgetting at the output only shows.
_REPRESENTATION = ("probe", "class-mean", "relearn")


@dataclasses.dataclass(frozen=True)
class AuditRow:
    """One number of every model. The target is the retrained models', on both sides.

    Attributes:
      name: the audit, with a part after a slash: "accuracy/forgotten".
      unlearned, original: their values.
      retrained: a value for each retrained model; empty where it has no meaning.
      gap: unlearned - mean(retrained).
      floor: max(range of the retrained, two standard errors), binomial about their mean
        where the value is a share (`audits.Value.noise`).
      within: |gap| <= floor; None with fewer than two retrained models, or where all
        values are bounds.
      censored: which of unlearned, original and retrained are bounds from below.
      seconds: that it took, over all models.
    """

    name: str
    unlearned: float
    original: float
    retrained: tuple[float, ...]
    gap: float
    floor: float
    within: bool | None
    censored: tuple[bool, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Audit:
    """The rows of an audit, and what they come to.

    Attributes:
      rows: `AuditRow`s, in the order of `AUDITS`.
      verdict: "not forgotten", "output-level only", "over-forgotten", "between the
        original and retraining", "retained accuracy lost", or "within the noise of
        retraining".
      forget_classes: what was forgotten.
    """

    rows: tuple[AuditRow, ...]
    verdict: str
    forget_classes: tuple[int, ...]

    def __getitem__(self, name: str) -> AuditRow:
        for row in self.rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in self.rows)
        msg = f"This audit has no row {name!r}; its rows are {known}."
        raise KeyError(msg)

    def table(self) -> str:
        """The rows as text, the verdict first."""
        lines = [self.verdict, ""]
        wide = max(24, 1 + max((len(row.name) for row in self.rows), default=0))
        heads = ("audit", "unlearned", "retrained", "gap", "floor", "", "original")
        lines.append(
            f"{{:<{wide}}}{{:>10}}{{:>20}}{{:>9}}{{:>8}}{{:>9}}{{:>10}}".format(*heads)
        )
        for row in self.rows:
            texts = (
                _text(row.unlearned, row.censored[0]),
                _span(row),
                _text(row.gap),
                _text(row.floor),
                {True: "within", False: "outside", None: ""}[row.within],
                _text(row.original, row.censored[1]),
            )
            lines.append(
                f"{row.name:<{wide}}{{:>10}}{{:>20}}{{:>9}}{{:>8}}{{:>9}}{{:>10}}".format(
                    *texts
                )
            )
        return "\n".join(line.rstrip() for line in lines)

    __str__ = table


def audit(
    classifier: Classifier,
    *,
    original: Classifier,
    retrained: Classifier | Sequence[Classifier],
    train: Data,
    test: Data,
    forget_classes: Sequence[int],
    forget: Data | None = None,
    key: Any,
    which: Sequence[str] | None = None,
    mesh: Mesh | None = None,
) -> Audit:
    """Judge an unlearned model by models retrained without what it should forget.

        gap = unlearned - mean(retrained),
        floor = max(range(retrained), 2 sqrt(p (1 - p) / n)),   within = |gap| <= floor

    Nothing is trained in place; features and outputs are computed once for all audits.

    Args:
      classifier: the unlearned model.
      original: the one that it was made from.
      retrained: one retrained model, or several training seeds; two or more give the
        noise floor.
      train: the full training set, forgotten samples included. Probes read at most
        10,000 of them.
      test: test samples of all classes.
      forget_classes: `()` where samples were forgotten.
      forget: the forgotten samples, where samples and not classes were.
      key: a `jax.random.key`.
      which: names of `AUDITS`; None runs those that are `default`.
      mesh: as for `evaluate`.

    Raises:
      TypeError: `key` is no key, a forget class no integer.
      ValueError: no retrained model, no forgotten classes and no `forget`, an unknown
        name, or an audit named that has no meaning for samples.

    Source: definitions and their papers at each function of `jaxunlearn.metrics`.
    """
    models = {"unlearned": classifier}
    how = {"forget": forget, "key": key, "which": which, "mesh": mesh}
    data = {"train": train, "test": test, "forget_classes": forget_classes}
    both = {"original": original, "retrained": retrained}
    return audit_all(models, **both, **data, **how)["unlearned"]


def audit_all(
    classifiers: Mapping[str, Classifier],
    *,
    original: Classifier,
    retrained: Classifier | Sequence[Classifier],
    train: Data,
    test: Data,
    forget_classes: Sequence[int],
    forget: Data | None = None,
    key: Any,
    which: Sequence[str] | None = None,
    mesh: Mesh | None = None,
    progress: Progress = None,
) -> dict[str, Audit]:
    """`audit` of several models by name; original and retrained are looked at once.

    Args:
      classifiers: the unlearned models.
      original: as for `audit`, like all others but `progress`.
      retrained: likewise.
      train: likewise.
      test: likewise.
      forget_classes: likewise.
      forget: likewise.
      key: likewise.
      which: likewise.
      mesh: likewise.
      progress: None, "bar", or a function `(stage, done, total)`; the stage is "audit".

    Raises:
      TypeError: as for `audit`, like ValueError.
    """
    check_key(key)
    check_classifier(original, "original")
    models = (retrained,) if isinstance(retrained, Classifier) else tuple(retrained)
    for one in models:
        check_classifier(one, "retrained")
    for one in classifiers.values():
        check_classifier(one)
    k = num_classes(original, test.images)
    classes = check_classes(forget_classes, k)
    names = _chosen(which, classes, models, forget)
    for name, data in (("train", train), ("test", test)):
        check_labels(f"labels of {name}", data.labels, len(data), k)
    if forget is not None:
        check_labels("labels of forget", forget.labels, len(forget), k)
        rows_of(train, forget)
    samples = Samples(train, test, classes, forget, key)
    subject = functools.partial(Subject, samples=samples, mesh=mesh)
    before, *others = map(subject, (original, *models))
    audited = {name: subject(classifier) for name, classifier in classifiers.items()}
    rows = {name: [] for name in classifiers}
    with reporting(progress) as report:
        for done, name in enumerate(names):
            report("audit", done, len(names))
            begun = time.perf_counter()
            shared = [_values(name, m, before, others) for m in (before, *others)]
            once = time.perf_counter() - begun
            for title, model in audited.items():
                begun = time.perf_counter()
                values = [_values(name, model, before, others), *shared]
                spent = once + time.perf_counter() - begun
                rows[title] += _rows(name, values, spent)
        report("audit", len(names), len(names))
    return {
        title: Audit(
            tuple(own), verdict_of_rows({row.name: row for row in own}), classes
        )
        for title, own in rows.items()
    }


def _values(name, model, original, retrained):
    others = [g for g in retrained if g is not model]
    return AUDITS[name].function(model, original, others, model.samples)


def _chosen(which, classes, models, forget):
    if not models:
        msg = (
            "retrained is empty: give at least one model retrained without the forget "
            "set."
        )
        raise ValueError(msg)
    if not classes and forget is None:
        msg = (
            "forget_classes is (), so that samples were forgotten: give them as "
            "forget=Data(...)."
        )
        raise ValueError(msg)
    if which is None:
        kinds = AUDITS.items()
        return [n for n, kind in kinds if kind.default and (classes or kind.samplewise)]
    for name in which:
        check_choice("which", name, AUDITS)
        if not classes and not AUDITS[name].samplewise:
            msg = (
                f"The audit {name!r} asks what is left of whole classes, and has no "
                "meaning where samples were forgotten; these have: "
                f"{', '.join(n for n, kind in AUDITS.items() if kind.samplewise)}."
            )
            raise ValueError(msg)
    return list(which)


def _rows(name, values, seconds) -> list[AuditRow]:
    parts = values[0]
    return [
        _row(
            f"{name}/{part}" if part else name,
            [v.get(part, Value(math.nan)) for v in values],
            seconds / len(parts),
        )
        for part in parts
    ]


def _row(name, values, seconds) -> AuditRow:
    unlearned, original, *others = values
    known = [v for v in others if not math.isnan(v.value)]
    numbers = tuple(v.value for v in known)
    mean = float(np.mean(numbers)) if numbers else math.nan
    spread = max(numbers) - min(numbers) if len(numbers) > 1 else 0.0
    floor = max(spread, unlearned.noise(mean)) if numbers else math.nan
    gap = unlearned.value - mean
    bounds = (unlearned.censored, *(v.censored for v in known))
    comparable = len(numbers) > 1 and not all(bounds)
    censored = tuple(v.censored for v in (unlearned, original, *known))
    within = abs(gap) <= floor if comparable else None
    pair = unlearned.value, original.value
    return AuditRow(name, *pair, numbers, gap, floor, within, censored, seconds)


def verdict_of_rows(rows: Mapping[str, AuditRow]) -> str:
    """What the rows come to, by the side of the noise floor on which they lie."""
    forgotten = rows.get("accuracy/forgotten") or rows.get("accuracy/samples")
    if forgotten is not None and _is_kept(forgotten):
        return "not forgotten"
    inner = [rows[name] for name in _REPRESENTATION if name in rows]
    left = [row for row in inner if _side(row) == "original"]
    if any(abs(row.unlearned - row.original) < abs(row.gap) for row in left):
        return "output-level only"
    if any(row is not None and _side(row) == "beyond" for row in (forgotten, *inner)):
        return "over-forgotten"
    if left:
        return "between the original and retraining"
    retained = rows.get("accuracy/retained")
    if retained is not None and retained.gap < -retained.floor:
        return "retained accuracy lost"
    return "within the noise of retraining"


def _is_kept(row) -> bool:
    """Whether accuracy is outside the noise, and some way back to the original's."""
    way = row.original - (row.unlearned - row.gap)
    return _side(row) == "original" and row.gap / way > _FORGOTTEN


def _side(row) -> str:
    """Where the unlearned model lies: "within" the floor, or on which side of it.

    Outside it, but for the original's side of an original that is outside too, is
    "beyond".
    """
    bounds = (row.censored[0], *row.censored[2:])
    if math.isnan(row.gap) or all(bounds) or abs(row.gap) <= row.floor:
        return "within"
    start = row.original - (row.unlearned - row.gap)
    return "original" if row.gap * start > 0 and abs(start) > row.floor else "beyond"


def _text(value, censored=False):
    if math.isnan(value):
        return ""
    form = f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
    return f"{'>' if censored else ''}{form}"


def _span(row):
    if not row.retrained:
        return ""
    low, high = min(row.retrained), max(row.retrained)
    bound = any(row.censored[2:])
    if low == high:
        return _text(low, bound)
    return f"{_text(low, all(row.censored[2:]))} to {_text(high, bound)}"
