"""Go on training on retained data: what forgetting comes by itself."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxunlearn.checks import check_nonnegative
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.methods.baseline import Baseline, labelled, retained


def _cross_entropy(constants, classifier, rows, key):
    del constants, key
    images, labels = rows["retain"]
    return cross_entropy(classifier(images), labels).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTune(Baseline):
    """Descend on the retained samples' cross-entropy (FT).

    Catastrophic forgetting alone: of a class of its own little is lost.

    Source: Golatkar et al., arXiv 1911.04933; Warnecke et al., arXiv 2108.11577.

    >>> FineTune().forgets
    False
    """

    forgets: ClassVar[bool] = False

    def sets(self, classifier, task, key):
        """Retained samples alone."""
        del classifier, key
        return {"retain": labelled(retained(task, self))}

    def objective(self):
        """The cross-entropy."""
        return _cross_entropy


@dataclasses.dataclass(frozen=True)
class _Sparse:
    gamma: float

    def __call__(self, constants, classifier, rows, key):
        penalty = sum(
            jnp.abs(leaf).sum() for leaf in jax.tree.leaves(classifier.params)
        )
        return _cross_entropy(constants, classifier, rows, key) + self.gamma * penalty


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1Sparse(FineTune):
    """Fine-tuning with a penalty on the sum of all parameters' absolute values.

        cross-entropy(retain) + gamma |theta|_1

    Attributes:
      gamma: the weight of the penalty.

    Source: Jia et al., arXiv 2304.04934.

    >>> L1Sparse(gamma=5e-4).learning_rate
    0.01
    """

    gamma: float = 5e-4

    def __post_init__(self):
        super().__post_init__()
        check_nonnegative("gamma", self.gamma)

    def objective(self):
        """Cross-entropy and penalty."""
        return _Sparse(self.gamma)
