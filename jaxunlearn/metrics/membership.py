"""Membership inference: were these samples trained on?

Scores are higher for members. Run each attack on the retrained model too, and report
the gap: where whole classes are forgotten a low score says more about the class than
about membership.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn.checks import check_choice, check_labels

_FLOOR = 1e-30
OPTML = "as-coded:unlearn-saliency"


def confidence(p: Any, labels: Any) -> Float[Array, " n"]:
    """The probability of each sample's own label.

    Raises:
      TypeError: as for `modified_entropy`, like ValueError.

    >>> confidence(jnp.array([[0.75, 0.25]]), jnp.array([1])).tolist()
    [0.25]
    """
    p, labels = _checked(p, labels)
    return jnp.take_along_axis(p, labels[:, None], axis=1)[:, 0]


def logit_scaled_confidence(p: Any, labels: Any) -> Float[Array, " n"]:
    """The confidence on the scale on which it is nearly normal.

        log p_y - log (1 - p_y)

    Raises:
      TypeError: as for `modified_entropy`, like ValueError.

    Source: Carlini et al., arXiv 2112.03570.

    >>> p = jnp.array([[0.9, 0.1]])
    >>> round(float(logit_scaled_confidence(p, jnp.array([0]))[0]), 5)
    2.19722
    """
    p, labels = _checked(p, labels)
    own = jax.nn.one_hot(labels, p.shape[1], dtype=bool)
    # The others' sum, and not 1 - p_y, which is 0 where p_y is nearly 1.
    rest = jnp.where(own, 0, p).sum(axis=1)
    return _log(confidence(p, labels)) - _log(rest)


def modified_entropy(
    p: Any, labels: Any, *, variant: str = "exact"
) -> Float[Array, " n"]:
    """The entropy that knows the label: 0 for a sure and right prediction.

        -(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)

    Args:
      p: probabilities.
      labels: true classes.
      variant: "exact", or "as-coded:unlearn-saliency" (and all that descends from it):
        it takes log p for log(1 - p) and, for every sample, the formula of the label in
        the columns of *all* labels that occur, so that a sample's own label is lost.

    Raises:
      TypeError: `p` is not floating point, or labels are not integers.
      ValueError: shapes are not `[n, k]` and `[n]`, a class does not exist, or there is
        no such variant.

    Source: Song and Mittal, arXiv 2003.10595. Logarithms are floored at 1e-30.

    >>> p = jnp.array([[0.7, 0.2, 0.1]] * 2)
    >>> [round(float(e), 5) for e in modified_entropy(p, jnp.array([0, 1]))]
    [0.16217, 2.14087]
    """
    check_choice("variant", variant, ("exact", OPTML))
    p, labels = _checked(p, labels)
    if variant == OPTML:
        occurs = jnp.zeros(p.shape[1], bool).at[labels].set(True)
        return -(jnp.where(occurs, 1 - p, p) * _log(p)).sum(axis=1)
    own = jax.nn.one_hot(labels, p.shape[1], dtype=bool)
    return -jnp.where(own, (1 - p) * _log(p), p * _log1m(p)).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class ThresholdAttack:
    """What a threshold on a score tells of membership.

    Attributes:
      threshold: scores from here on are called members.
      accuracy: balanced, of that threshold on the attacked samples.
      shadow_accuracy: on the shadow samples that it was chosen on.
      member_share: of the attacked members, those called so.
      auc: chance that an attacked member scores higher than a non-member.
      tpr_at_1_fpr: the largest share of attacked members found at a false positive rate
        of at most 1 %.
    """

    threshold: float
    accuracy: float
    shadow_accuracy: float
    member_share: float
    auc: float
    tpr_at_1_fpr: float


def threshold_attack(
    shadow_members: Any, shadow_nonmembers: Any, members: Any, nonmembers: Any
) -> ThresholdAttack:
    """The threshold that best parts the shadow samples, applied to the attacked ones.

        argmax_t 1/2 [P(member >= t) + P(non-member < t)]

    Of equally good thresholds, which are all scores seen, the largest. Scores are
    higher for members: confidence, or entropies with a minus. On the host, in float64.

    Args:
      shadow_members: scores of training samples that are not in question.
      shadow_nonmembers: scores of test samples that are not in question.
      members: scores of the attacked samples, such as the forget set.
      nonmembers: scores of samples like them that were never trained on.

    Raises:
      ValueError: one is empty, not one-dimensional, or not a number.

    Source: Song and Mittal, arXiv 2003.10595; UNSC (arXiv 2404.13588) uses it.

    >>> shadow = [0.99, 0.95, 0.9, 0.6], [0.8, 0.7, 0.5, 0.4]
    >>> attack = threshold_attack(*shadow, *shadow)
    >>> attack.threshold, attack.accuracy, attack.auc
    (0.9, 0.875, 0.875)
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    given = {
        "shadow_members": shadow_members,
        "shadow_nonmembers": shadow_nonmembers,
        "members": members,
        "nonmembers": nonmembers,
    }
    inside, outside, attacked, fresh = (check_scores(*item) for item in given.items())
    threshold = _best_threshold(inside, outside)
    truth = np.repeat([1, 0], [attacked.size, fresh.size])
    scores = np.concatenate([attacked, fresh])
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    return ThresholdAttack(
        threshold,
        accuracy=_balanced(attacked, fresh, threshold),
        shadow_accuracy=_balanced(inside, outside, threshold),
        member_share=float((attacked >= threshold).mean()),
        auc=float(roc_auc_score(truth, scores)),
        tpr_at_1_fpr=float(true[false <= 0.01].max()),
    )


