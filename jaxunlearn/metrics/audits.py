"""The audits by name: what each reads off a model.

A new audit is a function and a row of `AUDITS`. It is given the model, the original,
the retrained models to compare with (for a retrained one: the others), and the samples.
"""

import dataclasses

from jaxunlearn.metrics.probes import (
    class_mean_predictions,
    linear_probe,
    neighbour_predictions,
)
from jaxunlearn.metrics.rows import features, inputs, membership, outputs, weights
from jaxunlearn.metrics.rows.values import Function
from jaxunlearn.metrics.rows.values import Value as Value


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


_MORE = {"default": False}
_SAMPLES = {"samplewise": True}

AUDITS: dict[str, AuditKind] = {
    "accuracy": AuditKind(
        "accuracy in %, mean over classes", outputs.accuracy, **_SAMPLES
    ),
    "rarest": AuditKind(
        "accuracy on the retained classes of fewest training samples, %",
        outputs.rarest,
        **_MORE,
    ),
    "distribution": AuditKind(
        "JS to the retrained, TV of labels", outputs.distribution, **_SAMPLES
    ),
    "probe": AuditKind(
        "recall of a linear probe on the features, %", features.probing(linear_probe)
    ),
    "probe-layers": AuditKind(
        "the same at every layer",
        features.probing(linear_probe, every_layer=True),
        **_MORE,
    ),
    "class-mean": AuditKind(
        "recall of the nearest class mean, %", features.probing(class_mean_predictions)
    ),
    "knn": AuditKind(
        "recall of the five nearest neighbours, %",
        features.probing(neighbour_predictions),
        **_MORE,
    ),
    "relearn": AuditKind(
        "minibatches of all data until the original's accuracy is back",
        features.relearning("all"),
        **_SAMPLES,
    ),
    "retain-relearn": AuditKind(
        "the same with retained data alone",
        features.relearning("retain"),
        **_MORE,
        **_SAMPLES,
    ),
    "prototype": AuditKind(
        "harmonic mean of Acc_f, Acc_r after it, %", features.prototype
    ),
    "neighbour": AuditKind("AUC of telling it from a retrained one", outputs.neighbour),
    "membership": AuditKind(
        "AUC of membership by modified entropy", membership.threshold, **_SAMPLES
    ),
    "svc": AuditKind(
        "share that support vectors call no members, by confidence",
        membership.support_vectors,
        **_MORE,
        **_SAMPLES,
    ),
    "entropy-attack": AuditKind(
        "share that logistic regression on entropy calls members",
        membership.logistic_entropy,
        **_MORE,
        **_SAMPLES,
    ),
    "loss-attack": AuditKind(
        "accuracy of telling forgotten from unseen samples by loss",
        membership.losses,
        **_MORE,
        **_SAMPLES,
    ),
    "over-unlearning": AuditKind(
        "JS to the masked original near its boundary", inputs.over_unlearning, **_MORE
    ),
    "recovery": AuditKind(
        "median change of pixels that recovers a class", inputs.recovery, **_MORE
    ),
    "shifted": AuditKind(
        "accuracy under noise, blur and low contrast, %", inputs.shifted, **_MORE
    ),
    "attacked": AuditKind(
        "accuracy under FGSM and PGD, share they bring back, %",
        inputs.attacked,
        **_MORE,
    ),
    "cka": AuditKind("likeness of features", features.cka, **_MORE, **_SAMPLES),
    "distance": AuditKind(
        "of the weights from the original's", weights.distance, **_MORE, **_SAMPLES
    ),
    "drift": AuditKind(
        "of each layer's outputs on retained inputs", weights.drift, **_MORE, **_SAMPLES
    ),
    "barrier": AuditKind(
        "of the loss, on the line from the original",
        weights.barrier,
        **_MORE,
        **_SAMPLES,
    ),
    "loss-change": AuditKind(
        "of the retained loss from the original's, nats",
        weights.loss_change,
        **_MORE,
        **_SAMPLES,
    ),
}
