"""How far an unlearned model's accuracies are from the retrained model's.

On the host, in float64. Pair models of the same training seed, and give means and
intervals over training seeds: a deterministic method gives one answer for each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxunlearn.checks import check_nonnegative, check_positive


class Interval(NamedTuple):
    """A mean over training seeds and half the width of its interval.

    Attributes:
      mean: over the seeds.
      half_width: of the t-interval; NaN of a single seed.
    """

    mean: float
    half_width: float

    def __str__(self):
        return f"{self.mean:.2f} ± {self.half_width:.2f}"


def t_interval(values: Any, *, confidence: float = 0.95) -> Interval:
    """The mean of values of several seeds, with its t-interval.

        mean ± t_{n-1, (1+confidence)/2} s / sqrt(n),   s^2 = sum (x - mean)^2 / (n - 1)

    Raises:
      ValueError: no value, or `confidence` outside (0, 1).

    >>> print(t_interval([1.0, 2.0, 3.0]))
    2.00 ± 2.48
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64).ravel()
    if not values.size:
        msg = "values are empty: give one for each training seed."
        raise ValueError(msg)
    if not 0 < confidence < 1:
        msg = f"confidence must be between 0 and 1; it is {confidence}."
        raise ValueError(msg)
    n = values.size
    if n == 1:
        return Interval(float(values[0]), float("nan"))
    width = t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return Interval(float(values.mean()), float(width))


def tow(unlearned: Sequence[float], retrained: Sequence[float]) -> float:
    """Tug of war: nearness to retraining on forget, retain and test samples at once.

        prod_s (1 - |acc_u(s) - acc_g(s)| / 100),   s in forget, retain, test

    Args:
      unlearned: accuracies in percent, in the order forget, retain, test.
      retrained: those of the model retrained with the same seed.

    Raises:
      ValueError: not three accuracies in [0, 100] each.

    Source: Zhao et al., arXiv 2406.01257. 1 is the retrained model itself.

    >>> round(tow((2.0, 99.0, 91.5), (0.0, 99.8, 93.2)), 6)
    0.955633
    """
    u, g = _percent("unlearned", unlearned, 3), _percent("retrained", retrained, 3)
    return float(np.prod(1 - np.abs(u - g) / 100))


def average_gap(unlearned: Sequence[float], retrained: Sequence[float]) -> float:
    """The mean distance to retraining, in points.

        mean_m |u_m - g_m|

    Args:
      unlearned: measures in percent, such as unlearning accuracy (100 - forget
        accuracy), membership, retain and test accuracy. Their scales differ: print the
        single gaps too, and do not tune on this number.
      retrained: the same measures of the retrained model.

    Raises:
      ValueError: lengths differ, no measure, or one outside [0, 100].

    Source: tables of SalUn, arXiv 2310.12508.

    >>> average_gap((98.0, 92.5, 99.0, 91.5), (100.0, 100.0, 99.8, 93.2)).__round__(6)
    3.0
    """
    u = _percent("unlearned", unlearned, None)
    return float(np.abs(u - _percent("retrained", retrained, len(u))).mean())


def adaptive_unlearning_score(
    *, original_test: float, unlearned_test: float, unlearned_forget: float
) -> float:
    """Test accuracy kept, beside its distance from the forget accuracy (AUS).

        (1 - (TA_o - TA_u)) / (1 + |TA_u - FA_u|)

    Args:
      original_test: the original's test accuracy, a fraction.
      unlearned_test: the unlearned model's.
      unlearned_forget: its accuracy on forget samples.

    Raises:
      ValueError: an accuracy outside [0, 1].

    Source: Cotogni et al. (arXiv 2312.09334), as ERASURE codes it. It rewards a forget
    accuracy below the retrained model's: judge it by that model's score.

    >>> score = adaptive_unlearning_score(
    ...     original_test=0.932, unlearned_test=0.915, unlearned_forget=0.02
    ... )
    >>> round(score, 6)
    0.518734
    """
    _check_fractions(
        original_test=original_test,
        unlearned_test=unlearned_test,
        unlearned_forget=unlearned_forget,
    )
    distance = abs(unlearned_test - unlearned_forget)
    return (1 - (original_test - unlearned_test)) / (1 + distance)


