"""Second moments of the layer inputs of one batch, never writing all rows out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxunlearn.capture.contractions import (
    Contraction,
    flatten_scans,
    for_slices,
)
from jaxunlearn.capture.layers import Layer, layers
from jaxunlearn.capture.layout import Layout
from jaxunlearn.capture.walk import Capture, Use, capture
from jaxunlearn.checks import is_traced
from jaxunlearn.classifier.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class Moment:
    """The uncentred second moment of one weight's inputs, or of its output gradients.

    Attributes:
      gram: `sum(x xT)` over rows, not their mean; a class axis may lead.
      rows: how many rows were added up (per group); a class axis may lead.
      layout: how the weight is read as matrices `[g, d, o]`.
      classes: what the leading class axis holds, or None where there is none; the last
        entry may be "others".
      side: "inputs", where rows are layer inputs and the gram is `[g, d, d]`; or
        "outputs", where they are gradients at the outputs and it is `[g, o, o]`.
    """

    # Any: JAX also rebuilds the record around shapes, axis numbers and None.
    gram: Float[Array, "*classes g w w"] | Any
    rows: Float[Array, "*classes"] | Any
    layout: Layout
    classes: tuple[int | str, ...] | None = None
    side: str = "inputs"

    def check(self, where: str, *, leading: bool = True, side: str = "inputs") -> None:
        """Refuse a gram that is not of the layout and this side, naming `where` it is.

        With `leading`, leading axes are allowed.
        """
        if self.side != side:
            source = {"inputs": "second_moments", "outputs": "output_moments"}[side]
            msg = f"{where}: a moment of {side} is needed, and this one is of {self.side}. Take it from {source}."  # noqa: E501
            raise ValueError(msg)
        layout, shape = self.layout, jnp.shape(self.gram)
        width = layout.fan_in if side == "inputs" else layout.fan_out
        expected = (layout.groups, width, width)
        if len(shape) > 3 and not leading:
            msg = (
                f"{where} have a leading class axis: the shape of their gram is "
                f"{shape}, and must be {expected}. Add the classes up with "
                "sum_classes, or vmap over them."
            )
            raise ValueError(msg)
        if shape[-3:] != expected:
            msg = f"{where}: the shape of the gram is {shape}, and its layout makes it end in {expected}. Take it from second_moments."  # noqa: E501
            raise ValueError(msg)

    def check_positive(self, where: str) -> None:
        """Refuse a negative sum of squares; of a traced gram nothing is known."""
        if is_traced(self.gram):
            return
        with jax.ensure_compile_time_eval():  # Under `jit` it may be closed over.
            squares = jnp.diagonal(self.gram, axis1=-2, axis2=-1)
        squares = np.asarray(squares, np.float64)
        # What rounding leaves of a difference of two moments.
        allowed = float(jnp.finfo(self.gram.dtype).eps) ** 0.5
        if squares.size and squares.min() < -allowed * np.abs(squares).max():
            msg = (
                f"{where}: its gram is no sum of squares, its diagonal goes down to "
                f"{squares.min():.4g}. Take it from second_moments, and subtract only "
                "moments of a part of the same images."
            )
            raise ValueError(msg)


jax.tree_util.register_dataclass(
    Moment, data_fields=["gram", "rows"], meta_fields=["layout", "classes", "side"]
)


@dataclasses.dataclass(frozen=True)
class LayerSums:
    """What a `Moment` is made of: blocks that add up over images."""

    # For each of `products`, the `sums` of all rows that it brings.
    parts: tuple[Float[Array, "s g r w w"] | Any, ...]
    rows: Float[Array, ""] | Any
    # Distinct contractions, and how each reads the leaf.
    products: tuple[tuple[Contraction, Layout], ...]
    layout: Layout

    def moment(self) -> Moment:
        """The blocks put together."""
        grams = [
            self.layout.renumber(layout)(for_slices(product.whole, part), 1, 2)
            for (product, layout), part in zip(self.products, self.parts, strict=True)
        ]
        return Moment(sum(grams), self.rows, self.layout)


jax.tree_util.register_dataclass(
    LayerSums, data_fields=["parts", "rows"], meta_fields=["products", "layout"]
)


def layer_sums(
    classifier: Classifier, images: Array | Any, mask: Float[Array, " n"] | Any
) -> list[LayerSums | None]:
    """What the moment of each leaf's inputs is made of; None where it has no input.

    `mask` is 1 for an image that counts and 0 for padding.
    """
    mask = jnp.asarray(mask)
    with jax.default_matmul_precision("highest"):
        captured = capture(classifier, classifier.prepare(images))
    count = len(jax.tree.leaves(classifier.params))
    return [
        None if isinstance(layer, str) else _sums_of(captured, layer, mask)
        for layer in layers(captured, count)
    ]


def moments_of(sums: list[LayerSums | None]) -> list[Moment | None]:
    """The moments that these sums make."""
    return [layer and layer.moment() for layer in sums]


def captured_gram(captured: Capture, layer: Layer, mask: Float[Array, " n"]) -> Moment:
    """The moment of one leaf's inputs, over the captured images that `mask` keeps."""
    return _sums_of(captured, layer, mask).moment()


def _sums_of(captured, layer, mask) -> LayerSums:
    parts: dict[tuple[Contraction, Layout], Array] = {}
    counts = []
    for key, use, _ in layer.uses:
        operand, weight = captured.operands[key]
        keep = mask.reshape(-1, *(1,) * (operand.ndim - 1)) > 0
        operand = jnp.where(keep, operand, jnp.zeros((), operand.dtype))
        part = jax.vmap(use.product.sums)(flatten_scans(operand, use.scans))
        which = (use.product, use.product.layout(use.view))
        parts[which] = parts[which] + part if which in parts else part
        counts.append(rows_of(use, weight, mask))
    return LayerSums(tuple(parts.values()), sum(counts), tuple(parts), layer.layout)


def rows_of(use: Use, weight: Array, mask: Float[Array, " n"]) -> Float[Array, ""]:
    """How many rows a use brings to each group; `weight` is as of `Capture`."""
    weight = weight * mask.reshape(-1, *(1,) * (weight.ndim - 1))
    return flatten_scans(weight, use.scans).sum(axis=1).mean() * use.product.count


def sum_shapes(classifier: Classifier, images: Any) -> list[LayerSums | None]:
    """The shapes of `layer_sums`, traced once for each network and image shape."""
    image = jax.ShapeDtypeStruct((1, *jnp.shape(images)[1:]), jnp.result_type(images))
    return _sums.eval_shape(classifier, image, jnp.ones(1))


def gram_shapes(classifier: Classifier, images: Any) -> list[Moment | None]:
    """The shapes of the moments, as `sum_shapes`."""
    return jax.eval_shape(moments_of, sum_shapes(classifier, images))


def layouts(classifier: Classifier, images: Any) -> PyTree:
    """Like params: how each weight that has an input is read, None for other leaves."""
    layouts = [sums and sums.layout for sums in sum_shapes(classifier, images)]
    return jax.tree.unflatten(jax.tree.structure(classifier.params), layouts)


_sums = jax.jit(layer_sums)
