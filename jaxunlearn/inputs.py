"""The inputs of every weight, read off the program."""

import dataclasses

import jax
from jaxtyping import Array, Float

from jaxunlearn.layout import Layout


@dataclasses.dataclass(frozen=True)
class LayerInput:
    """The rows that meet one weight.

    Attributes:
      inputs: one row for each position of each image, per group.
      layout: how the weight is read as matrices `[g, d, o]`: outputs are
        `inputs @ layout.to_matrix(leaf)`.
    """

    inputs: Float[Array, "g n d"]
    layout: Layout


jax.tree_util.register_dataclass(
    LayerInput, data_fields=["inputs"], meta_fields=["layout"]
)
