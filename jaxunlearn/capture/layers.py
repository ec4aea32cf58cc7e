"""Which parameter leaves have an input, and how they are read as matrices."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxunlearn.capture.layout import Layout, Renumbering, path_name
from jaxunlearn.capture.walk import Capture, Use, capture
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.classifier.images import check_images


class Layer(NamedTuple):
    """A leaf that has an input: its layout and the contractions that bring it."""

    layout: Layout  # the first contraction's
    # By key, with how the use's rows are renumbered to the layout.
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
    return [captured.reasons.get(i) or _layer(captured, i) for i in range(count)]


def _layer(captured: Capture, index: int) -> Layer | str:
    keys, uses = zip(
        *((key, use) for key, use in captured.uses.items() if use.leaf == index),
        strict=True,
    )
    layouts = [use.product.layout(use.view) for use in uses]
    renumberings = [layouts[0].renumber(layout) for layout in layouts]
    if None in renumberings:
        return "it is contracted over different axes in two places"
    return Layer(layouts[0], list(zip(keys, uses, renumberings, strict=True)))


def _captured(classifier, images):
    """What the walk sees of images of this shape and type, and the operands' shapes."""
    static: list[Capture] = []

    def shapes(classifier, images):
        static.append(capture(classifier, classifier.prepare(images)))
        return {key: x for key, (x, _) in static[-1].operands.items()}

    image = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.result_type(images))
    operands = jax.eval_shape(shapes, classifier, image)
    return static[-1], operands


def layer_table(classifier: Classifier, images: ArrayLike | Any) -> list[LayerRecord]:
    """What every parameter leaf is, or why it has no input.

    Args:
      classifier: a `Classifier`.
      images: `[n, h, w, c]`; only their shape and type matter.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images = jnp.ones((1, 2, 2, 1))
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> for r in ju.layer_table(classifier, images):
    ...     print(r.path, r.kind, r.d, r.out, r.reason)
    layers_1/bias None None None it is added to its input, as a bias is
    layers_1/kernel dense 4 3 None
    """
    check_classifier(classifier)
    images = check_images(images, classifier.preprocess)
    captured, operands = _captured(classifier, images)
    leaves = jax.tree_util.tree_leaves_with_path(classifier.params)
    pairs = zip(leaves, layers(captured, len(leaves)), strict=True)
    return [
        _record(path_name(path), jnp.shape(leaf), layer, captured, operands)
        for (path, leaf), layer in pairs
    ]


def _record(path, shape, layer, captured, shapes) -> LayerRecord:
    if isinstance(layer, str):
        return LayerRecord(path, shape, *[None] * 4, 0, layer, "")
    rows, note = 0, ""
    for key, use, _ in layer.uses:
        # Scan axes follow the image axis.
        sizes = zip(shapes[key].shape[1:], use.scans, strict=False)
        repeats = math.prod(n for n, kind in sizes if kind == "rows")
        rows += use.product.count * repeats
        if key in captured.one_sided:
            note = (
                "only one side of a choice made per image uses this product, and "
                "the rows of every image are counted (conservative)"
            )
    layout = layer.layout
    sizes = (layout.kind, layout.groups, layout.fan_in, layout.fan_out)
    return LayerRecord(path, shape, *sizes, rows, None, note)
