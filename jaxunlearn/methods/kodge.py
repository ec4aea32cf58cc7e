"""Deep unlearning: take the forget set's directions out of every layer, at once."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.checks import check_positive
from jaxunlearn.methods.baseline import retained
from jaxunlearn.methods.edit import Edit
from jaxunlearn.nullspace.linalg import float64, placed
from jaxunlearn.nullspace.moments import Moment, second_moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kodge(Edit):
    """Remove from every weight the inputs of the forget set that retained data lack.

        W <- (I - M_f + M_r M_f) W,   M_a = a C (I + (a - 1) C)^-1   (W: fan-in x out)

    with `C` the second moment of the layer's inputs over its trace: a direction of the
    share `s` of the energy weighs `a s / ((a - 1) s + 1)`. All layers are changed by
    the inputs of the original; biases and normalisation stay.

    Attributes:
      alpha_r: of retained inputs; the larger, the more is kept.
      alpha_f: of the forget set's inputs; the larger, the more is taken out.

    Source: Kodge et al., arXiv 2312.00761, where moments are of 900 samples; here of
    all.

    >>> Kodge().alpha_r, Kodge().alpha_f
    (100.0, 3.0)
    """

    alpha_r: float = 100.0
    alpha_f: float = 3.0

    tuned: ClassVar[str | None] = "alpha_r"
    grid: ClassVar[tuple[float, ...]] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
    # Of two values the larger keeps more.
    gentlest: ClassVar[Callable[..., Any]] = max

    def __post_init__(self):
        check_positive("alpha_r", self.alpha_r)
        check_positive("alpha_f", self.alpha_f)

    def measured(self, classifier, task, key):
        """The second moments of the retained and of the forget set, leaf by leaf."""
        del key
        return [
            jax.tree.leaves(second_moments(classifier, data.images), is_leaf=_is_moment)
            for data in (retained(task, self), task.forget)
        ]

    def edited(self, classifier, task, key, measured):
        """All weights that have inputs, changed."""
        del task, key
        leaves, structure = jax.tree.flatten(classifier.params)

        def changed(leaf, r, f):
            if r is None:
                return leaf
            with float64():
                m_r, m_f = _scaled(r, self.alpha_r), _scaled(f, self.alpha_f)
                w = placed(r.layout.to_matrix(leaf))
                removed = m_f @ w
                new = np.asarray(w - removed + m_r @ removed).astype(leaf.dtype)
            return r.layout.from_matrix(jnp.asarray(new))

        new = map(changed, leaves, *measured)
        return jax.tree.unflatten(structure, list(new))


def _scaled(moment: Moment, a: float):
    """`M_a` of each group; zero where there is no input."""
    gram = placed(moment.gram)
    trace = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    c = gram / jnp.where(trace > 0, trace, 1)
    # The two factors commute, so that the inverse may stand on the left.
    return jnp.linalg.solve(jnp.eye(c.shape[-1])[None] + (a - 1) * c, a * c)


def _is_moment(node):
    return node is None or isinstance(node, Moment)
