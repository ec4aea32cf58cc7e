"""How much each parameter matters to a set: squared gradients, sample by sample."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.losses import cross_entropy

# Numbers in the gradients of a batch, which are there for every sample at once.
_AT_ONCE = 2**26


def squared_gradients(
    classifier: Classifier, images: Array | np.ndarray, labels: Array | np.ndarray
) -> PyTree:
    """Like params: `sum_i (d cross-entropy(x_i, y_i) / d theta)**2`, elementwise.

    Squares of each sample's own gradient, and not of a batch's mean.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(classifier.params))
    batch = max(1, min(64, len(images), _AT_ONCE // size))
    total = jax.tree.map(jnp.zeros_like, classifier.params)
    for start in range(0, len(images), batch):
        # The last sample again, at weight 0: one program serves all batches.
        rows = np.arange(start, start + batch)
        last = np.minimum(rows, len(images) - 1)
        weights = (rows < len(images)).astype(np.float32)
        part = _squares(classifier, images[last], jnp.asarray(labels)[last], weights)
        total = jax.tree.map(jnp.add, total, part)
    return total


@jax.jit
def _squares(
    classifier: Classifier,
    images: Array | np.ndarray,
    labels: Array,
    weights: Float[Array | np.ndarray, " n"],
) -> PyTree:
    def loss(params, image, label):
        logits = classifier.replace(params=params)(image[None])
        return cross_entropy(logits, label[None])[0]

    each = jax.vmap(jax.grad(loss), (None, 0, 0))
    gradients = each(classifier.params, images, labels)
    return jax.tree.map(
        lambda g: jnp.tensordot(weights, jnp.square(g), 1).astype(g.dtype), gradients
    )
