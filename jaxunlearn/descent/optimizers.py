"""An optax transformation as a static value and the arrays that go with it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxunlearn.checks import check_optimizer
from jaxunlearn.descent.programs import Program, as_program, by_identity


def as_transformation(optimizer: Any) -> optax.GradientTransformation:
    """What an `optax.MultiSteps` holds, any other transformation itself."""
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    check_optimizer(optimizer)
    return optimizer


def start_optimizer(
    optimizer: optax.GradientTransformation, params: PyTree, dtype: Any
) -> tuple[Program, PyTree]:
    """An optimizer's update as a program, and the state that it starts from.

    The update is `(consts, grads, state, params, value, value_fn=) -> (updates,
    state)`, for a loss of this dtype. A new `optax.chain` on each request consists of
    new functions, for each of which `jax.jit` would compile again; here two chains that
    differ in arrays alone, in the state or closed over, have one update. Those that
    evaluate the loss themselves (line searches) are compared by identity.
    """
    state = optimizer.init(params)
    if any(map(_is_sam, jax.tree.leaves(state, is_leaf=_is_sam))):
        msg = (
            "optax.contrib.sam asks for gradients at points of its own, or leaves the "
            "parameters at one of them; pass the optimizer that it holds."
        )
        raise ValueError(msg)
    update, after = _traced(optimizer, params, state, dtype)
    if jax.tree.structure(state) == jax.tree.structure(after):
        types = jax.tree.map(jnp.result_type, state)
        wanted = jax.tree.map(lambda x: x.dtype, after)
        if types != wanted:
            # Some transforms start in the parameters' half precision and go on in
            # float32.
            state = jax.tree.map(jnp.asarray, state, wanted)
            update, _ = _traced(optimizer, params, state, dtype)
    return update, state


def _is_sam(node) -> bool:
    return isinstance(node, optax.contrib.SAMState)


def _traced(optimizer, params, state, dtype):
    """The update, and the shapes of the state after it."""
    evaluations = []

    def count(params, *_, **__):
        evaluations.append(params)
        return jnp.zeros((), dtype)

    def update(grads, state, params, value, value_fn=count):
        update = optax.with_extra_args_support(optimizer).update
        extra = {"value": value, "grad": grads, "value_fn": value_fn}
        return update(grads, state, params, **extra)

    value = jax.ShapeDtypeStruct((), dtype)
    program = as_program(update, params, state, params, value, identity=optimizer)
    if evaluations:
        # Traced without the loss, which it needs.
        program = by_identity(update, program.shapes, optimizer)
    return program, program.shapes[1]
