"""Null-space projection as the last linear step of an optax chain, and what it left."""

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.checks import is_traced, short
from jaxunlearn.nullspace.moments import Moment
from jaxunlearn.nullspace.projector import (
    Projector,
    alike,
    checked_leaf,
    compute_dtype,
    hard,
    over_requests,
    product,
    project,
    ridge,
)
from jaxunlearn.nullspace.subspace import Subspace
from jaxunlearn.nullspace.trees import (
    check_structure,
    leaf_test,
    map_leaves,
    unmasked,
)

# None, or what `optax.masked` hands over.
_is_absent = leaf_test()


class NullSpaceState(NamedTuple):
    """Like params: the bases as arrays; None where updates are set to zero."""

    projectors: PyTree


def project_to_null_space(subspaces: PyTree) -> optax.GradientTransformation:
    """Take the protected directions out of every update: the last linear step.

    `D <- D - U (UT D)` for each weight's update `D [g, d, o]`. The protected inputs of
    a layer then see no change of its weight, whatever made `D`. Updates of leaves
    without a subspace (biases, normalisation) become exactly zero, and so do those of a
    weight whose every input direction is protected.

    **Where it belongs.** Last: `optax.chain(optax.adamw(1e-3),
    project_to_null_space(subspaces))`. It projects the *final* update, so that the
    guarantee covers weight decay, momentum, clipping and elementwise scaling before it.
    Before Adam it leaks: 0.2 to 0.7 of the update is back in the subspace.

    - What follows must be linear with one factor for a whole leaf: `optax.scale`,
      `scale_by_schedule`, `trace`, `ema`, `apply_every`. Whatever is not linear, acts
      elementwise (`clip`, `scale_by_adam`, `scale_by_sign`) or adds parameters
      (`add_decayed_weights`, `keep_params_nonnegative`) leaks.
    - `optax.contrib.schedule_free` averages outside of its base optimizer: the
      projection goes inside, as in
      `schedule_free(optax.chain(optax.sgd(1.0), project_to_null_space(s)), 1.0)`.
      `lookahead` too keeps parameters of its own, and takes it inside.
    - `MultiSteps`, `apply_if_finite` and `inject_hyperparams` may go around it.
    - Under `masked`, `partition` and `multi_transform` it meets `MaskedNode`s, for
      leaves or whole subtrees, and passes them on. `masked`
      hands the other leaves' updates through *unprojected*; `partition` can send them
      to `set_to_zero`.
    - `lbfgs` and `polyak_sgd` before it need `value`, `grad` and `value_fn` in the
      chain's `update`, as always. Their line search does not know of the projection.

    **State.** The bases live in the state, not in the transform: they are arguments of
    the compiled program, are checkpointed, and may be stacked along a leading axis and
    `vmap`ped. They are prepared in float64 by the first `init`, which should run
    outside of jit. Columns are padded to a multiple of `d / 8`, so that requests of
    nearly the same rank share one program; no more than `d / 2` are stored, as the
    complement takes over where `r > d / 2`. Products run at precision HIGHEST in at
    least float32, and updates keep their dtype.

    Args:
      subspaces: like params: `Subspace`, or None where updates are to be zero. Leading
        request axes ask for updates with the same leading axes, or for a `vmap`.

    Raises:
      TypeError: a leaf is no `Subspace`.
      ValueError: no subspace at all; in `init`: params of another structure or shape,
        or columns that are not orthonormal.

    Source: CovarNav (arXiv 2311.12999), step 3; UNSC (arXiv 2404.13588), section 4.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((2, 3)).layout("dense", (), (0,), (1,))
    >>> subspace = Subspace(jnp.eye(2)[None, :, :1], jnp.ones((1, 2)), layout)
    >>> tx = optax.chain(optax.adam(0.1), project_to_null_space({"kernel": subspace}))
    >>> params = {"kernel": jnp.ones((2, 3))}
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> updates["kernel"].round(3)
    Array([[ 0. ,  0. ,  0. ],
           [-0.1, -0.1, -0.1]], dtype=float32)
    """
    return _transformation(hard, Subspace, "subspaces", subspaces)


