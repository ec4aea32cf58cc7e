"""An optax transformation as a static value and the arrays that go with it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxunlearn.descent.programs import Opaque, Program, as_program


@dataclasses.dataclass(frozen=True)
class Update:
    """An optimizer's update, static and hashable.

    Attributes:
      how: a program, equal to that of any optimizer that computes the same; or, where
        there can be none, the optimizer itself, compared by identity.
    """

    how: Program | optax.GradientTransformation

    def __call__(self, consts, grads, state, params, value, value_fn):
        """Updates and the new state, as `optimizer.update` returns them."""
        if isinstance(self.how, Program):
            return self.how(consts, grads, state, params, value)
        return _update(self.how, grads, state, params, value, value_fn)


class Started(NamedTuple):
    """An optimizer that is ready for its first update.

    Attributes:
      update: static.
      consts: arrays that the update closes over, its first argument.
      state: where it starts, with the dtypes that updates keep.
    """

    update: Update
    consts: tuple[Any, ...]
    state: PyTree


def start_optimizer(
    optimizer: optax.GradientTransformation, params: PyTree, dtype: Any
) -> Started:
    """Call `optimizer.init` and make its update comparable.

    A new `optax.chain` on each request consists of new functions, for each of which
    `jax.jit` would compile again. Two chains are equal here that differ in arrays
    alone, in the state or closed over. Optimizers that evaluate the loss themselves
    (line searches), or whose trace holds functions that cannot be compared, are
    compared by identity.

    Args:
      optimizer: to be started.
      params: what it will update.
      dtype: of the loss.

    >>> params = {"w": jnp.ones(2)}
    >>> one = start_optimizer(optax.adam(0.1), params, jnp.float32)
    >>> one.update == start_optimizer(optax.adam(0.1), params, jnp.float32).update
    True
    """
    state = optimizer.init(params)
    update, consts, after = _comparable(optimizer, params, state, dtype)
    if jax.tree.structure(state) == jax.tree.structure(after):
        types = jax.tree.map(jnp.result_type, state)
        wanted = jax.tree.map(lambda x: x.dtype, after)
        if types != wanted:
            # Some transforms start in the parameters' half precision and go on in
            # float32.
            state = jax.tree.map(jnp.asarray, state, wanted)
            update, consts, _ = _comparable(optimizer, params, state, dtype)
    return Started(update, consts, state)


def _comparable(optimizer, params, state, dtype):
    """The update, what it closes over, and the shapes of the state after it."""
    asked = []

    def value_fn(params, *_, **__):
        asked.append(True)
        return jnp.zeros((), dtype)

    def update(grads, state, params, value):
        return _update(optimizer, grads, state, params, value, value_fn)

    value = jax.ShapeDtypeStruct((), dtype)
    program, consts, (_, after) = as_program(update, params, state, params, value)
    # A line search evaluates the loss, which a trace made without one cannot.
    if asked or isinstance(program, Opaque):
        return Update(optimizer), (), after
    return Update(program), consts, after


def _update(optimizer, grads, state, params, value, value_fn):
    update = optax.with_extra_args_support(optimizer).update
    extra = {"value": value, "grad": grads, "value_fn": value_fn}
    return update(grads, state, params, **extra)
