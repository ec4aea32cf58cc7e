"""Optimizers compared by what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.descent.optimizers import start_optimizer

SCHEDULE = optax.cosine_decay_schedule
FACTORIES = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(1e-3),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3)),
    "scheduled": lambda: optax.rmsprop(SCHEDULE(0.1, 10)),
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
    "multi": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "masked": lambda: optax.masked(optax.adam(0.1), {"w": True, "b": False}),
    "partitioned": lambda: optax.partition(
        {"fast": optax.sgd(0.1), "none": optax.set_to_zero()},
        {"w": "fast", "b": "none"},
    ),
    "noisy": lambda: optax.noisy_sgd(0.1, key=jax.random.key(3)),
    "polyak": lambda: optax.polyak_sgd(),
    "muon": lambda: optax.contrib.muon(0.1),
    "prodigy": lambda: optax.contrib.prodigy(0.1),
    "finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
}


def params(dtype=jnp.float32):
    return {"w": jnp.arange(6.0, dtype=dtype).reshape(3, 2), "b": jnp.ones(2, dtype)}


def prepared(optimizer, dtype=jnp.float32):
    return start_optimizer(optimizer, params(dtype), jnp.float32)


def update(optimizer, dtype=jnp.float32):
    return prepared(optimizer, dtype)[0].run


def no_loss(params):
    raise AssertionError


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("name", FACTORIES)
def test_optimizers_made_alike_are_equal_and_do_what_optax_does(name):
    make = FACTORIES[name]
    (one, start), (other, _) = prepared(make()), prepared(make())
    assert one.run is other.run
    given = params()
    grads, value = jax.tree.map(lambda p: 0.1 * p + 1, given), jnp.float32(2)
    optimizer = optax.with_extra_args_support(make())

    @jax.jit
    def both(consts, grads, state, start, given, value):
        extra = {"value": value, "grad": grads, "value_fn": no_loss}
        expected = optimizer.update(grads, start, given, **extra)
        mine = other.run(consts, grads, state, given, value, value_fn=no_loss)
        return mine, expected

    results = both(one.consts, grads, start, optimizer.init(given), given, value)
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(x, y, rtol=1e-6)


def test_no_two_kinds_are_equal():
    updates = [update(make()) for make in FACTORIES.values()]
    assert len(set(updates)) == len(updates)


@pytest.mark.core
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (optax.sgd(0.1), optax.sgd(0.2)),
        (optax.adam(0.1, b1=0.9), optax.adam(0.1, b1=0.8)),
        (optax.sgd(SCHEDULE(0.1, 10)), optax.sgd(SCHEDULE(0.1, 20))),
        (
            optax.chain(optax.clip(1.0), optax.sgd(0.1)),
            optax.chain(optax.sgd(0.1), optax.clip(1.0)),
        ),
        (optax.masked(optax.sgd(0.1), {"w": True, "b": False}), optax.sgd(0.1)),
    ],
)
def test_what_is_written_into_the_program_tells_optimizers_apart(one, other):
    assert update(one) != update(other)


@pytest.mark.core
def test_arrays_do_not_tell_optimizers_apart():
    def scale_by(array):
        return optax.stateless(
            lambda updates, _: {"w": updates["w"], "b": updates["b"] * array}
        )

    one, other = (prepared(scale_by(np.array([k, 1.0], "float32"))) for k in (2, 3))
    (one, state), (other, _) = one, other
    assert one.run is other.run
    grads = jax.tree.map(jnp.ones_like, params())
    given = (grads, state, params(), jnp.float32(0))
    assert one.run(one.consts, *given)[0]["b"].tolist() == [2, 1]
    assert one.run(other.consts, *given)[0]["b"].tolist() == [3, 1]


def test_other_shapes_are_other_programs():
    sgd = optax.sgd(0.1)
    assert update(sgd) != update(sgd, jnp.bfloat16)


@pytest.mark.long
def test_a_line_search_is_compared_by_identity():
    one, other = optax.lbfgs(), optax.lbfgs()
    assert update(one) == update(one)
    assert update(one) != update(other)


def test_custom_derivatives_are_compared_by_identity():
    def make():
        return optax.stateless(lambda updates, _: jax.tree.map(jax.nn.relu, updates))

    one = make()
    assert update(one) != update(make())


def test_a_state_that_widens_starts_wide():
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    start, state = prepared(optimizer, jnp.bfloat16)
    given = params(jnp.bfloat16)
    _, after = start.run(start.consts, given, state, given, jnp.float32(0))
    types = [jax.tree.map(lambda x: x.dtype, tree) for tree in (state, after)]
    assert types[0] == types[1]