def nomus(*, test_accuracy: float, membership: float, weight: float = 0.5) -> float:
    """Test accuracy beside the failure of a membership attack (NoMUS).

        weight TA + (1 - weight) (1 - 2 |MIA - 1/2|)

    Args:
      test_accuracy: a fraction.
      membership: accuracy of a membership attack, a fraction.
      weight: of the test accuracy.

    Raises:
      ValueError: a number outside [0, 1].

    Source: Choi and Na (arXiv 2311.02240), as ERASURE codes it. It takes 1/2 for the
    ideal of every attack: judge it by the retrained model's score.

    >>> nomus(test_accuracy=0.915, membership=0.6).__round__(6)
    0.8575
    """
    given = {"test_accuracy": test_accuracy, "membership": membership}
    _check_fractions(**given, weight=weight)
    return weight * test_accuracy + (1 - weight) * (1 - 2 * abs(membership - 0.5))


def retention(unlearned: float, retrained: float) -> float:
    """An accuracy as a share of the retrained model's.

        acc_u / acc_g,   NaN where the retrained model has none

    Raises:
      ValueError: a negative accuracy.

    Source: Cadet et al., arXiv 2410.01276.

    >>> retention(91.5, 93.2).__round__(6)
    0.98176
    """
    _check_nonnegative(unlearned=unlearned, retrained=retrained)
    return unlearned / retrained if retrained else float("nan")


def indiscernibility(membership: float, retrained: float = 0.5) -> float:
    """How near a membership attack comes to what it makes of the retrained model.

        1 - |MIA_u - MIA_g| / max(MIA_g, 1 - MIA_g)

    Args:
      membership: accuracy of the attack on the unlearned model, a fraction.
      retrained: on the retrained one. The default 1/2 is the published measure, which
        is right for samples drawn at random and wrong for whole classes.

    Raises:
      ValueError: a number outside [0, 1].

    Source: Cadet et al., arXiv 2410.01276.

    >>> indiscernibility(0.6).__round__(6), indiscernibility(0.6, 0.8).__round__(6)
    (0.8, 0.75)
    """
    _check_fractions(membership=membership, retrained=retrained)
    return 1 - abs(membership - retrained) / max(retrained, 1 - retrained)


def sape(a: float, b: float) -> float:
    """The symmetric absolute percentage error, in [0, 100]; 0 where both are 0.

        100 |a - b| / (|a| + |b|)

    Source: Cadet et al., arXiv 2410.01276.

    >>> sape(3.0, 1.0)
    50.0
    """
    size = abs(a) + abs(b)
    return 100 * abs(a - b) / size if size else 0.0


def runtime_efficiency(retrained_seconds: float, unlearned_seconds: float) -> float:
    """How many times faster unlearning was than retraining (RTE).

        t_g / t_u

    Both must be taken alike: with compilation and data loading in both or in neither.

    Raises:
      ValueError: seconds that are not positive.

    Source: Cadet et al., arXiv 2410.01276.

    >>> runtime_efficiency(60.0, 5.0)
    12.0
    """
    check_positive("retrained_seconds", retrained_seconds)
    check_positive("unlearned_seconds", unlearned_seconds)
    return retrained_seconds / unlearned_seconds


def _check_fractions(**given: float) -> None:
    for name, value in given.items():
        if not 0 <= value <= 1:
            msg = f"{name} must be a fraction in [0, 1]; it is {value}."
            raise ValueError(msg)


def _check_nonnegative(**given: float) -> None:
    for name, value in given.items():
        check_nonnegative(name, value)


def _percent(name: str, values: Any, count: int | None) -> Float[np.ndarray, " m"]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or count not in (None, len(values)):
        wanted = "one or more" if count is None else f"{count}"
        msg = f"{name} must be {wanted} numbers in percent; their shape is {values.shape}."  # noqa: E501
        raise ValueError(msg)
    if not ((values >= 0) & (values <= 100)).all():
        msg = f"{name} must be in percent, from 0 to 100; they are {values.tolist()}."
        raise ValueError(msg)
    return values
