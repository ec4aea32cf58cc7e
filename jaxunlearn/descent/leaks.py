"""Whether what follows a projection in a chain undoes it: the first update tells."""

import math
import warnings

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.nullspace.projection import NullSpaceState, projectors
from jaxunlearn.nullspace.projector import Projector, compute_dtype, project

# In units of a weight's last bits: what rounding may have done to `W + dW`.
_ROUNDING = 2, 64  # those of its own type, and of what a projection computes in


class LeakageWarning(UserWarning):
    """Updates lie in the subspace that the optimizer's own projection protects."""


class FirstUpdate:
    """Warns where the first update that is not zero leaks.

    The update is read off the parameters, so that it costs the steps nothing; shares
    that their rounding hides are passed over. `found` says whether it was there yet.
    """

    def __init__(self, params: PyTree, state: PyTree):
        nodes = jax.tree.leaves(state, is_leaf=_is_projection)
        self._projectors = [
            pair
            for node in filter(_is_projection, nodes)
            for pair in projectors(node).items()
            if not pair[1].shrinks
        ]
        self._before = params
        self.found = not self._projectors

    def __call__(self, params: PyTree) -> None:
        """Look at the parameters after a further step or more."""
        if self.found:
            return
        trees = [
            {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(t)}
            for t in (self._before, params)
        ]
        names, held = zip(*self._projectors, strict=True)
        pairs = [[tree[name] for tree in trees] for name in names]
        measured = jax.device_get(_leaks(held, pairs))
        self.found = any(moved > 0 for _, moved, _ in measured)
        if not self.found:
            return
        self._before = None
        leaking = {
            name: leaked / moved
            for name, (leaked, moved, _), limit in zip(
                names, measured, map(_limit, held, pairs, measured), strict=True
            )
            if leaked > limit
        }
        if leaking:
            worst = max(leaking, key=leaking.__getitem__)
            more = f" (and {len(leaking) - 1} more)" if len(leaking) > 1 else ""
            msg = (
                f"The first update of {worst}{more} lies to {leaking[worst]:.2g} of "
                "its norm in the subspace that project_to_null_space protects: what "
                "comes after the projection is not linear in it, or adds something. "
                "Put the projection last, as in optax.chain(optax.adam(1e-3), "
                "project_to_null_space(subspaces)), or pass check=False."
            )
            warnings.warn(msg, LeakageWarning, stacklevel=2)


def _is_projection(node) -> bool:
    return isinstance(node, NullSpaceState)


def _limit(projector: Projector, pair, measured) -> float:
    """What may have leaked of an update by rounding alone."""
    _, moved, size = map(float, measured)
    own, computed = (
        float(jnp.finfo(dtype).eps)
        for dtype in (pair[0].dtype, compute_dtype(*pair, projector.matrix))
    )
    computed = max(computed, float(jnp.finfo(projector.matrix.dtype).eps))
    rounding = _ROUNDING[0] * own + _ROUNDING[1] * computed
    return max(math.sqrt(max(own, computed)) * moved, rounding * size)


@jax.jit
def _leaks(projectors, pairs):
    """Norms of the protected part of each update, of the update, and of the weight."""

    def norms(projector, before, after):
        dtype = compute_dtype(before, projector.matrix)
        before, after = before.astype(dtype), after.astype(dtype)
        change = after - before
        protected = change - project(projector, change)
        size = jnp.maximum(jnp.abs(before).max(), jnp.abs(after).max())
        # Squares of small updates would underflow.
        scale = jnp.where(size > 0, size, 1)
        arrays = protected, change, jnp.maximum(jnp.abs(before), jnp.abs(after))
        return [scale * jnp.linalg.norm((x / scale).reshape(-1)) for x in arrays]

    return [norms(p, *pair) for p, pair in zip(projectors, pairs, strict=True)]
