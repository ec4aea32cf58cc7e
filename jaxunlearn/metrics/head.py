"""The last weight and its bias, found in the program, and how they are masked."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxunlearn.capture.layers import layers
from jaxunlearn.capture.layout import Layout
from jaxunlearn.capture.walk import capture
from jaxunlearn.classifier.classifier import Classifier


class Head(NamedTuple):
    """Where a classifier keeps a row and a bias for each class.

    Attributes:
      kernel: number of the leaf of the last weight.
      layout: how it is read as `[1, d, k]`.
      bias: number of the leaf that is added to the logits, or None.
    """

    kernel: int
    layout: Layout
    bias: int | None


def find_head(classifier: Classifier, images: Array | np.ndarray) -> Head:
    """The last weight, whose outputs are the logits, and the bias added to them.

    A leaf of shape `[k]` is the bias if `d logits / d leaf` is the identity.

    Raises:
      ValueError: the last weight does not give one output a class.
    """
    one = jnp.asarray(images[:1])
    captured = capture(classifier, classifier.prepare(one))
    leaves = jax.tree.leaves(classifier.params)
    found = layers(captured, len(leaves))
    order = [
        u.leaf for u in captured.uses.values() if not isinstance(found[u.leaf], str)
    ]
    k = classifier(one).shape[1]
    last = found[order[-1]].layout if order else None
    if last is None or last.groups * last.fan_out != k or last.groups != 1:
        msg = (
            f"The last weight of this network does not give its {k} logits, one output "
            "each: it has no head whose rows could be told apart by class."
        )
        raise ValueError(msg)
    biases = [i for i, leaf in enumerate(leaves) if leaf.shape == (k,)]
    bias = next((i for i in biases if _adds(classifier, one, leaves, i, k)), None)
    return Head(order[-1], last, bias)


def neutral_head(
    classifier: Classifier, images: Array | np.ndarray, forget_classes: Sequence[int]
) -> Classifier:
    """The classifier with each forgotten class's row and bias the retained ones' mean.

    What is left in the features then decides, and not how the head was masked: a bias
    of -10 would stand 150 minibatches of relearning. Apply it to *every* model that is
    compared.

    Args:
      classifier: any classifier whose last weight gives its logits; not modified.
      images: one or more, of the right shape; their values do not matter.
      forget_classes: of which rows are replaced.

    Raises:
      ValueError: as for `find_head`.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> kernel = {"kernel": jnp.array([[1.0, 3.0, 9.0]]), "bias": jnp.array([0.0, 2, -9])}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> neutral_head(classifier, np.ones((1, 1, 1, 1), np.float32), [2]).params["layers_1"]
    {'bias': Array([0., 2., 1.], dtype=float32), 'kernel': Array([[1., 3., 2.]], dtype=float32)}
    """  # noqa: E501
    head = find_head(classifier, images)
    leaves, structure = jax.tree.flatten(classifier.params)
    classes = np.asarray(forget_classes, dtype=int)
    # Parameters may be NumPy arrays.
    kernel, read = jnp.asarray(leaves[head.kernel]), head.layout
    leaves[head.kernel] = _averaged(
        kernel, read.to_matrix(kernel), classes, read.from_matrix
    )
    if head.bias is not None:
        bias = jnp.asarray(leaves[head.bias])
        leaves[head.bias] = _averaged(bias, bias, classes, lambda same: same)
    return classifier.replace(params=jax.tree.unflatten(structure, leaves))


def _averaged(leaf, columns, classes, write):
    """Columns of the forgotten classes become the mean of the others."""
    retained = np.setdiff1d(np.arange(columns.shape[-1]), classes)
    mean = columns[..., retained].mean(axis=-1, keepdims=True)
    return write(columns.at[..., classes].set(mean)).astype(leaf.dtype)


def _adds(classifier, image, leaves, index, k):
    """Whether a change of this leaf is a change of the logits."""
    structure = jax.tree.structure(classifier.params)

    def logits(leaf):
        given = [*leaves[:index], leaf, *leaves[index + 1 :]]
        return classifier.replace(params=jax.tree.unflatten(structure, given))(image)[0]

    change = jnp.linspace(1, 2, k, dtype=leaves[index].dtype)
    _, moved = jax.jvp(logits, (leaves[index],), (change,))
    return bool(jnp.allclose(moved, change, rtol=1e-2))
