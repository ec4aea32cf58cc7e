"""Second moments of layer inputs, streamed."""

import dataclasses

import jax
from jaxtyping import Array, Float

from jaxunlearn.layout import Layout


@dataclasses.dataclass(frozen=True)
class Moment:
    """The uncentred second moment of one weight's inputs.

    Attributes:
      gram: `sum(x xT)` over rows, not their mean; a class axis may lead.
      rows: how many rows were added up (per group); a class axis may lead.
      layout: how the weight is read as matrices `[g, d, o]`.
      classes: what the leading class axis holds, or None where there is none; the last
        entry may be "others".
    """

    gram: Float[Array, "*classes g d d"]
    rows: Float[Array, "*classes"]
    layout: Layout
    classes: tuple[int | str, ...] | None = None


jax.tree_util.register_dataclass(
    Moment, data_fields=["gram", "rows"], meta_fields=["layout", "classes"]
)
