"""Boundary unlearning: shift the decision boundary over the forget set."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxunlearn.checks import check_positive
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.network import Network
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.descent.step import to_pixels
from jaxunlearn.methods.baseline import Baseline
from jaxunlearn.methods.random_labels import mean_of_sets
from jaxunlearn.methods.relabel import RELABELLINGS
from jaxunlearn.metrics.evaluation import logits, num_classes
from jaxunlearn.metrics.head import Head, find_head


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryShrink(Baseline):
    """Descend on the class across the nearest boundary, found by one step of FGSM.

        x' = clip(x + epsilon sign(d cross-entropy(x, y) / dx)),   y' = argmax f(x')

    over the retained classes (the sample's own label excluded where samples are
    forgotten): a forgotten class is never a target. Images are clipped to [0, 1] where
    there is a `Preprocess`, and to the forget set's own range elsewhere. No retained
    data are read.

    Attributes:
      epsilon: of the step, in pixels of [0, 1] where there is a `Preprocess`.

    Source: Chen et al., arXiv 2303.11570, section 4.1.

    >>> BoundaryShrink().epsilon
    0.1
    """

    learning_rate: float = 1e-3
    epsilon: float = 0.1

    reads_retained: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_positive("epsilon", self.epsilon)

    def sets(self, classifier, task, key):
        """Forget samples with the labels across the boundary."""
        data = task.forget
        moved = fgsm(classifier, data.images, data.labels, self.epsilon)
        labels = RELABELLINGS["nearest-retained"](
            jnp.asarray(logits(classifier, moved)),
            data.labels,
            task.forget_classes,
            key,
        )
        return {"forget": (data.images, np.asarray(labels))}

    def objective(self):
        """The cross-entropy."""
        return mean_of_sets


def fgsm(
    classifier: Classifier,
    images: Array | np.ndarray,
    labels: np.ndarray,
    epsilon: float,
    *,
    batch_size: int = 256,
) -> np.ndarray:
    """Images one step up the sign of their loss's gradient, within their range."""
    range_ = (0.0, 1.0)
    if classifier.preprocess is None:
        range_ = float(images.min()), float(images.max())
    n, parts = len(images), []
    batch_size = min(batch_size, n)
    for start in range(0, n, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        given = images[rows], labels[rows], epsilon, range_
        parts.append(np.asarray(_step(classifier, *given)))
    return np.concatenate(parts)[:n]


@jax.jit
def _step(classifier, images, labels, epsilon, range_):
    images = to_pixels(images)

    def loss(images):
        return cross_entropy(classifier(images), labels).sum()

    moved = images + epsilon * jnp.sign(jax.grad(loss)(images))
    return jnp.clip(moved, *range_).astype(images.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryExpand(Baseline):
    """Descend on one more class for the whole forget set, and prune it afterwards.

    While it works the head has a row more, drawn anew, on the features that the head
    reads. No retained data are read. Refused are networks whose last weight does not
    give the logits.

    Source: Chen et al., arXiv 2303.11570, section 4.2.

    >>> BoundaryExpand().changes_network
    False
    """

    learning_rate: float = 1e-3

    reads_retained: ClassVar[bool] = False

    def sets(self, classifier, task, key):
        """Forget samples as the class after the last."""
        del key
        images = task.forget.images
        label = num_classes(classifier, images)
        return {"forget": (images, np.full(len(images), label, np.int32))}

    def objective(self):
        """The cross-entropy over all classes and the one more."""
        return mean_of_sets

    def start(self, classifier, task, key):
        """The classifier with the class more, uniform as PyTorch draws a row."""
        head = find_head(classifier, task.forget.images[:1])
        bound = head.layout.fan_in**-0.5
        draw, shift = jax.random.split(key)
        params = {
            "network": classifier.params,
            "row": bound * jax.random.uniform(draw, (head.layout.fan_in,), minval=-1),
            "bias": bound * jax.random.uniform(shift, (), minval=-1),
        }
        network = _Expanded(classifier.network, head)
        return classifier.replace(params=params, network=network)

    def finish(self, params):
        """Without the class more."""
        return params["network"]


@dataclasses.dataclass(frozen=True)
class _Expanded(Network):
    """A network with one logit more: its head's input times a further row.

    Logits are linear in the head's kernel, so that their derivative along a kernel
    whose first column is the row, read at the first class, is that product.
    """

    network: Network
    head: Head

    def apply(self, params: PyTree, state: PyTree, images: Array) -> Array:
        """See `Network.apply`."""
        leaves, structure = jax.tree.flatten(params["network"])
        index, layout = self.head.kernel, self.head.layout

        def outputs(kernel):
            given = [*leaves[:index], kernel, *leaves[index + 1 :]]
            given = jax.tree.unflatten(structure, given)
            return self.network.apply(given, state, images)

        kernel = leaves[index]
        column = jnp.zeros((1, layout.fan_in, layout.fan_out), kernel.dtype)
        column = column.at[0, :, 0].set(params["row"].astype(kernel.dtype))
        along = layout.from_matrix(column)
        logits, moved = jax.jvp(outputs, (kernel,), (along,))
        one = moved[:, :1] + params["bias"].astype(moved.dtype)
        return jnp.concatenate([logits, one], axis=1)
