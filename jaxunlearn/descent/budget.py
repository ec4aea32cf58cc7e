"""A descent that ends before the outputs of any layer have moved too far.

How far is `drift`, which asks for moments alone. It is taken of every update on the
device; the first that goes beyond the budget is not made, and none after it, so that it
does not matter how many steps a compiled chunk holds.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxunlearn.capture.grams import Moment
from jaxunlearn.capture.layout import path_name
from jaxunlearn.checks import as_number, check_positive, short
from jaxunlearn.nullspace.projection import drift
from jaxunlearn.nullspace.trees import leaf_test

# In place of the number of the layer that ended a run: it goes on.
_GOING = -1


class CertificateWarning(UserWarning):
    """Parameters moved of which no moment says how far the outputs moved."""


@dataclasses.dataclass(frozen=True)
class BudgetedStep:
    """A step that is not made if it goes beyond the budget, nor any after it.

    Static, and equal to any other of equal single steps. The carry is that of the
    single step, and `Standing`; the constants are its own, and a `Budget`'s.
    """

    single: Callable[..., Any]

    def __call__(self, carry, constants, index, row):
        """As of `single`; the loss of a step that is not made is there, too."""
        before, standing = carry
        own, (moments, original, eps) = constants
        after, loss = self.single(before, own, index, row)
        drifts = _drifts(moments, original, after[0])
        # Written so that NaN goes beyond.
        layer = jnp.where(jnp.all(drifts <= eps), _GOING, jnp.argmax(drifts))
        first = standing.layer == _GOING
        layer = jnp.where(first, layer, standing.layer).astype(jnp.int32)
        going = layer == _GOING
        worst = jnp.where(first, jnp.max(drifts), standing.worst)
        standing = Standing(layer, standing.taken + going, worst)
        kept = jax.tree.map(lambda new, old: jnp.where(going, new, old), after, before)
        return (kept, standing), loss


class Standing(NamedTuple):
    """How a run stands.

    Attributes:
      layer: which one's drift would have gone beyond the budget, or -1.
      taken: steps that were made.
      worst: the largest drift of all layers, that of the step not made included.
    """

    layer: Array | Any
    taken: Array | Any
    worst: Array | Any


class Budget:
    """The moments of a run's budget, its size, and what the run started from."""

    def __init__(self, given: Any, params: PyTree):
        if not isinstance(given, tuple | list) or len(given) != 2:
            msg = f"drift_budget must be a pair (moments, eps); it is {short(given)}."
            raise TypeError(msg)
        moments, eps = given
        size = None if isinstance(eps, bool) else as_number(eps)
        if size is None:
            msg = f"drift_budget is (moments, eps), and eps must be a number; it is {short(eps)}."  # noqa: E501
            raise TypeError(msg)
        check_positive("eps of drift_budget", size)
        jax.eval_shape(drift, moments, params, params)  # Or a sentence.
        leaves = jax.tree_util.tree_leaves_with_path(moments, is_leaf=leaf_test(Moment))
        held = [(path_name(path), m) for path, m in leaves if isinstance(m, Moment)]
        for name, moment in held:
            resolved = float(jnp.finfo(moment.gram.dtype).eps) ** 0.5
            if size < resolved:
                msg = (
                    f"eps of drift_budget is {size}, and the moment of {name} is "
                    f"{moment.gram.dtype}, which resolves drifts down to "
                    f"{resolved:.2g}: raise eps, or take the moments in float64."
                )
                raise ValueError(msg)
            if not jnp.isfinite(moment.gram).all():
                msg = f"{name}: its second moment is not finite. Look for NaN or overflow in the images or the network, and take the moments again."  # noqa: E501
                raise ValueError(msg)
        self.eps, self.names = size, [name for name, _ in held]
        self._given = moments, params
        self._dtype = jax.eval_shape(_drifts, moments, params, params).dtype
        self.constants = moments, params, np.asarray(size, self._dtype)

    def start(self, carry: PyTree) -> tuple[PyTree, Standing]:
        """The carry of a `BudgetedStep` for that of its single step."""
        worst = np.zeros((), self._dtype)
        return carry, Standing(np.int32(_GOING), np.int32(0), worst)

    def why(self, standing: Standing) -> str:
        """Why a run ended, or nothing if it went through."""
        layer, taken, worst = (x.item() for x in jax.device_get(standing))
        if layer == _GOING:
            return ""
        return (
            f"After {taken} steps: with one more, the drift of {self.names[layer]} "
            f"would have been {worst:.4g}, and the budget is {self.eps}."
        )

    def settled(self, params: PyTree) -> tuple[PyTree, dict[str, float]]:
        """The parameters, and by path their drift, which is not beyond the budget.

        A drift that is computed in another program may round to the other side. Then
        the layer's change is scaled down by as much: drift is linear in it.
        """
        moments, before = self._given
        for _ in range(20):
            drifts = drift(moments, before, params)
            worst = {
                name: float(jnp.max(x))
                for name, x in zip(self.names, jax.tree.leaves(drifts), strict=True)
            }
            if all(x <= self.eps for x in worst.values()):
                break

            def shrunk(old, new, x):
                if x is None or not jnp.max(x) > self.eps:
                    return new
                factor = self.eps / float(jnp.max(x)) * (1 - 1e-6)
                return old + (new - old) * jnp.asarray(factor, new.dtype)

            params = jax.tree.map(
                shrunk, before, params, drifts, is_leaf=leaf_test(Moment)
            )
        self._warn(params)
        return params, worst

    def _warn(self, params: PyTree) -> None:
        """Where leaves moved that no moment covers."""
        moments, before = self._given
        pairs = jax.tree.map(
            lambda moment, old, new: None if moment is not None else (old != new).any(),
            *(moments, before, params),
            is_leaf=leaf_test(Moment),
        )
        moved = [
            path_name(path)
            for path, changed in jax.tree_util.tree_leaves_with_path(pairs)
            if changed
        ]
        if moved:
            more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
            msg = (
                f"{moved[0]}{more} moved, of which no moment says how far the outputs "
                "moved: the drift budget covers weights that have inputs, no biases or "
                "normalisations. Put project_to_null_space or shrink_to_null_space "
                "last in the optimizer's chain, which keep those as they are."
            )
            warnings.warn(msg, CertificateWarning, stacklevel=3)


def _drifts(moments: PyTree, before: PyTree, after: PyTree) -> Array:
    """Of every layer, the largest over classes, in one array."""
    drifts = jax.tree.leaves(drift(moments, before, after))
    dtype = jnp.result_type(*drifts)
    return jnp.stack([jnp.max(x).astype(dtype) for x in drifts])
