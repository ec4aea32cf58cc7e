"""New weights in closed form, from moments alone: no steps, no images."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxunlearn.capture.grams import Moment
from jaxunlearn.capture.layout import path_name
from jaxunlearn.nullspace import linalg
from jaxunlearn.nullspace.projection import check_damping, shrink_to_null_space
from jaxunlearn.nullspace.projector import checked_leaf
from jaxunlearn.nullspace.subspace import host_grams
from jaxunlearn.nullspace.trees import check_concrete, leaf_test, map_leaves

_is_absent = leaf_test()


def reset_toward(
    params: PyTree,
    fresh: PyTree,
    moments: PyTree,
    output_moments: PyTree | None = None,
    *,
    damping: float | Any,
) -> PyTree:
    """Old weights where retained logits depend on them, fresh ones elsewhere.

    For each weight, and each of its groups, with `Wo` of `params` and `W0` of `fresh`,

        argmin 1/2 tr((W - Wo)T C (W - Wo) B) + 1/2 damping a b |W - W0|^2
        = W0 + U (S * (UT (Wo - W0) V)) VT,   S_ij = a_i b_j / (a_i b_j + damping a b)

    where `C = U diag(a_i) UT` is the moment of the inputs, `B = V diag(b_j) VT` that of
    the output gradients, and `a = tr C / d`, `b = tr B / o` are their mean eigenvalues.
    Dividing `C` and `B` by their rows changes nothing. As `damping -> 0` the old weight
    stays wherever `C` and `B` see it at all; as `damping -> inf` all becomes fresh, and
    so does at any damping a weight whose `C` or `B` is zero. Decompositions run in
    float64 on the host.

    Leaves without a moment keep the values of `params`: those without an input (biases,
    scales and shifts of a normalisation), of which moments say nothing, and every
    weight for which the caller puts None, so that a part of a network can be reset. A
    layer that is to start anew altogether takes its bias from `fresh`, by hand; the
    running statistics of a BatchNorm are state, and must be taken again where weights
    before it change.

    Args:
      params: of the classifier as it is.
      fresh: of the same structure, such as those of another initialisation.
      moments: like params: `Moment` of retained inputs, or None.
      output_moments: like params: what `output_moments` returned, with the forgotten
        classes in `exclude`, or None for a leaf; None: `B = I` for all.
      damping: positive and finite, in units of the mean eigenvalues.

    Returns:
      Like params, in their dtypes.

    Raises:
      TypeError: `damping` is no number, a leaf is no `Moment` or is traced.
      ValueError: `damping` is not positive and finite, a moment is not finite, has a
        class axis or is of the wrong side, or trees or shapes differ.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((2, 1)).layout("dense", (), (0,), (1,))
    >>> gram = jnp.asarray([[[3.0, 0.0], [0.0, 1.0]]])
    >>> moments = {"kernel": Moment(gram, jnp.asarray(4.0), layout)}
    >>> old, new = {"kernel": jnp.ones((2, 1))}, {"kernel": jnp.zeros((2, 1))}
    >>> reset_toward(old, new, moments, damping=0.5)["kernel"]
    Array([[0.75],
           [0.5 ]], dtype=float32)
    """
    given = params, fresh, moments, output_moments
    return resets_toward(*given, dampings=[damping])[0]


def resets_toward(
    params: PyTree,
    fresh: PyTree,
    moments: PyTree,
    output_moments: PyTree | None = None,
    *,
    dampings: Sequence[Any],
) -> list[PyTree]:
    """`reset_toward` by each of several dampings, after one decomposition."""
    dampings = [check_damping(damping) for damping in dampings]
    if output_moments is None:
        output_moments = jax.tree.map(
            lambda _: None, moments, is_leaf=leaf_test(Moment)
        )

    def reset(name: str, moment: Moment, old: Any, new: Any, outputs: Any) -> Any:
        if _is_absent(old) or _is_absent(new):
            return None
        layout = moment.layout
        C, B = _means(name, moment, "inputs"), None
        if outputs is not None:
            if not isinstance(outputs, Moment):
                msg = f"output_moments must hold a Moment or None at {name}; it holds a {type(outputs).__name__}."  # noqa: E501
                raise TypeError(msg)
            if outputs.layout != layout:
                msg = f"{name}: moments and output_moments read it in different ways. Take both of one network and one shape of images."  # noqa: E501
                raise ValueError(msg)
            B = _means(name, outputs, "outputs")
        matrices = []
        for argument, leaf in (("params", old), ("fresh", new)):
            leaf = checked_leaf(argument, name, leaf, layout, ())
            check_concrete(name, leaf, "an eigenvalue decomposition in float64")
            with linalg.float64():
                matrices.append(np.asarray(layout.to_matrix(leaf), np.float64))
        groups = [
            _resets(dampings, C[g], None if B is None else B[g], Wo, W0)
            for g, (Wo, W0) in enumerate(zip(*matrices, strict=True))
        ]
        dtype = jnp.result_type(old)
        return _Resets(
            layout.from_matrix(jnp.asarray(np.stack(one), dtype))
            for one in zip(*groups, strict=True)
        )

    trees = {"params": params, "fresh": fresh, "output_moments": output_moments}
    changed = map_leaves(reset, Moment, "moments", moments, **trees)
    return [
        jax.tree.map(
            lambda new, old, number=number: old if new is None else new[number],
            *(changed, params),
            is_leaf=_is_reset,
        )
        for number in range(len(dampings))
    ]


class _Resets(tuple):
    """A leaf by each damping."""


def _is_reset(node: Any) -> bool:
    return _is_absent(node) or isinstance(node, _Resets)


def _means(name: str, moment: Moment, side: str) -> Float[np.ndarray, "g w w"]:
    """The grams over their mean eigenvalues, in float64; zero where they are zero."""
    moment.check(name, leading=False, side=side)
    check_concrete(name, moment.gram, "an eigenvalue decomposition in float64")
    grams = host_grams(name, moment, side).astype(np.float64)
    means = np.trace(grams, axis1=1, axis2=2) / grams.shape[-1]
    return grams / np.where(means > 0, means, 1)[:, None, None]


def _resets(dampings, C, B, Wo, W0) -> list[Float[np.ndarray, "d o"]]:
    """Of one group; `C` and `B` have mean eigenvalues of one."""
    values, U = linalg.eigenpairs(C)
    energies, change = values[:, None], U.T @ (Wo - W0)
    if B is not None:
        values, V = linalg.eigenpairs(B)
        energies, change = energies * values, change @ V
    parts = (U @ (energies / (energies + rho) * change) for rho in dampings)
    return [W0 + (part if B is None else part @ V.T) for part in parts]


def project_change(
    original_params: PyTree,
    edited_params: PyTree,
    moments: PyTree,
    *,
    damping: float | Any,
) -> PyTree:
    """Any method's change, corrected so that retained inputs see little of it.

    `W + P (W' - W)` with the ridge `P = damping (C / tr C + damping I)^-1` of
    `shrink_to_null_space`, for each weight and group: a direction that carries the
    share `c` of the trace keeps `damping / (c + damping)` of its change. `drift` of the
    result is never larger than that of `edited_params`, and vanishes with `damping`.

    Leaves without a moment (biases, normalisation) keep the original's values: no
    moment bounds what a change of theirs does, so that with it there would be no
    certificate. State, such as the running statistics of a BatchNorm, is no part of
    params: where a method changed it, go back to the original's too.

    Args:
      original_params: before the method.
      edited_params: after it, of the same structure.
      moments: like params: `Moment` of retained inputs, or None.
      damping: as of `shrink_to_null_space`.

    Returns:
      Like params, in the original's dtypes.

    Raises:
      TypeError: `damping` is no number, a leaf is no `Moment` or is traced.
      ValueError: as `shrink_to_null_space`; moments with a class axis; trees or shapes
        that differ.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((2, 1)).layout("dense", (), (0,), (1,))
    >>> moment = Moment(jnp.diag(jnp.array([3.0, 1.0]))[None], jnp.ones(()), layout)
    >>> moments = {"kernel": moment, "bias": None}
    >>> before = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
    >>> after = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
    >>> project_change(before, after, moments, damping=0.25)
    {'bias': Array([0.], dtype=float32), 'kernel': Array([[0.25],
           [0.5 ]], dtype=float32)}
    """

    def check(name: str, moment: Moment, old: Any, new: Any) -> None:
        moment.check(name, leading=False)
        for argument, leaf in (("original_params", old), ("edited_params", new)):
            if not _is_absent(leaf):
                checked_leaf(argument, name, leaf, moment.layout, ())

    projection = shrink_to_null_space(moments, damping=damping)
    trees = {"original_params": original_params, "edited_params": edited_params}
    map_leaves(check, Moment, "moments", moments, **trees)
    change = jax.tree.map_with_path(_difference, original_params, edited_params)
    change, _ = projection.update(change, projection.init(original_params))
    return optax.apply_updates(original_params, change)


def _difference(path, old: Any, new: Any) -> Array:
    if jnp.shape(old) != jnp.shape(new):
        msg = f"{path_name(path)} is of shape {jnp.shape(old)} in original_params and of {jnp.shape(new)} in edited_params: give parameters of one network."  # noqa: E501
        raise ValueError(msg)
    return jnp.asarray(new) - jnp.asarray(old)
