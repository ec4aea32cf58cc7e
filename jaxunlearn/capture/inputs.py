"""The explicit rows that meet every weight."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxunlearn.capture.contractions import flatten_scans, for_slices
from jaxunlearn.capture.layers import layers
from jaxunlearn.capture.layout import Layout
from jaxunlearn.capture.walk import capture
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.independence import check_program


@dataclasses.dataclass(frozen=True)
class LayerInput:
    """The rows that meet one weight.

    Attributes:
      inputs: one row for each position of each image, per group.
      layout: how the weight is read as matrices `[g, d, o]`: outputs are
        `inputs @ layout.to_matrix(leaf)`.
    """

    inputs: Float[Array, "*stack g n d"] | Any
    layout: Layout


jax.tree_util.register_dataclass(
    LayerInput, data_fields=["inputs"], meta_fields=["layout"]
)


def layer_inputs(classifier: Classifier, images: ArrayLike | Any) -> PyTree:
    """The explicit rows that meet each weight: for small data, the slow twin.

    Args:
      classifier: a `Classifier`.
      images: `[n, h, w, c]`, as `classifier` takes them.

    Returns:
      A tree like `classifier.params` of `LayerInput`, None where a leaf has no input.
      Rows are in at least float32. In a branch that was not taken rows are zero.

    Raises:
      ValueError: images are of the wrong shape, not finite, or the logits of one image
        depend on the others.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([nn.Conv(4, (3, 3)), lambda x: x.mean((1, 2))])
    >>> images = jnp.ones((2, 5, 5, 1))
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> ju.layer_inputs(classifier, images)["layers_0"]["kernel"].inputs.shape
    (1, 50, 9)
    """
    images = check_program(classifier, images)
    prepared = classifier.prepare(images)
    leaves, structure = jax.tree.flatten(classifier.params)
    with jax.default_matmul_precision("highest"):
        captured = capture(classifier, prepared)
    result: list[LayerInput | None] = []
    for layer in layers(captured, len(leaves)):
        if isinstance(layer, str):
            result.append(None)
            continue
        parts = []
        for key, use, renumber in layer.uses:
            x = flatten_scans(captured.operands[key][0], use.scans)
            rows = renumber(for_slices(use.product.rows, x), 2)
            # Images lead, also where several uses bring rows of each.
            parts.append(rows.reshape(len(rows), len(prepared), -1, rows.shape[-1]))
        joined = jnp.concatenate(parts, axis=2)
        joined = joined.reshape(len(joined), -1, joined.shape[-1])
        result.append(LayerInput(joined, layer.layout))
    return jax.tree.unflatten(structure, result)
