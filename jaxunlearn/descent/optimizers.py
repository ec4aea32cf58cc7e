"""An optax transformation as a static value and the arrays that go with it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxunlearn.descent.traced import Opaque, Program, trace


@dataclasses.dataclass(frozen=True)
class Update:
    """An optimizer's update, static and hashable; see `prepare`.

    Attributes:
      how: a program, equal to that of any optimizer that computes the same; or, where
        there can be none, the optimizer itself, compared by identity.
    """

    how: Program | optax.GradientTransformation

    def __call__(
        self,
        consts: Any,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        value: Array,
        value_fn: Callable[[PyTree], Array],
    ) -> tuple[PyTree, PyTree]:
        """Updates and the new state, as `optimizer.update` returns them."""
        if isinstance(self.how, Program):
            return self.how(consts, grads, state, params, value)
        return _update(self.how, grads, state, params, value, value_fn)


class Prepared(NamedTuple):
    """What `prepare` returns.

    Attributes:
      update: static.
      consts: arrays that the update closes over, its first argument.
      state: where it starts, with the dtypes that updates keep.
    """

    update: Update
    consts: tuple[Any, ...]
    state: PyTree


def prepare(
    optimizer: optax.GradientTransformation, params: PyTree, dtype: Any
) -> Prepared:
    """Start `optimizer` and make its update comparable.

    A new `optax.chain` on each request consists of new functions, for each of which
    `jax.jit` would compile again. Traced programs are compared instead: two chains are
    equal that differ in arrays alone, in the state or closed over. Optimizers that
    evaluate the loss themselves (line searches), or whose trace holds functions that
    cannot be compared, are compared by identity.

    Args:
      optimizer: its `init` is called on `params`.
      params: what it will update.
      dtype: of the loss.

    >>> params = {"w": jnp.ones(2)}
    >>> one = prepare(optax.adam(0.1), params, jnp.float32)
    >>> one.update == prepare(optax.adam(0.1), params, jnp.float32).update
    True
    """
    state = optimizer.init(params)
    update, consts, after = _trace(optimizer, params, state, dtype)
    if jax.tree.structure(state) == jax.tree.structure(after):
        types = jax.tree.map(jnp.result_type, state)
        wanted = jax.tree.map(lambda x: x.dtype, after)
        if types != wanted:
            # Some transforms start in the parameters' half precision and go on in
            # float32.
            state = jax.tree.map(jnp.asarray, state, wanted)
            update, consts, _ = _trace(optimizer, params, state, dtype)
    return Prepared(update, consts, state)


def _trace(optimizer, params, state, dtype):
    asked = []

    def value_fn(params, *_, **__):
        asked.append(True)
        return jnp.zeros((), dtype)

    def update(grads, state, params, value):
        return _update(optimizer, grads, state, params, value, value_fn)

    value = jax.ShapeDtypeStruct((), dtype)
    program, consts, (_, after) = trace(update, params, state, params, value)
    # A line search evaluates the loss, which a trace made without one cannot.
    if asked or isinstance(program, Opaque):
        return Update(optimizer), (), after
    return Update(program), consts, after


def _update(optimizer, grads, state, params, value, value_fn):
    update = optax.with_extra_args_support(optimizer).update
    extra = {"value": value, "grad": grads, "value_fn": value_fn}
    return update(grads, state, params, **extra)
