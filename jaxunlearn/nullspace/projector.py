"""The projector of one weight: prepared on the host in float64, applied anywhere."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Bool, Float

from jaxunlearn.capture.grams import Moment
from jaxunlearn.capture.layout import Layout
from jaxunlearn.checks import is_traced
from jaxunlearn.nullspace import linalg
from jaxunlearn.nullspace.subspace import Subspace, host_grams
from jaxunlearn.nullspace.trees import check_concrete

# Tensor cores and TPUs round the factors of other products to ten bits or eight.
product = functools.partial(jnp.matmul, precision=Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Projector:
    """A linear map of one weight's updates `D [g, d, o]`, group by group.

    `B`, zero-padded columns included, spans what a group loses, `D - B (BT D)`; or
    what it keeps, `B (BT D)`, where that is `kept`.
    """

    # Any: JAX also rebuilds the record around shapes, axis numbers and None.
    matrix: Float[Array, "*requests g d w"] | Any  # `B`, or `P` where dense
    kept: Bool[Array, "*requests g"] | Any
    layout: Layout
    dense: bool = False  # whether `matrix` is the whole map, `P D`
    shrinks: bool = False  # whether it shrinks directions instead of removing them

    @property
    def ranks(self) -> tuple[int, ...]:
        """How many directions each group loses; of a map that shrinks, nothing."""
        if self.shrinks:
            return ()
        columns = np.any(np.asarray(self.matrix) != 0, axis=-2).sum(axis=-1)
        lost = np.where(self.kept, self.layout.fan_in - columns, columns)
        return tuple(lost.tolist())


jax.tree_util.register_dataclass(
    Projector,
    data_fields=["matrix", "kept"],
    meta_fields=["layout", "dense", "shrinks"],
)


def compute_dtype(*arrays: Any) -> Any:
    """The dtype that holds all of these, and float32; float64 only where it is on."""
    dtype = functools.reduce(jnp.promote_types, (x.dtype for x in arrays), jnp.float32)
    return jax.dtypes.canonicalize_dtype(dtype)


def project(projector: Projector, update: Array) -> Array:
    """`D - B (BT D)`, `B (BT D)` or `P D`, in the update's shape and dtype."""
    dtype = compute_dtype(update, projector.matrix)
    B = projector.matrix.astype(dtype)
    D = projector.layout.to_matrix(update).astype(dtype)
    if projector.dense:
        D = product(B, D)
    else:
        within = product(B, product(B.mT, D))
        D = jnp.where(projector.kept[:, None, None], within, D - within)
    return projector.layout.from_matrix(D).astype(update.dtype)


def over_requests(function, axes: int, in_axes: Any = 0):
    """`function`, vmapped over so many leading axes."""
    for _ in range(axes):
        function = jax.vmap(function, in_axes=in_axes)
    return function


def checked_leaf(
    argument: str, name: str, leaf: Any, layout: Layout, *leads: tuple[int, ...]
) -> Any:
    """The leaf as an array, refused unless of the layout's shape after a lead."""
    allowed = list(dict.fromkeys((*lead, *layout.shape) for lead in leads))
    if not hasattr(leaf, "dtype"):
        msg = f"{argument} at {name or 'the only leaf'} must be an array; it is a {type(leaf).__name__}."  # noqa: E501
        raise TypeError(msg)
    if jnp.shape(leaf) not in allowed:
        shapes = " or ".join(map(str, allowed))
        msg = (
            f"{argument} at {name or 'the only leaf'} are of shape {jnp.shape(leaf)}, "
            f"and what was computed for this leaf is for {shapes}. Use subspaces, "
            "moments and parameters of one network."
        )
        raise ValueError(msg)
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)


def hard(name: str, subspace: Subspace) -> Projector:
    """`I - U UT`, through whichever of `U` and its complement has fewer columns."""
    subspace.check(name)
    basis, layout = subspace.basis, subspace.layout
    *shape, d, r = basis.shape
    dtype = compute_dtype(basis)
    if is_traced(basis):
        # Ranks and complements need values: the thin form does without.
        matrix = jnp.pad(basis, [*[(0, 0)] * (basis.ndim - 1), (0, _width(r, d) - r)])
        return Projector(matrix.astype(dtype), jnp.zeros(shape, bool), layout)
    halves = [
        (linalg.complement(U), True) if 2 * U.shape[1] > d else (U, False)
        for U in subspace.columns(name)
    ]
    return _stacked(halves, shape, dtype, layout)


def ridge(damping: float, name: str, moment: Moment) -> Projector:
    """`damping (C / tr C + damping I)^-1`, thin where few directions are shrunk."""
    gram, layout, d = moment.gram, moment.layout, moment.layout.fan_in
    check_concrete(name, gram, "an eigenvalue decomposition in float64")
    dtype = compute_dtype(gram)
    thin = []
    for matrix in host_grams(name, moment):
        values, vectors = linalg.eigenpairs(matrix)
        shares = values / max(values.sum(), np.finfo(np.float64).tiny)
        losses = shares / (shares + damping)
        some = losses > jnp.finfo(dtype).eps
        thin.append((vectors[:, some] * np.sqrt(losses[some]), False))
    shape = gram.shape[:-2]
    dense = 2 * _width(max(columns.shape[1] for columns, _ in thin), d) > d
    if dense:
        thin = [(np.eye(d) - columns @ columns.T, False) for columns, _ in thin]
    stacked = _stacked(thin, shape, dtype, layout)
    return dataclasses.replace(stacked, dense=dense, shrinks=True)


def alike(projectors: Sequence[Projector]) -> list[Projector]:
    """The same maps on the host in arrays of equal shapes, so that they can be stacked.

    Columns are padded to the widest; where one is dense all are.
    """
    if any(projector.dense for projector in projectors):
        return [_dense(projector) for projector in projectors]
    width = max(projector.matrix.shape[-1] for projector in projectors)

    def padded(projector: Projector) -> Projector:
        matrix = np.asarray(projector.matrix)
        missing = [(0, 0)] * (matrix.ndim - 1) + [(0, width - matrix.shape[-1])]
        matrix, kept = np.pad(matrix, missing), np.asarray(projector.kept)
        return dataclasses.replace(projector, matrix=matrix, kept=kept)

    return [padded(projector) for projector in projectors]


def _dense(projector: Projector) -> Projector:
    matrix, kept = np.asarray(projector.matrix), np.asarray(projector.kept)
    if not projector.dense:
        within = matrix @ matrix.mT
        whole = np.eye(matrix.shape[-2], dtype=matrix.dtype) - within
        matrix = np.where(kept[..., None, None], within, whole)
    return dataclasses.replace(projector, matrix=matrix, kept=kept, dense=True)


def _stacked(halves, shape, dtype, layout) -> Projector:
    """The record of these `(B, kept)`, one a group, their columns padded alike."""
    d = layout.fan_in
    width = _width(max(columns.shape[1] for columns, _ in halves), d)
    matrix = np.zeros((len(halves), d, width), dtype)
    for padded, (columns, _) in zip(matrix, halves, strict=True):
        padded[:, : columns.shape[1]] = columns
    with linalg.float64():
        return Projector(
            jnp.asarray(matrix.reshape(*shape, d, width)),
            jnp.asarray(np.reshape([kept for _, kept in halves], shape)),
            layout,
        )


def _width(columns: int, d: int) -> int:
    """Rounded up to a multiple of `d / 8`, so that close ranks share a program."""
    unit = math.ceil(d / 8)
    return min(math.ceil(columns / unit) * unit, d)
