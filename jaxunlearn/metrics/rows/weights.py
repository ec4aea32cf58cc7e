"""Audits of how far, and where, a model's weights have moved from the original's.

Between networks trained apart these mean little: what a retrained model shows is how
far a model without the forgotten samples may lie, not where unlearning should end.
"""

import jax
import numpy as np

from jaxunlearn.capture.layout import path_name
from jaxunlearn.metrics.barrier import loss_barrier
from jaxunlearn.metrics.loss_change import loss_change as loss_change_of
from jaxunlearn.metrics.rows.values import Value, Values
from jaxunlearn.metrics.subject import title_of_layer
from jaxunlearn.nullspace import drift as drift_of


def distance(model, original, retrained, samples) -> Values:
    """Of all weights from the original's, relative to their size."""
    del retrained, samples
    before, after = (jax.tree.leaves(m.classifier.params) for m in (original, model))
    squares = [
        np.square(np.asarray(new, float) - np.asarray(old, float)).sum()
        for old, new in zip(before, after, strict=True)
    ]
    size = sum(np.square(np.asarray(old, float)).sum() for old in before)
    return {"": Value(float(np.sqrt(sum(squares) / size)))}


def drift(model, original, retrained, samples) -> Values:
    """How far every layer's outputs moved on the original's retained inputs.

    The audit itself is the root of the mean square over layers.
    """
    del retrained, samples
    pair = original.classifier.params, model.classifier.params
    moved = drift_of(original.retained_moments, *pair)
    found = {path_name(p): float(v) for p, v in jax.tree.leaves_with_path(moved)}
    whole = float(np.sqrt(np.mean(np.square(list(found.values()))))) if found else 0.0
    layers = (name for name in original.layers if name in found)
    return {"": Value(whole)} | {title_of_layer(n): Value(found[n]) for n in layers}


def loss_change(model, original, retrained, samples) -> Values:
    """Of the loss on retained training samples, and its expansion in the step."""
    del retrained
    kept = samples.probed.take(~samples.probed_gone)
    found = loss_change_of(original.classifier, model.classifier, kept)
    return {
        "": Value(found.actual),
        "first-order": Value(found.first_order),
        "second-order": Value(found.second_order),
    }


def barrier(model, original, retrained, samples) -> Values:
    """What the loss on test data rises to on the line from the original."""
    del retrained
    test = samples.test
    rows = {"retained": samples.retained, "forgotten": samples.forgotten}
    parts = {name: test.take(chosen) for name, chosen in rows.items() if chosen.size}
    if samples.forget is not None:
        parts["samples"] = samples.forget
    ends = original.classifier, model.classifier
    return {
        name: Value(loss_barrier(*ends, data).barrier) for name, data in parts.items()
    }
