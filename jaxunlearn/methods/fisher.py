"""Noise where retained data do not mind it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.checks import check_positive
from jaxunlearn.methods.baseline import retained
from jaxunlearn.methods.edit import Edit, change_head
from jaxunlearn.methods.importance import squared_gradients
from jaxunlearn.metrics.evaluation import logits

# No parameter matters less than this: the released code bounds 1 / F by 1000.
_LEAST = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fisher(Edit):
    """Add noise to every parameter, the less the more retained data depend on it.

        theta <- theta + sqrt(alpha / max(F, 1e-3)) n,   n ~ N(0, I)
        F = mean_i (d log p(y_i | x_i) / d theta)**2,   y_i ~ p(. | x_i), retained x_i

    Attributes:
      alpha: the scale of the noise's variance.
      zero_row: whether the forgotten classes' rows of the head and their biases are set
        to zero first, as in the released code. It alone takes most of their accuracy
        away; where samples are forgotten there are no such rows.

    Source: Golatkar et al., arXiv 1911.04933, section 6. Of the released code's further
    choices (means over the fan-in, ten times the noise in head and normalisation) none
    is kept.

    >>> Fisher(zero_row=False).alpha
    1e-06
    """

    alpha: float = 1e-6
    zero_row: bool = True

    tuned: ClassVar[str | None] = "alpha"
    grid: ClassVar[tuple[float, ...]] = tuple(
        a * 10.0**e for e in range(-8, -3) for a in (1, 3)
    )
    read: ClassVar[tuple[str, ...]] = ("retain",)

    def __post_init__(self):
        check_positive("alpha", self.alpha)

    def measured(self, classifier, task, key):
        """The diagonal of the retained data's Fisher information."""
        data = retained(task, self)
        draw, _ = jax.random.split(key)
        labels = jax.random.categorical(draw, logits(classifier, data.images))
        squares = squared_gradients(classifier, data.images, labels)
        return jax.tree.map(lambda square: square / len(data), squares)

    def edited(self, classifier, task, key, measured):
        """Parameters with noise."""
        _, noise = jax.random.split(key)
        params = classifier.params
        if self.zero_row and task.forget_classes:
            classes = np.asarray(task.forget_classes)
            params = change_head(
                classifier,
                task.forget.images[:1],
                lambda kernel: kernel.at[..., classes].set(0),
                lambda bias: bias.at[classes].set(0),
            )
        leaves, structure = jax.tree.flatten(params)
        keys = jax.tree.unflatten(structure, jax.random.split(noise, len(leaves)))

        def noisy(leaf, fisher, key):
            variance = self.alpha / jnp.maximum(fisher, _LEAST)
            draws = jax.random.normal(key, leaf.shape, leaf.dtype)
            return leaf + jnp.sqrt(variance).astype(leaf.dtype) * draws

        return jax.tree.map(noisy, params, measured, keys)
