"""Functions compared by what they compute."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.descent.programs import as_program

X = jnp.arange(3.0)


def program(function, *args):
    return as_program(function, *(args or (X,))).run


def scaled(factor):
    return lambda x: factor * x


def test_equal_programs_are_one():
    assert program(scaled(2.0)) is program(scaled(2.0))


def test_a_program_that_nobody_needs_is_gone():
    watch = weakref.ref(program(scaled(7.0)))
    gc.collect()
    assert watch() is None


@jax.custom_jvp
def squared(x):
    return x**2


squared.defjvp(lambda primals, tangents: (primals[0] ** 2, tangents[0]))

DIFFERENT = {
    "a number": (scaled(2.0), scaled(3.0)),
    "the last bit of a number": (scaled(0.1), scaled(np.nextafter(np.float32(0.1), 1))),
    "the sign of zero": (scaled(0.0), scaled(-0.0)),
    "a flag for a number": (
        lambda x: jax.lax.reduce_precision(x, 5, 10),
        lambda x: jax.lax.reduce_precision(x, 5, 9),
    ),
    "a primitive": (jnp.sin, jnp.cos),
    "the order of variables": (lambda x: (x, 2 * x), lambda x: (2 * x, x)),
    "which variable": (lambda x: x - 2 * x, lambda x: 2 * x - x),
    "the output's structure": (lambda x: (x,), lambda x: [x]),
    "a precision": (
        lambda x: jnp.dot(x, x, precision="highest"),
        lambda x: jnp.dot(x, x),
    ),
    "the body of a loop": (
        lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + i, x),
        lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x - i, x),
    ),
    "a number inside a nested function": (
        lambda x: jax.jit(scaled(2.0))(x),
        lambda x: jax.jit(scaled(3.0))(x),
    ),
    "a branch": (
        lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.sin, x),
    ),
}


@pytest.mark.core
@pytest.mark.parametrize("name", DIFFERENT)
def test_programs_differ_in(name):
    one, other = DIFFERENT[name]
    assert program(one) is not program(other)
    for function in DIFFERENT[name]:
        assert program(function) is program(lambda x: function(x))  # noqa: B023


def test_programs_differ_in_their_arguments():
    identity = lambda x: x  # noqa: E731
    assert program(identity, X) != program(identity, jnp.arange(4.0))
    assert program(identity, X) != program(identity, jnp.arange(3))
    assert program(identity, (X,)) != program(identity, [X])


@pytest.mark.core
def test_a_program_computes_what_its_function_does():
    def function(tree, y):
        return {"out": tree["a"] @ tree["a"] + y, "same": tree["b"]}

    tree = {"a": X, "b": jnp.int32(3)}
    traced = as_program(function, tree, jax.ShapeDtypeStruct((), jnp.float32))
    result = jax.jit(traced.run)(traced.consts, tree, jnp.float32(2))
    assert jax.tree.map(float, result) == {"out": 7.0, "same": 3.0}
    assert traced.shapes["out"].shape == ()


@pytest.mark.core
def test_arrays_closed_over_are_arguments():
    """So programs that differ in them alone are equal, and each gets its own."""

    def closing_over(array):
        return as_program(lambda x: x * array, X)

    for make in (np.asarray, jnp.asarray):
        one, other = (closing_over(make([k, 2.0, 3.0], "float32")) for k in (1, 5))
        assert one.run == other.run
        assert other.run(one.consts, X).tolist() == [0, 2, 6]
        assert one.run(other.consts, X + 1).tolist() == [5, 4, 9]


@pytest.mark.long
def test_a_program_does_not_keep_the_arrays_alive():
    def closing_over(array):
        traced = as_program(lambda x: x * array, X)
        return weakref.ref(array), traced._replace(consts=())

    watch, kept = closing_over(jnp.ones(3) * 2)
    jax.clear_caches()
    gc.collect()
    assert watch() is None
    assert kept.run is closing_over(jnp.ones(3))[1].run


def test_two_closures_over_one_array_differ_from_closures_over_two():
    """JAX hands an array that is closed over twice over once."""
    a, b = jnp.ones(3), jnp.ones(3)
    one = as_program(lambda x: (x * a, x + a), X)
    two = as_program(lambda x: (x * a, x + b), X)
    assert (len(one.consts) != len(two.consts)) == (one.run != two.run)


@pytest.mark.core
def test_what_cannot_be_compared_stays_itself():
    twice = lambda x: 2 * squared(x)  # noqa: E731
    assert program(twice) == program(twice)
    assert program(twice) != program(lambda x: 2 * squared(x))
    traced = as_program(twice, X)
    assert traced.run(traced.consts, X).tolist() == [0, 2, 8]
    gradient = jax.grad(lambda x: traced.run(traced.consts, x).sum())
    assert gradient(X).tolist() == [2, 2, 2]


def test_callbacks_are_never_mixed_up():
    def calling(function):
        shape = jax.ShapeDtypeStruct((3,), jnp.float32)
        return as_program(lambda x: jax.pure_callback(function, shape, x), X)

    one, other = calling(lambda x: x + 1), calling(lambda x: x + 2)
    assert one.run != other.run
    assert one.run(one.consts, X).tolist() == [1, 2, 3]
    assert other.run(other.consts, X).tolist() == [2, 3, 4]


def test_random_keys_may_be_closed_over():
    def noise(seed):
        key = jax.random.key(seed)
        return as_program(lambda x: x + jax.random.normal(key, x.shape), X)

    results = [noise(seed).run(noise(seed).consts, X).tolist() for seed in (0, 1)]
    assert results[0] != results[1]


def test_the_precision_asked_for_around_a_trace_counts():
    dot = lambda x: jnp.dot(x, x)  # noqa: E731
    plain = program(dot)
    with jax.default_matmul_precision("highest"):
        assert program(dot) != plain
    assert program(dot) == plain
