"""Membership attacks by a trained classifier: support vectors, logistic regression.

Sets go in as pairs of probabilities `[n, k]` and labels `[n]`. Run each attack on the
retrained model too: 1/2, or a share of 0, is no target. On the host, in float64.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxunlearn.checks import check_choice, check_count, check_key
from jaxunlearn.metrics.distances import entropy
from jaxunlearn.metrics.membership import (
    OPTML,
    check_scores,
    confidence,
    modified_entropy,
)

# Training samples and test samples that the attackers of an audit learn from.
SHADOWS = 1000

_SAMPLES = "shadow_members", "shadow_nonmembers", "attacked"


@dataclasses.dataclass(frozen=True)
class SvcMembership:
    """The share of attacked samples *not* called members, by what the attacker sees.

    Attributes:
      correctness: whether the label is the largest.
      confidence: the label's probability; the number that papers quote.
      entropy: of the probabilities.
      modified_entropy: which knows the label.
      probabilities: all of them.
      shadows: samples that the attacker learned from, of members and of non-members.
    """

    correctness: float
    confidence: float
    entropy: float
    modified_entropy: float
    probabilities: float
    shadows: tuple[int, int]


def svc_membership(
    shadow_members: tuple[Any, Any],
    shadow_nonmembers: tuple[Any, Any],
    attacked: tuple[Any, Any],
    *,
    key: Any,
    limit: int | None = None,
    variant: str = "exact",
) -> SvcMembership:
    """The "forget efficacy" of support vectors: 1 - mean(called a member).

    RBF kernel, C = 3, gamma = 1 / features, one attacker for each of five features,
    which learns retained training samples from test samples: as many of every class of
    one kind as of the other, drawn by the key, so that neither size nor class tells.

    Args:
      shadow_members: probabilities and labels of retained training samples.
      shadow_nonmembers: of retained test samples.
      attacked: of the forgotten samples.
      key: a `jax.random.key`, for the draw.
      limit: the most of either kind; None is all. Time grows with its square.
      variant: "exact", or "as-coded:unlearn-saliency": the first training samples,
        unbalanced, all test samples, and its modified entropy.

    Raises:
      TypeError: as for `modified_entropy`, like ValueError.
      ValueError: no class with samples of both kinds, an empty set, or no such variant.

    Source: SalUn (arXiv 2310.12508) and Jia et al. (arXiv 2304.04934). The target is
    the retrained model's, nearly 1 where whole classes are forgotten.

    >>> sure, unsure = np.array([[0.9, 0.1]] * 4), np.array([[0.6, 0.4]] * 4)
    >>> zeros = np.zeros(4, int)
    >>> shadows = (sure, zeros), (unsure, zeros)
    >>> svc_membership(*shadows, (unsure, zeros), key=jax.random.key(0)).confidence
    1.0
    """
    from sklearn.svm import SVC

    check_choice("variant", variant, ("exact", OPTML))
    check_key(key)
    sets = _checked(shadow_members, shadow_nonmembers, attacked)
    (p, labels), (others, other_labels), target = sets
    if variant == OPTML:
        count = len(other_labels)
        p, labels = p[:count], labels[:count]
        rows = np.arange(len(labels)), np.arange(count)
    else:
        rows = matched_rows(labels, other_labels, key, limit)
    truth = np.repeat([1, 0], [len(chosen) for chosen in rows])
    missed = {}
    for name, read in _FEATURES.items():
        inside = read(p, labels, variant)[rows[0]]
        outside = read(others, other_labels, variant)[rows[1]]
        attacker = SVC(C=3, gamma="auto", kernel="rbf")
        attacker.fit(np.concatenate([inside, outside]), truth)
        missed[name] = 1 - float(attacker.predict(read(*target, variant)).mean())
    return SvcMembership(**missed, shadows=(len(rows[0]), len(rows[1])))


@dataclasses.dataclass(frozen=True)
class EntropyMembership:
    """What logistic regression on the entropy tells of membership.

    Attributes:
      member_share: of the attacked samples, those called members.
      shadow_accuracy: balanced, on the samples that it learned from; near 1/2 it knows
        nothing.
    """

    member_share: float
    shadow_accuracy: float


def entropy_logistic_membership(
    shadow_members: Any, shadow_nonmembers: Any, attacked: Any
) -> EntropyMembership:
    """Balanced logistic regression on entropy; the share of attacked called members.

    Args:
      shadow_members: probabilities of retained training samples, `[n, k]`.
      shadow_nonmembers: of retained test samples; numbers may differ.
      attacked: of the forgotten samples.

    Raises:
      TypeError: as for `entropy`, like ValueError.

    Source: selective synaptic dampening (arXiv 2308.07707), after Chundawat et al.
    (arXiv 2205.08096).

    >>> sure, unsure = np.array([[0.99, 0.01]] * 4), np.array([[0.6, 0.4]] * 2)
    >>> entropy_logistic_membership(sure, unsure, unsure)
    EntropyMembership(member_share=0.0, shadow_accuracy=1.0)
    """
    from sklearn.linear_model import LogisticRegression

    given = shadow_members, shadow_nonmembers, attacked
    inside, outside, target = (np.asarray(entropy(p), float)[:, None] for p in given)
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    attacker = LogisticRegression(class_weight="balanced")
    attacker.fit(np.concatenate([inside, outside]), truth)
    share, kept = (attacker.predict(rows).mean() for rows in (target, outside))
    caught = attacker.predict(inside).mean()
    return EntropyMembership(float(share), float((caught + 1 - kept) / 2))


@dataclasses.dataclass(frozen=True)
class LossAttack:
    """How well forgotten samples are told from unseen ones by their losses.

    Attributes:
      accuracy: mean over ten splits, of a logistic regression.
      auc: chance that a forgotten sample has the lower loss; below 1/2 it is *less*
        like a member than an unseen one.
      tpr_at_1_fpr: forgotten samples found at a false positive rate of at most 1 %.
      samples: of either kind.
    """

    accuracy: float
    auc: float
    tpr_at_1_fpr: float
    samples: int


def simple_loss_attack(
    forget_losses: Any, unseen_losses: Any, *, key: Any, splits: int = 10
) -> LossAttack:
    """Logistic regression on the loss of each sample, forgotten against unseen.

    The mean accuracy over stratified shuffle splits, a tenth held out in each. Of the
    larger set as many as the smaller has are drawn by the key.

    Args:
      forget_losses: `[n]`, such as cross-entropies of the forget set.
      unseen_losses: `[m]`, of test samples like them.
      key: a `jax.random.key`, for the draw and the splits.
      splits: how many.

    Raises:
      TypeError: `key` is no key.
      ValueError: losses are not one-dimensional or not a number, or fewer than ten are
        left of each kind.

    Source: the starting kit of the NeurIPS 2023 unlearning challenge. 1/2 is the target
    only where samples were drawn at random.

    >>> attack = simple_loss_attack(np.zeros(20), np.ones(30), key=jax.random.key(0))
    >>> attack.accuracy, attack.auc
    (1.0, 1.0)
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score, roc_curve
    from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

    check_key(key)
    check_count("splits", splits)
    sets = {"forget_losses": forget_losses, "unseen_losses": unseen_losses}
    sets = [check_scores(*item) for item in sets.items()]
    count = min(map(len, sets))
    if count < 10:
        msg = (
            "A tenth of the samples is held out, and ten or more of each kind are "
            f"needed; there are {len(sets[0])} forget_losses and {len(sets[1])} "
            "unseen_losses."
        )
        raise ValueError(msg)
    draw = generator(key)
    losses = np.concatenate([draw.permutation(each)[:count] for each in sets])
    truth = np.repeat([1, 0], count)
    cut = StratifiedShuffleSplit(
        splits, test_size=0.1, random_state=int(draw.integers(2**31))
    )
    right = cross_val_score(
        LogisticRegression(), losses[:, None], truth, cv=cut, scoring="accuracy"
    )
    false, true, _ = roc_curve(truth, -losses, drop_intermediate=False)
    return LossAttack(
        float(right.mean()),
        float(roc_auc_score(truth, -losses)),
        float(true[false <= 0.01].max()),
        count,
    )


