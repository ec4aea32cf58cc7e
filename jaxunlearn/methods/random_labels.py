"""Teach wrong labels or masked probabilities, with all parameters."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.methods.baseline import Baseline, labelled, retained
from jaxunlearn.methods.relabel import RELABELLINGS
from jaxunlearn.metrics.evaluation import logits


def new_targets(name, classifier, task, key):
    """The forget samples' targets by one of `relabel.RELABELLINGS`."""
    outputs = jnp.asarray(logits(classifier, task.forget.images))
    labels = task.forget.labels
    return RELABELLINGS[name](outputs, labels, task.forget_classes, key)


def mean_of_sets(constants, classifier, rows, key):
    """The cross-entropy over the samples of all sets."""
    del constants, key
    losses = [
        cross_entropy(classifier(images), targets) for images, targets in rows.values()
    ]
    return jnp.concatenate(losses).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomLabels(Baseline):
    """Descend on random retained labels for the forget set and on the retain set (RL).

    Source: Golatkar et al., arXiv 1911.04933; Graves et al., arXiv 2010.10981.

    >>> RandomLabels().targets
    'random'
    """

    targets: ClassVar[str] = "random"

    def sets(self, classifier, task, key):
        """Forget samples with new targets, and retained ones."""
        changed = new_targets(self.targets, classifier, task, key)
        return {
            "forget": (task.forget.images, np.asarray(changed)),
            "retain": labelled(retained(task, self)),
        }

    def objective(self):
        """The cross-entropy over both."""
        return mean_of_sets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delete(Baseline):
    """Masked distillation: the original's softmax over the retained classes, relearned.

        KL(softmax(z_original, forgotten masked) || softmax(z))   on forget samples

    Reads no retained data. Where samples are forgotten, their own label is masked.

    Source: DELETE, arXiv 2503.23751.

    >>> Delete().batch_size
    64
    """

    learning_rate: float = 1e-3

    reads_retained: ClassVar[bool] = False

    def sets(self, classifier, task, key):
        """Forget samples with the masked probabilities."""
        changed = new_targets("retained-probabilities", classifier, task, key)
        return {"forget": (task.forget.images, np.asarray(changed))}

    def objective(self):
        """The cross-entropy, whose gradient is that of the divergence."""
        return mean_of_sets


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalUn(RandomLabels):
    """Random labels, moving only the parameters that the forget loss depends on most.

        moved = { i : |grad_i cross-entropy(forget)| >= the (1 - share) quantile }

    Attributes:
      share: of all parameters that may move, over the whole network.

    Source: Fan et al., arXiv 2310.12508.

    >>> SalUn().share
    0.5
    """

    share: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.share <= 1:
            msg = f"share must lie in (0, 1]; it is {self.share}."
            raise ValueError(msg)

    def constants(self, classifier, task, key):
        """Which parameters may move, like params."""
        del key
        return saliency_mask(classifier, task.forget, self.share)

    def optimizer(self, constants):
        """SGD, and then zero where nothing may move, for weight decay too."""
        return optax.chain(super().optimizer(constants), keep_where(constants))


def keep_where(mask: Any) -> optax.GradientTransformation:
    """Updates times the mask, which is like them."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u, m: jnp.where(m, u, 0), updates, mask), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def saliency_mask(classifier, data, share, batch_size=256):
    """Like params: where the mean gradient's size is among the largest `share`."""
    total = jax.tree.map(jnp.zeros_like, classifier.params)
    for start in range(0, len(data), batch_size):
        part = slice(start, start + batch_size)
        gradient = _gradient(classifier, data.images[part], data.labels[part])
        total = jax.tree.map(jnp.add, total, gradient)
    sizes = np.concatenate([np.abs(g).ravel() for g in jax.tree.leaves(total)])
    # The cut by rank, so that the share is met where sizes are equal, too, from below.
    least = np.sort(sizes)[::-1][max(1, round(share * sizes.size)) - 1]
    return jax.tree.map(lambda g: jnp.abs(g) >= least, total)


@jax.jit
def _gradient(classifier, images, labels):
    def loss(params):
        return cross_entropy(classifier.replace(params=params)(images), labels).sum()

    return jax.grad(loss)(classifier.params)