def shrink_to_null_space(
    moments: PyTree, *, damping: float
) -> optax.GradientTransformation:
    """Shrink updates along the inputs, the more the stronger these are: a ridge.

    `D <- P D` with `P = damping (C / tr C + damping I)^-1`, for each group by itself.
    The normaliser is the trace `tr C`; any other would merely rescale `damping`. A
    direction that carries the share `c` of the trace keeps `damping / (c + damping)` of
    its update. As `damping -> 0` it becomes the projection onto the exact null space;
    no rank is chosen. Not idempotent: judge it by `drift`, not by `leakage`.

    It belongs where `project_to_null_space` does, with the same exceptions and the same
    state. A weight whose inputs are all zero is not shrunk.

    Args:
      moments: like params: `Moment`, or None where updates are to be zero.
      damping: positive and finite, in shares of the trace. A number: it is used up by
        `init`, so name it in `static_args` under `optax.inject_hyperparams`.

    Raises:
      TypeError: `damping` is no number, a leaf is no `Moment`, or is traced.
      ValueError: `damping` is not positive and finite, a moment is not finite, or none
        is given; in `init`: params of another structure or shape.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((2, 1)).layout("dense", (), (0,), (1,))
    >>> gram = jnp.asarray([[[3.0, 0.0], [0.0, 1.0]]])
    >>> tx = shrink_to_null_space(Moment(gram, jnp.asarray(4.0), layout), damping=0.25)
    >>> tx.update(jnp.ones((2, 1)), tx.init(jnp.ones((2, 1))))[0]
    Array([[0.25],
           [0.5 ]], dtype=float32)
    """
    prepare = functools.partial(ridge, check_damping(damping))
    return _transformation(prepare, Moment, "moments", moments)


def check_damping(damping: float | Any) -> float:
    """A positive and finite number, and no array."""
    if isinstance(damping, bool) or not isinstance(damping, numbers.Real):
        msg = f"damping must be a number; it is a {type(damping).__name__}. Under optax.inject_hyperparams, name it in static_args."  # noqa: E501
        raise TypeError(msg)
    try:
        value = float(damping)
    except OverflowError:  # An integer beyond all floats.
        value = math.inf
    if not 0 < value < math.inf:
        msg = f"damping must be positive and finite; it is {short(damping)}."
        raise ValueError(msg)
    return value