def lira(
    trained: Any, never_seen: Any, attacked: Any, *, sigma: str = "population"
) -> Float[np.ndarray, " n"]:
    """The likelihood-ratio attack on unlearning (U-LiRA), example by example.

        N_f / (N_f + N_n),   N_f = N(attacked; mean, sigma of `trained`),   N_n likewise

    Args:
      trained: logit-scaled confidences `[m, n]` under `m` models that trained on the
        `n` examples and then unlearned them. Leave the attacked model itself out.
      never_seen: `[m', n]`, under models that never saw them.
      attacked: `[n]`, under the attacked model.
      sigma: "population" divides by m, "sample" by m - 1.

    Returns:
      Chances of having been trained on; above 1/2 the attack says so.

    Raises:
      ValueError: shapes do not fit, fewer than two models, or no such `sigma`.

    Source: Hayes et al., arXiv 2403.01218. Deviations are floored at 1e-6, so that
    models that agree give no 0 / 0. On the host, in float64.

    >>> chance = lira([[1.0], [2.0], [3.0]], [[0.0], [1.0], [2.0]], [2.5])
    >>> round(float(chance[0]), 6)
    0.817574
    """
    from scipy.special import expit

    check_choice("sigma", sigma, ("population", "sample"))
    seen, unseen = np.asarray(trained, float), np.asarray(never_seen, float)
    point = np.asarray(attacked, float)
    for name, values in (("trained", seen), ("never_seen", unseen)):
        if values.ndim != 2 or len(values) < 2 or values.shape[1:] != point.shape:
            msg = (
                f"{name} must be [models, n], of two or more models and as many "
                f"examples as attacked; shapes are {values.shape} and {point.shape}."
            )
            raise ValueError(msg)
    ddof = int(sigma == "sample")
    return expit(_log_normal(seen, point, ddof) - _log_normal(unseen, point, ddof))


def _log_normal(samples, point, ddof):
    deviation = np.maximum(samples.std(axis=0, ddof=ddof), 1e-6)
    return -np.log(deviation) - ((point - samples.mean(axis=0)) / deviation) ** 2 / 2


def _best_threshold(members, nonmembers):
    candidates = np.unique(np.concatenate([members, nonmembers]))
    caught = 1 - np.searchsorted(np.sort(members), candidates) / members.size
    spared = np.searchsorted(np.sort(nonmembers), candidates) / nonmembers.size
    quality = caught + spared
    return float(candidates[quality.size - 1 - quality[::-1].argmax()])


def _balanced(members, nonmembers, threshold):
    caught, spared = (members >= threshold).mean(), (nonmembers < threshold).mean()
    return float((caught + spared) / 2)


def check_scores(name: str, values: Any) -> Float[np.ndarray, " n"]:
    """One number a sample, in float64."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        msg = f"{name} must be scores [n], of one sample or more; their shape is {values.shape}."  # noqa: E501
        raise ValueError(msg)
    if np.isnan(values).any():
        msg = f"{name} hold {np.isnan(values).sum()} scores that are not a number."
        raise ValueError(msg)
    return values


def _checked(p, labels):
    p = jnp.asarray(p)
    if p.ndim != 2 or not jnp.issubdtype(p.dtype, jnp.floating):
        msg = f"p must be floating-point probabilities [n, k]; it is {p.dtype}{list(p.shape)}."  # noqa: E501
        raise (ValueError if p.ndim != 2 else TypeError)(msg)
    labels = check_labels("labels", labels, p.shape[0], p.shape[1])
    return p, jnp.asarray(labels, dtype=jnp.int32)


def _log(p):
    return jnp.log(jnp.maximum(p, _FLOOR))


def _log1m(p):
    # log1p keeps the digits of small p; at p = 1 the floor holds.
    return jnp.maximum(jnp.log1p(-jnp.minimum(p, 1)), jnp.log(_FLOOR))
