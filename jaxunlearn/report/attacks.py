"""What an attacker sees: how fast a class is relearned, and who was trained on."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import softmax

from jaxunlearn.methods.multiply_adds import Costs
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.membership import modified_entropy
from jaxunlearn.metrics.relearning import Relearned, Relearning, relearn_steps
from jaxunlearn.metrics.rows.features import RELEARNED_SHARE
from jaxunlearn.metrics.rows.values import class_mean
from jaxunlearn.report.contents import Contents, MissingError
from jaxunlearn.report.limits import Limits
from jaxunlearn.report.outputs import affordable, part
from jaxunlearn.tasks import Data

_STEPS, _FEWEST_STEPS = 150, 20
# About a minute of two cores, over all models.
_MULTIPLY_ADDS = 1e12


class Relearnings(NamedTuple):
    """Curves of relearning, all models taught alike.

    Attributes:
      curves: by model.
      target: the accuracy that ends a curve, in percent.
      cap: the most minibatches.
      samples: how many training samples there were to learn from.
    """

    curves: Mapping[str, Relearned]
    target: float
    cap: int
    samples: int


class Roc(NamedTuple):
    """A receiver operating characteristic.

    Attributes:
      false, true: shares of unseen and of forgotten samples that are called members, as
        the threshold falls.
      auc: the area under it.
    """

    false: np.ndarray
    true: np.ndarray
    auc: float


class Memberships(NamedTuple):
    """A curve for each model, of the same samples.

    Attributes:
      curves: by model.
      members: how many forgotten samples there were.
      others: and how many unseen ones.
    """

    curves: Mapping[str, Roc]
    members: int
    others: int


def relearning(contents: Contents, limits: Limits) -> Relearnings:
    """Minibatches until the forgotten classes are back, as the audit teaches them."""
    data, models = contents.data, contents.loaded
    classes, forget = contents.forget_classes, None
    train, test = part(data.train, limits.samples), part(data.test, limits.samples)
    original = contents.original.classifier
    if original is None:
        raise MissingError(contents.absent)
    if contents.samplewise:
        forget, judged = data.forget, data.forget
        train = data.train  # which must hold them all
    else:
        judged = _of_classes(test, classes)
        _check(judged, _of_classes(train, classes))
    right = logits(original, judged.images).argmax(axis=1) == judged.labels
    target = RELEARNED_SHARE * class_mean(right, judged.labels)
    if contents.samplewise:  # As the audit: all of it.
        target = 100 * float(right.mean())
    if target <= 0:
        msg = (
            "The original itself knows nothing of what was to be forgotten: there is "
            "nothing to relearn."
        )
        raise MissingError(msg)
    how = Relearning()
    batch = min(how.batch_size, len(train))
    cap = limits.relearn_steps
    if cap is None:
        each = Costs(original, train.images).step() * batch * len(models)
        cap = min(_STEPS, int(_MULTIPLY_ADDS / max(each, 1)))
        if cap < _FEWEST_STEPS:
            msg = (
                f"A minibatch of relearning takes {each:.1g} multiply-adds for all "
                "models, too many for a page that is made in seconds: "
                f"--relearn-steps {_STEPS} takes the time."
            )
            raise MissingError(msg)
    key = jax.random.key(0) if contents.key is None else contents.key
    curves = {
        model.name: relearn_steps(
            model.classifier,
            *(train, test, classes),
            forget=forget,
            target=target,
            protocol=dataclasses.replace(how, cap=cap),
            key=jax.random.fold_in(key, 1),
        )
        for model in models
    }
    return Relearnings(curves, target, cap, len(train))


def membership(contents: Contents, limits: Limits) -> Memberships:
    """Forgotten training samples against unseen ones like them, by the loss's kin.

    Scores are minus the modified entropy, as in the audit of that name.
    """
    data, models = contents.data, contents.loaded
    seen, unseen = data.forget, data.test
    if not contents.samplewise:
        unseen = _of_classes(unseen, contents.forget_classes)
    _check(seen, unseen)
    most = affordable(contents, seen.images, limits.samples)
    pair = part(seen, most), part(unseen, most)
    curves = {
        model.name: roc(*(_scores(model.classifier, one) for one in pair))
        for model in models
    }
    return Memberships(curves, *map(len, pair))


def roc(members: np.ndarray, others: np.ndarray) -> Roc:
    """Of scores, higher for members.

    >>> roc(np.array([3.0, 1.0]), np.array([2.0, 0.0])).auc
    0.75
    """
    from sklearn.metrics import auc, roc_curve

    truth = np.repeat([1, 0], [len(members), len(others)])
    false, true, _ = roc_curve(truth, np.concatenate([members, others]))
    return Roc(false, true, float(auc(false, true)))


def _scores(classifier, data: Data) -> np.ndarray:
    p = softmax(np.asarray(logits(classifier, data.images), np.float64), axis=1)
    return -np.asarray(modified_entropy(p, data.labels), np.float64)


def _of_classes(data: Data, classes) -> Data:
    return data.take(np.isin(data.labels, classes))


def _check(*some: Data) -> None:
    if not all(map(len, some)):
        msg = (
            "The samples that were looked at hold none of the forgotten classes: "
            "--samples takes more."
        )
        raise MissingError(msg)