def generator(key: Any) -> np.random.Generator:
    """NumPy's, of a key of JAX: for what is drawn on the host."""
    return np.random.default_rng(jax.random.key_data(key).ravel().tolist())


def matched_rows(
    labels: np.ndarray, others: np.ndarray, key: Any, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two sets, as many of every class in one as in the other.

    Raises:
      ValueError: the two share no class.
    """
    draw = generator(key)
    shared = np.intersect1d(labels, others)
    if not shared.size:
        msg = (
            "shadow_members and shadow_nonmembers share no class, so that their class "
            f"tells them apart: they are of {np.unique(labels).tolist()} and "
            f"{np.unique(others).tolist()}."
        )
        raise ValueError(msg)
    pairs = []
    for c in shared:
        rows = (draw.permutation(np.flatnonzero(y == c)) for y in (labels, others))
        pairs.extend(zip(*rows, strict=False))
    pairs = draw.permutation(np.array(pairs))[:limit]
    return pairs[:, 0], pairs[:, 1]


def _checked(*sets):
    pairs = []
    for name, (p, labels) in zip(_SAMPLES, sets, strict=True):
        p, labels = np.asarray(p), np.asarray(labels)
        confidence(p, labels)  # which refuses what is no such pair
        if not len(p):
            msg = f"{name} is empty: give the probabilities of one sample or more."
            raise ValueError(msg)
        pairs.append((p, labels))
    return pairs


_FEATURES = {
    "correctness": lambda p, y, variant: (p.argmax(axis=1) == y)[:, None].astype(float),
    "confidence": lambda p, y, variant: np.asarray(confidence(p, y))[:, None],
    "entropy": lambda p, y, variant: np.asarray(entropy(p))[:, None],
    "modified_entropy": lambda p, y, variant: np.asarray(
        modified_entropy(p, y, variant=variant)
    )[:, None],
    "probabilities": lambda p, y, variant: p,
}
