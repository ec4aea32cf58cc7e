"""How far the outputs of one weight lie from their targets: sums over one batch.

Two classifiers of one network run side by side: the original, whose outputs are the
targets, and one whose earlier weights were changed, whose inputs the weight meets.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxunlearn.capture.contractions import flatten_scans, for_slices
from jaxunlearn.capture.layers import Layer, layers
from jaxunlearn.capture.layout import Layout, path_name
from jaxunlearn.capture.walk import Capture, capture

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class Place(NamedTuple):
    """A weight that one product uses, once for each image.

    Attributes:
      path: of the weight.
      index: number of its leaf.
      bias: number of the leaf that is added to its outputs, or None.
      layout: how it is read as `[g, d, o]`.
      positions: rows that one image brings to each group.
    """

    path: str
    index: int
    bias: int | None
    layout: Layout
    positions: int

    def matrix(self, leaves: list[Any]) -> Float[Array, "g d o"]:
        """The weight; below it a row of biases, if it has one."""
        W = self.layout.to_matrix(leaves[self.index])
        if self.bias is None:
            return W
        row = leaves[self.bias].reshape(len(W), 1, -1).astype(W.dtype)
        return jnp.concatenate([W, row], axis=1)

    def put(self, leaves: list[Any], matrix: Float[np.ndarray, "g d o"]) -> list[Any]:
        """The leaves, with this matrix as weight and bias, in their dtypes."""
        leaves, d = list(leaves), self.layout.fan_in

        def like(index, part):
            return jnp.asarray(part, jnp.result_type(leaves[index]))

        weight = like(self.index, matrix[:, :d])
        leaves[self.index] = self.layout.from_matrix(weight)
        if self.bias is not None:
            row = matrix[:, d].reshape(jnp.shape(leaves[self.bias]))
            leaves[self.bias] = like(self.bias, row)
        return leaves


class Residuals(NamedTuple):
    """Sums over the rows of a weight; `x` ends in a 1 where it has a bias.

    Attributes:
      gram: of `x xT`, where `x` are inputs under the changed weights.
      cross: of `x (t - y)T`, `t` targets and `y` outputs by the weight as it is.
      outputs: of `|z|^2`, where `z` are the original's outputs.
      misses: of `|z - y|^2`.
      rows: how many (per group).
    """

    gram: Float[Array, "g d d"] | Any
    cross: Float[Array, "g d o"] | Any
    outputs: Float[Array, ""] | Any
    misses: Float[Array, ""] | Any
    rows: Float[Array, ""] | Any


class Places(NamedTuple):
    """The weights of a network that have an input.

    Attributes:
      chosen: in the order of their use.
      left: why others are not among them, by path.
      last: the path of the one that is used last.
    """

    chosen: tuple[Place, ...]
    left: dict[str, str]
    last: str


def find_places(classifier, images) -> Places:
    """The weights that a single product uses, once for each image.

    A bias is the one leaf beside a weight in the parameters that is added somewhere and
    has an entry for each output.
    """
    held: list[Capture] = []

    def trace(classifier, images):
        held.append(capture(classifier, classifier.prepare(images)))

    image = jax.ShapeDtypeStruct((1, *jnp.shape(images)[1:]), jnp.result_type(images))
    jax.eval_shape(trace, classifier, image)
    (captured,) = held
    pairs = jax.tree_util.tree_leaves_with_path(classifier.params)
    names = [path_name(path) for path, _ in pairs]
    found, left = layers(captured, len(pairs)), {}
    chosen: list[Place] = []
    order = [*dict.fromkeys(use.leaf for use in captured.uses.values())]
    for index in order:
        layer = found[index]
        if reason := _why_not(captured, layer):
            left[names[index]] = reason
            continue
        ((_, use, _),) = layer.uses
        size = layer.layout.groups * layer.layout.fan_out
        beside = [
            i
            for i, (_, leaf) in enumerate(pairs)
            if names[i].rpartition("/")[0] == names[index].rpartition("/")[0]
            and "as a bias" in captured.reasons.get(i, "")
            # Of several axes their order in the outputs is not known.
            and max(jnp.shape(leaf), default=1) == math.prod(jnp.shape(leaf)) == size
        ]
        bias = beside[0] if len(beside) == 1 else None
        place = names[index], index, bias, layer.layout, use.product.count
        chosen.append(Place(*place))
    return Places(tuple(chosen), left, names[order[-1]] if order else "")


def _why_not(captured: Capture, layer: Layer | str) -> str:
    """Why a weight that has an input has no one output to aim at, or nothing."""
    if isinstance(layer, str):
        return layer
    if len(layer.uses) > 1:
        return "it is used in several places"
    ((key, use, _),) = layer.uses
    if use.scans:
        return "it is used inside a scan"
    if key in captured.one_sided:
        return "it is used on one side of a choice made per image"
    return ""


@functools.partial(jax.jit, static_argnames="chosen")
def outputs_by_class(
    chosen: tuple[Place, ...], classifier, images, labels: Float[Array, "n k"]
) -> list[Float[Array, "k g p o"]]:
    """Of every weight its outputs, position by position, summed over each class.

    `labels` are one-hot rows, zero for padding.
    """
    captured = _captured(classifier, images)
    leaves = jax.tree.leaves(classifier.params)
    sums = []
    for place in chosen:
        x, _ = _rows(captured, place, len(leaves))
        y = _outputs(x, place.matrix(leaves))
        sums.append(_einsum("gnpo,nk->kgpo", y, labels.astype(y.dtype)))
    return sums


@functools.partial(jax.jit, static_argnames="place")
def residual_sums(
    place: Place,
    original,
    changed,
    images,
    mask: Float[Array, " n"],
    mixture: tuple[Float[Array, "n k"], Float[Array, "k g p o"], Float[Array, " n"]],
    mixed: Float[Array, " o"],
) -> Residuals:
    """Of one batch; `mask` is 1 for an image that counts and 0 for padding.

    Targets are the original's outputs; for those that `mixed` marks with 1 they are
    `sum_k q_k m_k + s` with `(q, m, s)` the mixture. The weight and its bias must be
    those of the original in `changed`, too.
    """
    leaves = jax.tree.leaves(original.params)
    before, after = (_captured(c, images) for c in (original, changed))
    (old, _), (new, weight) = (_rows(c, place, len(leaves)) for c in (before, after))
    W = place.matrix(leaves).astype(new.dtype)
    z = _outputs(old, W)
    # The bias drops out, and without a change this is zero to the last bit.
    missed = _outputs(old - new, W[:, : place.layout.fan_in])
    q, means, shift = (x.astype(new.dtype) for x in mixture)
    mix = _einsum("nk,kgpo->gnpo", q, means) + shift[None, :, None, None]
    residual = missed + jnp.where(mixed > 0, mix - z, 0)
    if place.bias is not None:
        new = jnp.concatenate([new, jnp.ones_like(new[..., :1])], axis=-1)
    counted = (mask > 0) & (weight > 0)

    def kept(x):
        return jnp.where(counted[:, None, None], x, 0)

    new = kept(new)
    return Residuals(
        gram=_einsum("gnpi,gnpj->gij", new, new),
        cross=_einsum("gnpi,gnpo->gio", new, kept(residual)),
        outputs=jnp.sum(kept(z) ** 2),
        misses=jnp.sum(kept(missed) ** 2),
        rows=counted.sum() * place.positions,
    )


def _captured(classifier, images) -> Capture:
    with jax.default_matmul_precision("highest"):
        return capture(classifier, classifier.prepare(images))


def _rows(captured: Capture, place: Place, count: int):
    """`[g, n, p, d]`, and for each image whether its branch was taken."""
    ((key, use, _),) = layers(captured, count)[place.index].uses
    operand, weight = captured.operands[key]
    rows = for_slices(use.product.rows, flatten_scans(operand, use.scans))
    return rows.reshape(len(rows), len(operand), place.positions, -1), weight


def _outputs(x, W) -> Float[Array, "g n p o"]:
    """Of rows without the 1, by a matrix with or without a row of biases."""
    d = x.shape[-1]
    y = _einsum("gnpd,gdo->gnpo", x, W[:, :d].astype(x.dtype))
    return y if W.shape[1] == d else y + W[:, d:, None].astype(x.dtype)
