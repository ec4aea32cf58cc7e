"""The audits by name: what each reads off a model.

A new audit is a function and a row of `AUDITS`. It is given the model, the original,
the retrained models to compare with (for a retrained one: the others), and the samples.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.metrics.accuracy import class_accuracy, confusion_matrix
from jaxunlearn.metrics.distances import (
    js_divergence,
    label_histogram,
    total_variation_distance,
)
from jaxunlearn.metrics.membership import modified_entropy, threshold_attack
from jaxunlearn.metrics.probes import (
    attack_with_prototypes,
    class_mean_predictions,
    linear_probe,
)
from jaxunlearn.metrics.relearning import Relearning, relearn_steps
from jaxunlearn.metrics.similarity import linear_cka
from jaxunlearn.metrics.subject import Samples, Subject

# Samples of each class whose mean is the attacker's prototype (arXiv 2506.01318).
PROTOTYPE_SAMPLES = 5
# Of the original's accuracy, as in arXiv 2201.05629.
RELEARNED_SHARE = 0.95


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
Function = Callable[[Subject, Subject, Sequence[Subject], Samples], Values]


@dataclasses.dataclass(frozen=True)
class AuditKind:
    """A row of `AUDITS`.

    Attributes:
      legend: what it is, in a line.
      function: `(model, original, retrained, samples) -> {part: Value}`; the part "" is
        the audit itself.
      default: whether it runs when none is named.
      samplewise: whether it has a meaning where samples and not classes are forgotten.
    """

    legend: str
    function: Function
    default: bool = True
    samplewise: bool = False


def _accuracy(model, original, retrained, samples) -> Values:
    del original, retrained
    labels, predicted = samples.test.labels, model.logits.argmax(axis=1)
    per_class = class_accuracy(
        confusion_matrix(labels, predicted, model.logits.shape[1])
    )
    parts = {"retained": samples.retained, "forgotten": samples.forgotten}
    values = {
        name: Value(float(np.nanmean(per_class[np.unique(labels[rows])])), len(rows))
        for name, rows in parts.items()
        if rows.size
    }
    if samples.forget is not None:
        right = model.forget_logits.argmax(axis=1) == samples.forget.labels
        values["samples"] = Value(100 * float(right.mean()), right.size)
    return values


def _distribution(model, original, retrained, samples) -> Values:
    del original
    if not retrained:
        return {}
    values = {}
    parts = {"forgotten": samples.forgotten, "retained": samples.retained}
    for name, rows in parts.items():
        if rows.size:
            p, *others = (m.probabilities[rows] for m in (model, *retrained))
            # Sample by sample, for the error of their mean.
            each = np.mean([_each_js(p, q) for q in others], axis=0)
            error = 2 * float(each.std() / math.sqrt(each.size))
            values[f"js-{name}"] = Value(float(each.mean()), error=error)
            if name == "forgotten":
                mine, *theirs = (label_histogram(q)[None] for q in (p, *others))
                moved = _mean(total_variation_distance(mine, h) for h in theirs)
                values["labels-forgotten"] = Value(moved, rows.size, 1)
    return values


def _each_js(p, q):
    return np.asarray(jax.vmap(js_divergence)(p[:, None], q[:, None]))


def _probe(model, original, retrained, samples, *, layers: slice, read: Any) -> Values:
    """Recall of the forgotten classes on test data, read off the features of layers."""
    del original, retrained
    truth = samples.test.labels[samples.forgotten]
    values = {}
    for name in model.layers[layers]:
        test = model.features[name][samples.forgotten]
        train = model.train_features[name], samples.probed.labels
        right = read(*train, test) == truth
        part = "" if name == model.layers[-1] else name
        values[part] = Value(_class_mean(right, truth), truth.size)
    return values


def _relearn(model, original, retrained, samples, *, data: str) -> Values:
    del retrained
    truth = samples.test.labels
    known = original.logits.argmax(axis=1) == truth
    rows = samples.forgotten
    target = RELEARNED_SHARE * _class_mean(known[rows], truth[rows])
    if target <= 0:
        return {"": Value(float("nan"))}
    relearned = relearn_steps(
        model.classifier,
        samples.train,
        samples.test,
        samples.forget_classes,
        target=target,
        protocol=Relearning(data=data),
        key=jax.random.fold_in(samples.key, 1),
    )
    return {"": Value(float(relearned.steps), censored=relearned.censored)}


def _prototype(model, original, retrained, samples) -> Values:
    del original, retrained
    layer = model.layers[-1]
    train = model.train_features[layer]
    prototypes = {}
    for c in samples.forget_classes:
        rows = np.flatnonzero(samples.probed.labels == c)[:PROTOTYPE_SAMPLES]
        prototypes[c] = train[rows]
    attack = attack_with_prototypes(
        model.features[layer], model.logits, samples.test.labels, prototypes
    )
    return {
        "": Value(attack.harmonic),
        "forgotten": Value(attack.forgotten, samples.forgotten.size),
        "retained": Value(attack.retained, samples.retained.size),
    }


def _neighbour(model, original, retrained, samples) -> Values:
    """How well outputs on forgotten classes tell this model from retrained ones."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    del original
    rows = samples.forgotten
    half = np.arange(rows.size) % 2 == 0
    kept = np.setdiff1d(np.arange(model.logits.shape[1]), samples.forget_classes)
    areas = []
    for other in retrained:
        pair = []
        for m in (model, other):
            p = m.probabilities[np.ix_(rows, kept)]
            pair.append(p / np.maximum(p.sum(axis=1, keepdims=True), 1e-30))
        truth = np.repeat([1, 0], half.sum())
        inside = np.concatenate([p[half] for p in pair])
        attacker = LogisticRegression(max_iter=1000).fit(inside, truth)
        scores = attacker.predict_proba(np.concatenate([p[~half] for p in pair]))[:, 1]
        areas.append(roc_auc_score(np.repeat([1, 0], (~half).sum()), scores))
    return {"": Value(_mean(areas), int(half.sum()), 1)} if areas else {}


