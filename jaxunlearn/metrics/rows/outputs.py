"""Audits that look at a model's outputs alone."""

import math

import numpy as np

from jaxunlearn.metrics.accuracy import class_accuracy, confusion_matrix
from jaxunlearn.metrics.distances import (
    js_by_sample,
    label_histogram,
    total_variation_distance,
)
from jaxunlearn.metrics.rows.values import Value, Values, class_mean, mean


def accuracy(model, original, retrained, samples) -> Values:
    """Percent, the mean over classes; of forgotten samples over these."""
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


def rarest(model, original, retrained, samples) -> Values:
    """Percent, over the retained classes that have the fewest training samples."""
    del original, retrained
    labels = samples.test.labels
    counts = np.bincount(samples.train.labels, minlength=model.logits.shape[1])
    retained = np.unique(labels[samples.retained])
    if not retained.size:
        return {}
    fewest = retained[counts[retained] == counts[retained].min()]
    rows = np.flatnonzero(np.isin(labels, fewest))
    right = (model.logits.argmax(axis=1) == labels)[rows]
    return {"": Value(class_mean(right, labels[rows]), rows.size)}


def distribution(model, original, retrained, samples) -> Values:
    """Divergences from the retrained models' outputs, and where samples went."""
    del original
    if not retrained:
        return {}
    everyone = model, *retrained
    parts = {
        "forgotten": [m.probabilities[samples.forgotten] for m in everyone],
        "retained": [m.probabilities[samples.retained] for m in everyone],
    }
    if samples.forget is not None:
        parts["samples"] = [m.forget_probabilities for m in everyone]
    values = {}
    for name, (p, *others) in parts.items():
        if not len(p):
            continue
        # Sample by sample, for the error of their mean.
        each = np.mean([js_by_sample(p, q) for q in others], axis=0)
        error = 2 * float(each.std() / math.sqrt(each.size))
        values[f"js-{name}"] = Value(float(each.mean()), error=error)
        if name == "forgotten":
            mine, *theirs = (label_histogram(q)[None] for q in (p, *others))
            moved = mean(total_variation_distance(mine, h) for h in theirs)
            values["labels-forgotten"] = Value(moved, len(p), 1)
    return values


def neighbour(model, original, retrained, samples) -> Values:
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
    return {"": Value(mean(areas), int(half.sum()), 1)} if areas else {}
