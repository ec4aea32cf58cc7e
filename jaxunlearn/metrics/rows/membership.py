"""Audits that ask whether forgotten samples look trained on.

Attackers learn on the retained samples that are probed against retained test samples.
Forgotten samples stand against test samples of their classes or, where samples and not
classes were forgotten, against all.
"""

import jax
import numpy as np
from scipy.special import log_softmax

from jaxunlearn.metrics.attackers import (
    SHADOWS,
    entropy_logistic_membership,
    simple_loss_attack,
    svc_membership,
)
from jaxunlearn.metrics.membership import modified_entropy, threshold_attack
from jaxunlearn.metrics.rows.values import Value, Values


def threshold(model, original, retrained, samples) -> Values:
    """A threshold on modified entropy, set on retained data, applied to forgotten."""
    del original, retrained
    train = _negative_entropy(model.train_logits, samples.probed.labels)
    test = _negative_entropy(model.logits, samples.test.labels)
    attacked = _negative_entropy(model.gone_logits, samples.gone.labels)
    fresh = test[samples.fresh]
    shadows = train[~samples.probed_gone], test[samples.retained]
    attack = threshold_attack(*shadows, attacked, fresh)
    return {
        "": Value(attack.auc, min(attacked.size, fresh.size), 1),
        "members": Value(100 * attack.member_share, attacked.size),
    }


def support_vectors(model, original, retrained, samples) -> Values:
    """The "forget efficacy" of the SalUn line of papers, by every feature."""
    del original, retrained
    attack = svc_membership(
        *_pairs(model, samples), key=jax.random.fold_in(samples.key, 2), limit=SHADOWS
    )
    count = len(samples.gone)
    names = "correctness", "entropy", "modified_entropy", "probabilities"
    parts = {name.replace("_", "-"): getattr(attack, name) for name in names}
    return {
        name: Value(share, count, 1)
        for name, share in {"": attack.confidence, **parts}.items()
    }


def logistic_entropy(model, original, retrained, samples) -> Values:
    """The share of forgotten samples that logistic regression calls members."""
    del original, retrained
    probabilities = [p for p, _ in _pairs(model, samples)]
    attack = entropy_logistic_membership(*probabilities)
    return {"": Value(attack.member_share, len(samples.gone), 1)}


def losses(model, original, retrained, samples) -> Values:
    """Forgotten samples told from unseen ones by their losses."""
    del original, retrained
    pairs = (
        (model.gone_logits, samples.gone.labels),
        (model.logits[samples.fresh], samples.test.labels[samples.fresh]),
    )
    forgotten, fresh = (
        -log_softmax(np.asarray(z, np.float64), axis=1)[np.arange(len(y)), y]
        for z, y in pairs
    )
    if min(len(forgotten), len(fresh)) < 10:
        return {"": Value(float("nan"))}
    key = jax.random.fold_in(samples.key, 3)
    attack = simple_loss_attack(forgotten, fresh, key=key)
    return {
        "": Value(attack.accuracy, 2 * attack.samples, 1),
        "auc": Value(attack.auc, attack.samples, 1),
        "tpr-at-1-fpr": Value(attack.tpr_at_1_fpr, attack.samples, 1),
    }


def _pairs(model, samples):
    """Shadow members, shadow non-members and forgotten samples, for an attacker."""
    sets = (
        (model.train_logits, samples.probed.labels, ~samples.probed_gone),
        (model.logits, samples.test.labels, samples.retained),
        (model.gone_logits, samples.gone.labels, slice(None)),
    )
    return [(np.asarray(jax.nn.softmax(z))[rows], y[rows]) for z, y, rows in sets]


def _negative_entropy(outputs, labels):
    return -np.asarray(modified_entropy(jax.nn.softmax(outputs), labels))