def projectors(state: PyTree) -> dict[str, Projector]:
    """Of every leaf that a projection of this state lets move, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(
        getattr(state, "projectors", None), is_leaf=leaf_test(Projector)
    )
    return {path_name(path): leaf for path, leaf in leaves if leaf is not None}


def stackable(states: Sequence[PyTree]) -> list[PyTree]:
    """States of one kind and network on the host, whose arrays are of equal shapes."""
    pairs = [jax.tree.flatten(s, is_leaf=leaf_test(Projector)) for s in states]
    columns = [
        alike(column) if isinstance(column[0], Projector) else jax.device_get(column)
        for column in zip(*(leaves for leaves, _ in pairs), strict=True)
    ]
    return [pairs[0][1].unflatten(row) for row in zip(*columns, strict=True)]


def leakage(
    updates: PyTree, subspaces: PyTree, *, relative_to: PyTree | None = None
) -> PyTree:
    """How much of each update lies in the protected subspace.

    `|UT D|_F / |R|_F` with `R` the raw update, or `D` itself; 0 where `R` is zero.
    Traceable.

    Args:
      updates: like params.
      subspaces: like params: `Subspace` or None.
      relative_to: like params: the update before its projection. Relative to a
        projected update that nearly vanishes, leakage would be the noise of rounding.

    Returns:
      Like params: Float[] (with the subspaces' leading axes, if any) in at least
      float32, or None where there is no subspace or the update is masked.

    Raises:
      TypeError: a leaf of `subspaces` is no `Subspace`.
      ValueError: no subspace at all, or trees or shapes that differ.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((2, 1)).layout("dense", (), (0,), (1,))
    >>> subspace = Subspace(jnp.eye(2)[None, :, :1], jnp.ones((1, 2)), layout)
    >>> leakage(jnp.asarray([[3.0], [4.0]]), subspace).round(3)
    Array(0.6, dtype=float32)
    """
    if relative_to is None:
        relative_to = updates

    def share(name: str, subspace: Subspace, update: Any, raw: Any) -> Array | None:
        if _is_absent(update) or _is_absent(raw):
            return None
        lead = subspace.basis.shape[:-3]
        update = checked_leaf("updates", name, update, subspace.layout, lead)
        raw = checked_leaf("relative_to", name, raw, subspace.layout, lead)
        return over_requests(_share, len(lead))(subspace, update, raw)

    trees = {"updates": updates, "relative_to": relative_to}
    return map_leaves(share, Subspace, "subspaces", subspaces, **trees)


def drift(moments: PyTree, before: PyTree, after: PyTree) -> PyTree:
    """How far the outputs of each weight moved on the inputs behind its moment.

    `sqrt(tr(dWT C dW) / tr(WT C W))` with `dW = after - before`, `W = before`: the
    root-mean-square change of the outputs over the rows that `C` sums, relative to the
    outputs themselves. Rounding makes the numerator negative at times, hence clipped at
    0. Resolved down to `sqrt(eps)` of the moment's dtype only, 3.5e-4 in float32 and
    1.5e-8 in float64; smaller drifts must be measured on rows. 0 where nothing changed,
    inf where the outputs were zero and are not any more. Traceable.

    Args:
      moments: like params: `Moment` or None. A class axis may lead.
      before: params.
      after: params.

    Returns:
      Like params: Float[] (with the class axis, if any) in at least float32, or None
      where there is no moment or params are masked.

    Raises:
      TypeError: a leaf of `moments` is no `Moment`.
      ValueError: no moment at all, or trees or shapes that differ.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((2, 1)).layout("dense", (), (0,), (1,))
    >>> moment = Moment(jnp.asarray([[[2.0, 1.0], [1.0, 1.0]]]), jnp.ones(()), layout)
    >>> before, after = jnp.asarray([[1.0], [1.0]]), jnp.asarray([[2.0], [0.0]])
    >>> drift(moment, before, after).round(6)
    Array(0.447214, dtype=float32)
    """

    def change(name: str, moment: Moment, old: Any, new: Any) -> Array | None:
        if _is_absent(old) or _is_absent(new):
            return None
        moment.check(name)
        moment.check_positive(name)
        old = checked_leaf("before", name, old, moment.layout, ())
        new = checked_leaf("after", name, new, moment.layout, ())
        dtype = compute_dtype(moment.gram, old)
        old, new = (moment.layout.to_matrix(leaf).astype(dtype) for leaf in (old, new))
        function = over_requests(_drift, moment.gram.ndim - 3, (0, None, None))
        return function(moment.gram.astype(dtype), old, new - old)

    return map_leaves(change, Moment, "moments", moments, before=before, after=after)


def _transformation(prepare, kind, argument, tree) -> optax.GradientTransformation:
    map_leaves(lambda name, record: None, kind, argument, tree)

    # Once, and not before it is needed: inject_hyperparams makes the transform anew in
    # every update, and then uses nothing but `update`.
    @functools.cache
    def projectors():
        return map_leaves(prepare, kind, argument, tree)

    if is_traced(tree):
        projectors()  # The trace that made the tracers must be the one to use them.

    def match(path, projector, leaf):
        if projector is None or _is_absent(leaf):
            return None
        lead = projector.matrix.shape[:-3]
        checked_leaf("params", path_name(path), leaf, projector.layout, lead, ())
        return projector

    def init(params: optax.Params) -> NullSpaceState:
        if not jax.tree.leaves(params, is_leaf=_is_absent):
            # What optax.tree.map_params passes to tell params from the rest.
            return NullSpaceState(projectors())
        params = unmasked(params, tree, kind)
        check_structure("params", params, argument, tree, kind)
        is_leaf = leaf_test(Projector)
        return NullSpaceState(
            jax.tree.map_with_path(match, projectors(), params, is_leaf=is_leaf)
        )

    return optax.GradientTransformation(init, _update)


def _update(updates, state, params=None):
    """The one `update` of this module: what differs is in the state."""
    del params  # A projection depends on the update alone.

    def step(path, update, projector):
        if _is_absent(update):
            return update
        if projector is None:
            return jnp.zeros_like(update)
        lead = projector.matrix.shape[:-3]
        update = checked_leaf(
            "updates", path_name(path), update, projector.layout, lead
        )
        return over_requests(project, len(lead))(projector, update)

    projected = jax.tree.map_with_path(
        step, updates, state.projectors, is_leaf=_is_absent
    )
    return projected, state


def _share(subspace: Subspace, update: Array, raw: Array) -> Array:
    """`|UT D| / |R|`."""
    dtype = compute_dtype(subspace.basis, update)
    U = subspace.basis.astype(dtype)
    D = subspace.layout.to_matrix(update).astype(dtype)
    R = raw.astype(dtype)
    # Squares of small updates would underflow.
    largest = jnp.max(jnp.abs(R))
    scale = jnp.where(largest == 0, 1, largest)
    leaked = jnp.linalg.norm(product(U.mT, D / scale).reshape(-1))
    whole = jnp.linalg.norm((R / scale).reshape(-1))
    return jnp.where(largest == 0, 0, leaked / jnp.where(largest == 0, 1, whole))


def _drift(gram: Array, old: Array, change: Array) -> Array:
    """`sqrt(tr(dWT C dW) / tr(WT C W))`."""
    moved, output = (
        jnp.maximum(jnp.sum(matrix * product(gram, matrix)), 0)
        for matrix in (change, old)
    )
    relative = jnp.sqrt(moved / jnp.where(output > 0, output, 1))
    return jnp.where((output == 0) & (moved > 0), jnp.inf, relative)