def _membership(model, original, retrained, samples) -> Values:
    """A threshold on modified entropy, set on retained data, applied to forgotten."""
    del original, retrained
    train_labels, test_labels = samples.probed.labels, samples.test.labels
    train = _negative_entropy(model.train_logits, train_labels)
    test = _negative_entropy(model.logits, test_labels)
    gone = np.isin(train_labels, samples.forget_classes)
    if samples.forget is None:
        attacked, fresh = train[gone], test[samples.forgotten]
    else:
        attacked = _negative_entropy(model.forget_logits, samples.forget.labels)
        fresh = test
    attack = threshold_attack(train[~gone], test[samples.retained], attacked, fresh)
    return {
        "": Value(attack.auc, min(attacked.size, fresh.size), 1),
        "members": Value(100 * attack.member_share, attacked.size),
    }


def _negative_entropy(outputs, labels):
    return -np.asarray(modified_entropy(jax.nn.softmax(outputs), labels))


def _cka(model, original, retrained, samples) -> Values:
    del samples
    features = [m.features[m.layers[-1]] for m in (model, original, *retrained)]
    mine, before, *others = features
    values = {"original": Value(float(linear_cka(mine, before)))}
    if others:
        values["retrained"] = Value(_mean(linear_cka(mine, g) for g in others))
    return values


def _distance(model, original, retrained, samples) -> Values:
    """Of all weights from the original's; between networks trained apart, nothing."""
    del retrained, samples
    before, after = (jax.tree.leaves(m.classifier.params) for m in (original, model))
    squares = [
        np.square(np.asarray(new, float) - np.asarray(old, float)).sum()
        for old, new in zip(before, after, strict=True)
    ]
    size = sum(np.square(np.asarray(old, float)).sum() for old in before)
    return {"": Value(float(np.sqrt(sum(squares) / size)))}


def _class_mean(right, truth):
    """Percent right, the unweighted mean over classes."""
    return 100 * float(np.mean([right[truth == c].mean() for c in np.unique(truth)]))


def _mean(values):
    return float(np.mean([float(v) for v in values]))


def _probing(read, **options):
    return functools.partial(_probe, read=read, **options)


_LAST, _ALL = slice(-1, None), slice(None)

AUDITS: dict[str, AuditKind] = {
    "accuracy": AuditKind(
        "accuracy in %, mean over classes", _accuracy, samplewise=True
    ),
    "distribution": AuditKind("JS to the retrained, TV of labels", _distribution),
    "probe": AuditKind(
        "recall of a linear probe on the features, %",
        _probing(linear_probe, layers=_LAST),
    ),
    "probe-layers": AuditKind(
        "the same at every layer", _probing(linear_probe, layers=_ALL), default=False
    ),
    "class-mean": AuditKind(
        "recall of the nearest class mean, %",
        _probing(class_mean_predictions, layers=_LAST),
    ),
    "relearn": AuditKind(
        "minibatches of all data to 95 % of the original",
        functools.partial(_relearn, data="all"),
    ),
    "retain-relearn": AuditKind(
        "the same with retained data alone",
        functools.partial(_relearn, data="retain"),
        default=False,
    ),
    "prototype": AuditKind("harmonic mean of Acc_f, Acc_r after it, %", _prototype),
    "neighbour": AuditKind("AUC of telling it from a retrained one", _neighbour),
    "membership": AuditKind(
        "AUC of membership by modified entropy", _membership, samplewise=True
    ),
    "cka": AuditKind("likeness of features", _cka, default=False),
    "distance": AuditKind(
        "of the weights from the original's", _distance, default=False
    ),
}
