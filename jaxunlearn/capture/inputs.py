"""The inputs of every weight, read off the program."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxunlearn.capture.contractions import (
    Product,
    flatten_scans,
    group_grams,
    group_rows,
    group_sums,
)
from jaxunlearn.capture.layout import Layout, Renumbering, path_name
from jaxunlearn.capture.walk import Capture, Use, capture
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


class Layer(NamedTuple):
    """A leaf that has an input: its layout and the products that bring it.

    Attributes:
      layout: the first product's.
      uses: `(key, use, how the use's rows are renumbered to the layout)`.
    """

    layout: Layout
    uses: list[tuple[str, Use, Renumbering]]


class LayerRecord(NamedTuple):
    """One line of `layer_table`.

    Attributes:
      path: of the leaf.
      shape: of the leaf.
      kind: "dense", "conv" or "einsum", or None where there is no input.
      g, d, out: groups, fan-in and fan-out; None where there is no input.
      rows: rows that one image brings to each group; 0 where there is no input.
      reason: why there is no input, or None.
      note: what else to know, or an empty string.
    """

    path: str
    shape: tuple[int, ...]
    kind: str | None
    g: int | None
    d: int | None
    out: int | None
    rows: int
    reason: str | None
    note: str


def layers(captured: Capture, count: int) -> list[Layer | str]:
    """For each of `count` leaves its layer, or the reason why it has none."""
    found: list[Layer | str] = []
    for index in range(count):
        if index in captured.reasons:
            found.append(captured.reasons[index])
            continue
        uses = [(key, use) for key, use in captured.uses.items() if use.leaf == index]
        layouts = [use.product.layout(use.view) for _, use in uses]
        renumberings = [layouts[0].renumber(layout) for layout in layouts]
        if None in renumberings:
            found.append("it is contracted over different axes in two places")
            continue
        keys, plain = zip(*uses, strict=True)
        found.append(
            Layer(layouts[0], list(zip(keys, plain, renumberings, strict=True)))
        )
    return found


@dataclasses.dataclass(frozen=True)
class LayerGram:
    """`sum(x xT)` over some rows that meet one weight, and how many rows those are."""

    gram: Float[Array, "g d d"] | Any
    rows: Float[Array, ""] | Any
    layout: Layout


jax.tree_util.register_dataclass(
    LayerGram, data_fields=["gram", "rows"], meta_fields=["layout"]
)


@dataclasses.dataclass(frozen=True)
class LayerSums:
    """What a `LayerGram` is made of: blocks that add up over images.

    Attributes:
      parts: for each of `products`, the `sums` of all rows that it brings.
      rows: how many rows those are.
      products: distinct ones, and how each reads the leaf.
      layout: how the weight is read.
      inputs: how many numbers of an image meet the weight.
      written: how many of an image are at most written out to make them rows.
    """

    parts: tuple[Float[Array, "s g r w w"] | Any, ...]
    rows: Float[Array, ""] | Any
    products: tuple[tuple[Product, Layout], ...]
    layout: Layout
    inputs: int
    written: int

    def gram(self) -> LayerGram:
        """The blocks put together."""
        grams = [
            self.layout.renumber(layout)(group_grams(product, part), 1, 2)
            for (product, layout), part in zip(self.products, self.parts, strict=True)
        ]
        return LayerGram(sum(grams), self.rows, self.layout)


jax.tree_util.register_dataclass(
    LayerSums,
    data_fields=["parts", "rows"],
    meta_fields=["products", "layout", "inputs", "written"],
)


def layer_sums(
    classifier: Classifier, images: Array, mask: Float[Array, " n"]
) -> list[LayerSums | None]:
    """What the gram of each leaf's inputs is made of, over images that `mask` keeps.

    Args:
      classifier: a `Classifier`.
      images: `[n, h, w, c]`, as `classifier` takes them.
      mask: 1 for an image that counts, 0 for padding.

    Returns:
      One entry for each leaf of `classifier.params`, None where it has no input.
    """
    with jax.default_matmul_precision("highest"):
        captured = capture(classifier, classifier.prepare(images))
    found = layers(captured, len(jax.tree.leaves(classifier.params)))
    return [
        None if isinstance(layer, str) else _captured_sums(captured, layer, mask)
        for layer in found
    ]


def layer_grams(
    classifier: Classifier, images: Array, mask: Float[Array, " n"]
) -> list[LayerGram | None]:
    """The gram of each leaf's inputs; arguments as of `layer_sums`."""
    return [sums and sums.gram() for sums in layer_sums(classifier, images, mask)]


def captured_gram(
    captured: Capture, layer: Layer, mask: Float[Array, " n"]
) -> LayerGram:
    """The gram of one leaf's inputs, over the captured images that `mask` keeps."""
    return _captured_sums(captured, layer, mask).gram()


