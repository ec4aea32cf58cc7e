"""Selective synaptic dampening: shrink what matters to the forget set above all."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxunlearn.checks import check_positive
from jaxunlearn.methods.baseline import retained
from jaxunlearn.methods.edit import Edit
from jaxunlearn.methods.importance import squared_gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSD(Edit):
    """Dampen parameters that matter more to the forget set than to all data.

        theta_j <- min(dampening I_j / F_j, 1) theta_j   where F_j > alpha I_j

    `F` and `I` are the means over the forget set and over all training data of the
    squared gradient of each sample's cross-entropy.

    Attributes:
      alpha: how much more a parameter must matter to be dampened.
      dampening: lambda, which sets how far; 1 leaves the ratio of the two.

    Source: Foster et al., arXiv 2308.07707. The squares are those of each sample's own
    gradient, as in the formula; the released code squares gradients of batches.

    >>> SSD().alpha, SSD().dampening
    (10.0, 1.0)
    """

    alpha: float = 10.0
    dampening: float = 1.0

    tuned: ClassVar[str | None] = "alpha"
    grid: ClassVar[tuple[float, ...]] = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 50.0)

    # Of two values the larger dampens less.
    gentlest: ClassVar[Callable[..., Any]] = max

    def __post_init__(self):
        check_positive("alpha", self.alpha)
        check_positive("dampening", self.dampening)

    def measured(self, classifier, task, key):
        """Of the forget set and of all data the mean squared gradients."""
        del key
        sets = task.forget, retained(task, self)
        ours, theirs = (
            squared_gradients(classifier, data.images, data.labels) for data in sets
        )
        n, m = map(len, sets)
        special = jax.tree.map(lambda a: a / n, ours)
        return special, jax.tree.map(lambda a, b: (a + b) / (n + m), ours, theirs)

    def edited(self, classifier, task, key, measured):
        """The dampened parameters."""
        del task, key

        def dampened(theta, special, general):
            ratio = self.dampening * general / jnp.where(special > 0, special, 1)
            chosen = special > self.alpha * general
            return jnp.where(chosen, theta * jnp.minimum(ratio, 1), theta)

        return jax.tree.map(dampened, classifier.params, *measured)
