"""Ascend on the forget set, with or without descent on the retain set."""

import dataclasses
from typing import ClassVar

from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.methods.baseline import Baseline, labelled, retained


def _ascent(constants, classifier, rows, key):
    del constants, key
    images, labels = rows["forget"]
    return -cross_entropy(classifier(images), labels).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientAscent(Baseline):
    """Ascend on the forget samples' cross-entropy (NegGrad); reads no retained data.

        theta <- theta + learning_rate grad cross-entropy(forget)

    Unbounded: what it leaves of the retained classes depends on when it stops. A
    confident model gives no gradient at first and then too much, so that few rates lie
    between nothing and collapse; grids are cut finer for it.

    Source: Thudi et al., arXiv 2109.13398; Golatkar et al., arXiv 1911.04933.

    >>> GradientAscent().momentum
    0.0
    """

    learning_rate: float = 1e-3
    momentum: float = 0.0
    steps: int = 20

    reads_retained: ClassVar[bool] = False
    finer: ClassVar[int] = 4

    def sets(self, classifier, task, key):
        """Forget samples alone."""
        del classifier, key
        return {"forget": labelled(task.forget)}

    def objective(self):
        """Minus the cross-entropy."""
        return _ascent


@dataclasses.dataclass(frozen=True)
class _Both:
    alpha: float

    def __call__(self, constants, classifier, rows, key):
        images, labels = rows["retain"]
        kept = cross_entropy(classifier(images), labels).mean()
        lost = _ascent(constants, classifier, rows, key)
        return self.alpha * kept + (1 - self.alpha) * lost


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegGradPlus(Baseline):
    """Descend on retained and ascend on forget samples at once (NegGrad+).

        alpha cross-entropy(retain) - (1 - alpha) cross-entropy(forget)

    Attributes:
      alpha: the share of the retained term.

    Source: Kurmanji et al., arXiv 2302.09880.

    >>> NegGradPlus().alpha
    0.95
    """

    alpha: float = 0.95

    finer: ClassVar[int] = 4

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.alpha < 1:
            msg = f"alpha must lie in (0, 1); it is {self.alpha}."
            raise ValueError(msg)

    def sets(self, classifier, task, key):
        """Both sets."""
        del classifier, key
        return {
            "forget": labelled(task.forget),
            "retain": labelled(retained(task, self)),
        }

    def objective(self):
        """The weighted difference."""
        return _Both(self.alpha)