def _captured_sums(captured, layer, mask) -> LayerSums:
    parts: dict[tuple[Product, Layout], Array] = {}
    counts, sizes, written = [], [], []
    for key, use, _ in layer.uses:
        operand, weight = captured.operands[key]
        keep = mask.reshape(-1, *(1,) * (operand.ndim - 1)) > 0
        operand = jnp.where(keep, operand, jnp.zeros((), operand.dtype))
        part = group_sums(use.product, operand, use.scans)
        which = (use.product, use.product.layout(use.view))
        parts[which] = parts[which] + part if which in parts else part
        weight = weight * mask.reshape(-1, *(1,) * (weight.ndim - 1))
        per_group = flatten_scans(weight, use.scans).sum(axis=1).mean()
        counts.append(per_group * use.product.count)
        sizes.append(operand.size // len(mask))
        written.append(use.product.written)
    static = (tuple(parts), layer.layout, sum(sizes), max(written))
    return LayerSums(tuple(parts.values()), sum(counts), *static)


def sum_shapes(classifier: Classifier, images: Any) -> list[LayerSums | None]:
    """The shapes of `layer_sums`; traced once for each network and image shape.

    Only the images' shape and type matter.
    """
    image = jax.ShapeDtypeStruct((1, *jnp.shape(images)[1:]), jnp.result_type(images))
    return _sums.eval_shape(classifier, image, jnp.ones(1))


def gram_shapes(classifier: Classifier, images: Any) -> list[LayerGram | None]:
    """The shapes of `layer_grams`, as `sum_shapes`."""
    return jax.eval_shape(_grams, sum_shapes(classifier, images))


def layouts(classifier: Classifier, images: Any) -> PyTree:
    """Like params: how each weight that has an input is read, None for other leaves."""
    found = [gram and gram.layout for gram in gram_shapes(classifier, images)]
    return jax.tree.unflatten(jax.tree.structure(classifier.params), found)


_sums = jax.jit(layer_sums)


def _grams(sums):
    return [layer and layer.gram() for layer in sums]


def layer_inputs(classifier: Classifier, images: ArrayLike) -> PyTree:
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
    >>> model = nn.Conv(4, (3, 3))
    >>> images = jnp.ones((2, 5, 5, 1))
    >>> class Flat(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Conv(4, (3, 3))(x).mean((1, 2))
    >>> classifier = ju.freeze(Flat(), Flat().init(jax.random.key(0), images))
    >>> ju.layer_inputs(classifier, images)["Conv_0"]["kernel"].inputs.shape
    (1, 50, 9)
    """
    check_program(classifier, images)
    prepared = classifier.prepare(images)
    leaves, structure = jax.tree.flatten(classifier.params)
    with jax.default_matmul_precision("highest"):
        captured = capture(classifier, prepared)
    result: list[LayerInput | None] = []
    for layer in layers(captured, len(leaves)):
        if isinstance(layer, str):
            result.append(None)
            continue
        rows = [
            renumber(group_rows(use.product, captured.operands[key][0], use.scans), 2)
            for key, use, renumber in layer.uses
        ]
        # Images lead, also where several uses bring rows of each.
        rows = [r.reshape(r.shape[0], len(prepared), -1, r.shape[-1]) for r in rows]
        joined = jnp.concatenate(rows, axis=2)
        joined = joined.reshape(joined.shape[0], -1, joined.shape[-1])
        result.append(LayerInput(joined, layer.layout))
    return jax.tree.unflatten(structure, result)


def layer_table(classifier: Classifier, images: ArrayLike) -> list[LayerRecord]:
    """What every parameter leaf is, or why it has no input.

    Args:
      classifier: a `Classifier`.
      images: `[n, h, w, c]`; only their shape and type matter.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> class Flat(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(3)(x.reshape(x.shape[0], -1))
    >>> images = jnp.ones((1, 2, 2, 1))
    >>> classifier = ju.freeze(Flat(), Flat().init(jax.random.key(0), images))
    >>> for r in ju.layer_table(classifier, images):
    ...     print(r.path, r.kind, r.d, r.out, r.reason)
    Dense_0/bias None None None it is added to its input, as a bias is
    Dense_0/kernel dense 4 3 None
    """
    classifier.prepare(images)
    captured, static = _abstract_capture(classifier, images)
    paths = [p for p, _ in jax.tree_util.tree_flatten_with_path(classifier.params)[0]]
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(classifier.params)]
    records = []
    for path, shape, layer in zip(
        paths, shapes, layers(static, len(paths)), strict=True
    ):
        if isinstance(layer, str):
            records.append(
                LayerRecord(path_name(path), shape, *[None] * 4, 0, layer, "")
            )
            continue
        rows, notes = 0, []
        for key, use, _ in layer.uses:
            operand = captured[key]
            repeats = [
                n
                for n, kind in zip(operand.shape[1:], use.scans, strict=False)
                if kind == "rows"
            ]
            rows += use.product.count * int(np.prod(repeats))
            if key in static.one_sided:
                notes.append(
                    "only one side of a choice made per image uses this product, and "
                    "the rows of every image are counted (conservative)"
                )
        layout = layer.layout
        sizes = (layout.kind, layout.groups, layout.fan_in, layout.fan_out)
        note = "; ".join(dict.fromkeys(notes))
        records.append(LayerRecord(path_name(path), shape, *sizes, rows, None, note))
    return records


def _abstract_capture(classifier, images):
    """The shapes of what is captured, and the static half of the capture."""
    static: list[Capture] = []

    def shapes(classifier, images):
        captured = capture(classifier, classifier.prepare(images))
        static.append(captured)
        return {key: operand for key, (operand, _) in captured.operands.items()}

    image = jax.ShapeDtypeStruct((1, *jnp.shape(images)[1:]), jnp.result_type(images))
    return jax.eval_shape(shapes, classifier, image), static[-1]
