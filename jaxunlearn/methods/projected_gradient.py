"""PGU: make the label unlikely, off the retained inputs' subspace."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.checks import check_nonnegative
from jaxunlearn.methods.baseline import Baseline, labelled, retained
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.nullspace.projection import project_to_null_space
from jaxunlearn.nullspace.rank_rules import choose_rule
from jaxunlearn.nullspace.subspace import subspaces


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedGradient(Baseline):
    """Descend against the label and for entropy, projected off the retained inputs.

        mean_i -log(1 - p(y_i | x_i)) - weight H(p(. | x_i))   on forget samples

    Every update leaves the subspace of the retained data's layer inputs out; biases and
    normalisation stay. Unlike in UNSC no class is named as a target.

    Attributes:
      energy: share of the moment's trace that the protected subspace holds.
      weight: of the entropy.

    Source: Hoang et al., arXiv 2312.04095. There the rate falls from .1 to .01 and the
    descent ends when the forget set's accuracy is that of held-out data; here steps are
    given and the rate is constant.

    >>> ProjectedGradient().energy
    0.9
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    energy: float = 0.9
    weight: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        choose_rule(self.energy, None, None, None)
        check_nonnegative("weight", self.weight)

    def reads(self, retained: int, classes: int) -> dict[str, int]:
        """Of so many retained images and classes: what `planning.Workload` asks."""
        del classes
        return {"images": retained}

    def sets(self, classifier, task, key):
        """Forget samples with their labels."""
        del classifier, key
        return {"forget": labelled(task.forget)}

    def constants(self, classifier, task, key):
        """The protected subspaces."""
        del key
        moments = second_moments(classifier, retained(task, self).images)
        return subspaces(moments, energy=self.energy)

    def objective(self):
        """Against the label."""
        return _Against(self.weight)

    def optimizer(self, constants):
        """SGD, then the projection."""
        return optax.chain(
            super().optimizer(constants), project_to_null_space(constants)
        )


@dataclasses.dataclass(frozen=True)
class _Against:
    weight: float

    def __call__(self, constants, classifier, rows, key):
        del constants, key
        images, labels = rows["forget"]
        logits = classifier(images)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
        # -log(1 - p_y) without the difference, which is 0 where p_y rounds to 1.
        others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)
        against = jax.nn.logsumexp(logits, axis=1) - others
        log_p = jax.nn.log_softmax(logits)
        entropy = -(jnp.exp(log_p) * log_p).sum(axis=1)
        return (against - self.weight * entropy).mean()
