"""How well the inputs of layers on some images stand for those on others.

The images may be proxies: pictures drawn out of the network in place of retained data.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.nullspace.moments import Moment
from jaxunlearn.nullspace.projector import compute_dtype, product
from jaxunlearn.nullspace.subspace import Subspace
from jaxunlearn.nullspace.trees import (
    check_concrete,
    check_structure,
    leaf_test,
    map_leaves,
)


def captured_energy(subspaces: PyTree, moments: PyTree) -> PyTree:
    """The share of each layer's true input energy that lies in a subspace.

        tr(UT C U) / tr(C) = sum |UT x|^2 / sum |x|^2

    `U` is the basis, and `C` sums `x xT` over the true inputs `x`. Groups are added up,
    numerators and denominators apart. 1 is ideal; what a projection with `U` leaves
    unprotected is the rest. Padding adds nothing. Products run at precision HIGHEST,
    and shares are resolved to the `eps` of their dtype. Traceable.

    Args:
      subspaces: like params: `Subspace`, such as that of proxy images, or None where a
        leaf has no input.
      moments: like params: the `Moment` of the true inputs, or None at the same leaves.

    Returns:
      Like params: Float[] in at least float32, or None. NaN for a moment of zero, which
      has no energy to capture.

    Raises:
      TypeError: a leaf is no `Subspace` or no `Moment`.
      ValueError: no record at all; trees, layouts or shapes that differ; a leading axis
        of classes or requests (`sum_classes` adds classes up, `jax.vmap` keeps them).

    Source: CovarNav (arXiv 2311.12999), which takes its moments from inverted images in
    place of the retained ones; this says what such a moment misses.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((2, 5)).layout("dense", (), (0,), (1,))
    >>> subspace = Subspace(jnp.eye(2)[None, :, :1], jnp.ones((1, 2)), layout)
    >>> moment = Moment(jnp.asarray([[[2.0, 1.0], [1.0, 1.0]]]), jnp.ones(()), layout)
    >>> captured_energy({"kernel": subspace}, {"kernel": moment})["kernel"].round(6)
    Array(0.666667, dtype=float32)
    """

    def share(name: str, subspace: Subspace, moment: Moment) -> Float[Array, ""]:
        subspace.check(f"subspaces at {name}", leading=False)
        moment.check(f"moments at {name}", leading=False)
        moment.check_positive(f"moments at {name}")
        dtype = compute_dtype(subspace.basis, moment.gram)
        return _captured(subspace.basis.astype(dtype), moment.gram.astype(dtype))

    return _map_pairs(
        share, ("subspaces", "moments"), (subspaces, moments), (Subspace, Moment)
    )


def subspace_overlap(first: PyTree, second: PyTree) -> PyTree:
    """How much of the smaller of two subspaces lies in the other.

        |UaT Ub|_F^2 / min(ra, rb) = mean cos^2(principal angles)

    Groups are added up, numerators and denominators apart, so that a group of which
    either subspace is empty counts for nothing. 1 where one contains the other, 0 where
    they are orthogonal. Products run at precision HIGHEST. Traceable.

    Args:
      first: like params: `Subspace` (columns orthonormal, or zero), or None.
      second: like `first`, of the same network; ranks may differ.

    Returns:
      Like params: Float[] in at least float32, or None. NaN where a rank is zero in
      every group.

    Raises:
      TypeError: a leaf is no `Subspace`.
      ValueError: no record at all; trees, layouts or shapes that differ; leading axes.

    Source: CovarNav (arXiv 2311.12999), as for `captured_energy`.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((3, 5)).layout("dense", (), (0,), (1,))
    >>> axes = [jnp.eye(3)[None, :, i : i + 2] for i in (0, 1)]
    >>> a, b = ({"kernel": Subspace(axis, jnp.ones((1, 3)), layout)} for axis in axes)
    >>> subspace_overlap(a, b)["kernel"]
    Array(0.5, dtype=float32)
    """

    def overlap(name: str, one: Subspace, other: Subspace) -> Float[Array, ""]:
        one.check(f"first at {name}", leading=False)
        other.check(f"second at {name}", leading=False)
        dtype = compute_dtype(one.basis, other.basis)
        return _overlap(one.basis.astype(dtype), other.basis.astype(dtype))

    return _map_pairs(
        overlap, ("first", "second"), (first, second), (Subspace, Subspace)
    )


def principal_angles(first: PyTree, second: PyTree) -> PyTree:
    """The angles between two subspaces, in radians, ascending: 0 where they meet.

        cos(angle_i) = sigma_i(UaT Ub),   sin(angle_i) = sigma_i((I - Ua UaT) Ub)

    with `Ub` the one of lower rank. Cosines tell nothing of small angles and sines
    nothing of right ones, hence `atan2` of both, on the host in float64: angles are
    resolved to the `eps` of the bases' own dtype, 1e-7 in float32 and 2e-16 in float64.
    Directions that only the subspace of higher rank has make no angle.

    Args:
      first: like params: `Subspace`, or None. Zero columns are padding, left out.
      second: like `first`, of the same network; ranks may differ.

    Returns:
      Like params: NumPy float64 `[g, r]`, or None; `r` is the smaller of the two ranks.
      Where groups differ in it, the rows of the others are filled up with NaN.

    Raises:
      TypeError: a leaf is no `Subspace`, or is traced.
      ValueError: no record at all; trees, layouts or shapes that differ; leading axes;
        columns that are not orthonormal.

    Source: Bjorck and Golub, Math. Comp. 27 (1973) 579, for the sines; CovarNav (arXiv
    2311.12999), as for `captured_energy`.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((2, 5)).layout("dense", (), (0,), (1,))
    >>> axes = jnp.asarray([[[1.0], [0.0]]]), jnp.asarray([[[0.8], [0.6]]])
    >>> a, b = ({"kernel": Subspace(axis, jnp.ones((1, 2)), layout)} for axis in axes)
    >>> principal_angles(a, b)["kernel"].round(6)
    array([[0.643501]])
    """

    def angles(name: str, one: Subspace, other: Subspace) -> Float[np.ndarray, "g r"]:
        columns = (
            _host_columns("first", name, one),
            _host_columns("second", name, other),
        )
        rows = [_angles(*pair) for pair in zip(*columns, strict=True)]
        filled = np.full((len(rows), max(len(row) for row in rows)), np.nan)
        for whole, row in zip(filled, rows, strict=True):
            whole[: len(row)] = row
        return filled

    return _map_pairs(
        angles, ("first", "second"), (first, second), (Subspace, Subspace)
    )


def _map_pairs(
    function: Callable[..., Any],
    arguments: tuple[str, str],
    trees: tuple[PyTree, PyTree],
    kinds: tuple[type, type],
) -> PyTree:
    """`function(name, record, record)` for every leaf; None where both are None."""
    for kind, argument, tree in zip(kinds, arguments, trees, strict=True):
        map_leaves(lambda name, record: None, kind, argument, tree)
    check_structure(arguments[0], trees[0], arguments[1], trees[1], *kinds)

    def check(path, *records) -> None:
        name = path_name(path) or "the only leaf"
        held = [record is not None for record in records]
        if any(held) and not all(held):
            have, lack = arguments if held[0] else arguments[::-1]
            kind = kinds[held.index(True)].__name__
            msg = f"{have} hold a {kind} at {name}, where {lack} hold None: a comparison needs both. Take both from one network, or set both to None."  # noqa: E501
            raise ValueError(msg)
        if all(held) and records[0].layout != records[1].layout:
            layouts = [record.layout for record in records]
            msg = f"{name}: {arguments[0]} read it as {layouts[0]} and {arguments[1]} as {layouts[1]}. Compare layers of one network only."  # noqa: E501
            raise ValueError(msg)

    def call(path, *records) -> Any:
        if records[0] is None:
            return None
        return function(path_name(path) or "the only leaf", *records)

    # All leaves are checked before the first is computed.
    is_leaf = leaf_test(*kinds)
    jax.tree.map_with_path(check, *trees, is_leaf=is_leaf)
    return jax.tree.map_with_path(call, *trees, is_leaf=is_leaf)


# Compiled as wholes: one program for each shape of a layer, not one for each operation.


@jax.jit
def _captured(U: Float[Array, "g d r"], C: Float[Array, "g d d"]) -> Float[Array, ""]:
    """`tr(UT C U) / tr(C)`, both summed over groups."""
    captured = jnp.sum(U * product(C, U))
    return captured / jnp.sum(jnp.trace(C, axis1=-2, axis2=-1))


@jax.jit
def _overlap(Ua: Float[Array, "g d _"], Ub: Float[Array, "g d _"]) -> Float[Array, ""]:
    """`|UaT Ub|^2 / min(ra, rb)`, both summed over groups."""
    ranks = [jnp.sum(jnp.any(U != 0, axis=-2), axis=-1) for U in (Ua, Ub)]
    shared = jnp.sum(product(Ua.mT, Ub) ** 2)
    return shared / jnp.sum(jnp.minimum(*ranks)).astype(shared.dtype)


def _host_columns(argument: str, name: str, subspace: Subspace) -> list[np.ndarray]:
    """Of each group: the columns without padding, orthonormal in float64."""
    check_concrete(name, subspace.basis, "finding principal angles")
    where = f"{argument} at {name}"
    subspace.check(where, leading=False)
    # Columns rounded to float32 are orthonormal to 1e-7 only.
    return [np.linalg.qr(columns)[0] for columns in subspace.columns(where)]


def _angles(
    one: Float[np.ndarray, "d _"], other: Float[np.ndarray, "d _"]
) -> Float[np.ndarray, " r"]:
    """Principal angles of orthonormal columns in float64, ascending.

    In NumPy: the products are as large as the ranks, which are many, and JAX would
    compile a program for each.
    """
    Ua, Ub = (one, other) if one.shape[1] >= other.shape[1] else (other, one)
    if Ub.shape[1] == 0:
        return np.zeros(0)
    inner = Ua.T @ Ub
    cosines = np.linalg.svd(inner, compute_uv=False)
    sines = np.linalg.svd(Ub - Ua @ inner, compute_uv=False)
    return np.arctan2(sines[::-1], cosines)
