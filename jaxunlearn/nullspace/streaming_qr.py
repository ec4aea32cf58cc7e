"""Subspaces of the rows themselves: QR batch by batch, no product of rows formed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxunlearn.capture.inputs import LayerInput, layer_inputs
from jaxunlearn.checks import check_count
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.nullspace import linalg
from jaxunlearn.nullspace.rank_rules import choose_rule
from jaxunlearn.nullspace.streaming import (
    Images,
    first_images,
    full_batches,
    is_stream,
)
from jaxunlearn.nullspace.subspace import Subspace, from_pairs, kept_pair
from jaxunlearn.nullspace.trees import check_concrete, map_leaves


def row_subspaces(
    classifier: Classifier,
    images: Images,
    *,
    energy: float | None = None,
    rank: int | None = None,
    protected_fraction: float | None = None,
    rtol: float | None = None,
    batch_size: int = 256,
) -> PyTree:
    """The right singular vectors of the layer inputs themselves.

    Streaming QR, `R <- qr([R; rows])`, then `R = V diag(sigma) UT`, all in float64. No
    product of rows is formed and no condition number squared: twice the digits of
    `subspaces`, at the price of explicit rows, one batch at a time.

    Args:
      classifier: read in inference mode.
      images: `[n, h, w, c]`, or a re-iterable of such batches.
      energy: as in `subspaces`; 1 keeps all but the rounding of the rows.
      rank: as in `subspaces`.
      protected_fraction: as in `subspaces`.
      rtol: in (0, 1), however small.
      batch_size: images at a time.

    Returns:
      Like params: `Subspace` in the layer inputs' dtype, or None.

    Raises:
      TypeError: what `second_moments` refuses, or `rank` is no integer.
      ValueError: not exactly one rule, a value out of range, what `layer_inputs`
        refuses, or layer inputs that are not finite.

    Source: UNSC (arXiv 2404.13588), Alg. 1, the SVD taken batch by batch.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images = jnp.arange(8.0).reshape(2, 2, 2, 1)
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> row_subspaces(classifier, images, rtol=1e-6)["layers_1"]["kernel"].basis.shape
    (1, 4, 2)
    """
    rule = choose_rule(energy, rank, protected_fraction, rtol)
    triangles: dict[str, list[Array | np.ndarray]] = {}

    def absorb(name: str, rows: LayerInput) -> LayerInput:
        # Square from the start: a triangle that grew would compile for every size.
        empty = [np.zeros((rows.layout.fan_in,) * 2)] * rows.layout.groups
        pairs = zip(triangles.get(name, empty), rows.inputs, strict=True)
        triangles[name] = [linalg.absorb(*pair) for pair in pairs]
        # No row is needed any more, only their dtype.
        return dataclasses.replace(rows, inputs=rows.inputs[:, :0])

    batch_size = check_count("batch_size", batch_size)
    check_concrete("the network or an image", (classifier, images), "streaming QR")
    first = first_images(classifier, images, labelled=False)
    if not is_stream(images):
        images, batch_size = first, min(batch_size, len(first))
    last = None
    for batch, real, _ in full_batches(classifier, images, None, batch_size):
        rows = _layer_inputs(classifier, batch[:real])
        last = map_leaves(absorb, LayerInput, "the layer inputs", rows)

    def basis(name: str, rows: LayerInput) -> Subspace:
        layout, dtype = rows.layout, rows.inputs.dtype
        columns = [np.asarray(triangle).T for triangle in triangles.pop(name)]
        if not all(np.all(np.isfinite(group)) for group in columns):
            msg = f"{name}: its inputs are not finite. Look for NaN or overflow in the images or the network."  # noqa: E501
            raise ValueError(msg)
        # Rounding each entry to eps makes singular values of some sqrt(d) eps.
        resolution = layout.fan_in * float(jnp.finfo(dtype).eps) ** 2
        pairs = map(linalg.singular_pairs, columns)
        kept = [kept_pair(pair, rule, dtype, resolution) for pair in pairs]
        return from_pairs(kept, (layout.groups, layout.fan_in), dtype, layout)

    return map_leaves(basis, LayerInput, "the layer inputs", last)


_layer_inputs = jax.jit(layer_inputs)
