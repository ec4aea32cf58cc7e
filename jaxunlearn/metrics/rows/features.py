"""Audits that read a model's features, and one that teaches it again."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jaxunlearn.metrics.probes import attack_with_prototypes
from jaxunlearn.metrics.relearning import Relearning, default_cap, relearn_steps
from jaxunlearn.metrics.rows.values import Function, Value, Values, class_mean, mean
from jaxunlearn.metrics.similarity import linear_cka
from jaxunlearn.metrics.subject import title_of_layer

# Samples of each class whose mean is the attacker's prototype (arXiv 2506.01318).
PROTOTYPE_SAMPLES = 5
# Of the original's accuracy, as in arXiv 2201.05629.
RELEARNED_SHARE = 0.95
# Ten epochs, as there, are 51 minibatches of the digits and 2,300 of MNIST, which
# would cost more than to retrain a small network. What is not back by then is a bound.
RELEARNING_CAP = 300


def probing(read: Any, *, every_layer: bool = False) -> Function:
    """Recall of the forgotten classes on test data, read off the features of layers."""
    layers = slice(None) if every_layer else slice(-1, None)
    return functools.partial(_probe, read=read, layers=layers)


def _probe(model, original, retrained, samples, *, layers: slice, read: Any) -> Values:
    del original, retrained
    truth = samples.test.labels[samples.forgotten]
    values = {}
    for name in model.layers[layers]:
        test = model.features[name][samples.forgotten]
        train = model.train_features[name], samples.probed.labels
        right = read(*train, test) == truth
        part = "" if name == model.layers[-1] else title_of_layer(name)
        values[part] = Value(class_mean(right, truth), truth.size)
    return values


def relearning(data: str) -> Function:
    """Minibatches of these data until the original's accuracy is back."""
    return functools.partial(_relearn, data=data)


def _relearn(model, original, retrained, samples, *, data: str) -> Values:
    del retrained
    if samples.forget is None:
        rows = samples.forgotten
        truth, known = samples.test.labels[rows], original.logits[rows].argmax(axis=1)
        target = RELEARNED_SHARE * class_mean(known == truth, truth)
    else:
        # All of it: 95 % a retrained model may have of samples it never saw.
        right = original.forget_logits.argmax(axis=1) == samples.forget.labels
        target = 100 * float(right.mean())
    if target <= 0:
        return {"": Value(float("nan"))}
    how = Relearning(data=data)
    cap = min(default_cap(len(samples.train), how.batch_size), RELEARNING_CAP)
    relearned = relearn_steps(
        model.classifier,
        samples.train,
        samples.test,
        samples.forget_classes,
        forget=samples.forget,
        target=target,
        protocol=dataclasses.replace(how, cap=cap),
        key=jax.random.fold_in(samples.key, 1),
    )
    return {"": Value(float(relearned.steps), censored=relearned.censored)}


def prototype(model, original, retrained, samples) -> Values:
    """Accuracies after a few samples' mean feature is mixed into the head."""
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


def cka(model, original, retrained, samples) -> Values:
    """Likeness of the head's inputs to the original's and the retrained models'."""
    del samples
    features = [m.features[m.layers[-1]] for m in (model, original, *retrained)]
    mine, before, *others = features
    values = {"original": Value(float(linear_cka(mine, before)))}
    if others:
        values["retrained"] = Value(mean(linear_cka(mine, g) for g in others))
    return values
