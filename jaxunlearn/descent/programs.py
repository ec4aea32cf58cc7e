"""Functions compared by what they compute.

`jax.jit` compares a static function by identity, so that every new `optax.chain` or
lambda would compile a program anew. Here such a function is traced once, abstractly,
and the trace is what runs: one and the same function for all whose traces are equal,
equation by equation. Because the trace itself is what runs, nothing that a comparison
could miss has an influence. Arrays that a function closes over are arguments.

Without this a further request with a new chain would be traced and lowered again, 0.2 s
of CPU time for a small CNN and 1.4 s for a ResNet-18 of width 16, even where its
program is read from JAX's cache on the disk.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import eval_jaxpr
from jax.extend import core

from jaxunlearn.capture.jaxprs import open_jaxpr

# Kept alive by those who use them, among them JAX's caches of compiled programs.
_SHARED = weakref.WeakValueDictionary()


class Program(NamedTuple):
    """A function ready for `jax.jit`."""

    run: Callable[..., Any]  # static, `(consts, *args)`; for equal functions one object
    consts: tuple[Any, ...]  # arrays that the function closes over
    shapes: Any  # of what it returns, as `jax.eval_shape` gives them


def as_program(
    function: Callable[..., Any], *args: Any, identity: Hashable = None
) -> Program:
    """Trace `function` on arrays or their shapes, computing nothing.

    Where the trace holds functions of its own (custom derivatives, callbacks), which
    cannot be compared, the function is compared by identity: by its own, or by another
    that is given. Keywords reach it in that case alone.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    consts = tuple(
        c if isinstance(c, jax.Array) else jax.device_put(np.asarray(c))
        for c in closed.consts
    )
    structure = jax.tree.structure(shapes)
    # The program outlives this request in JAX's caches, and its arrays should not.
    jaxpr = closed.replace(consts=()) if closed is closed.jaxpr else closed.jaxpr
    try:
        key = (jax.tree.structure(args), structure, _jaxpr_key(jaxpr))
    except TypeError:
        return by_identity(function, shapes, identity)

    def run(consts, *args, **_):
        outputs = eval_jaxpr(jaxpr, consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(structure, outputs)

    return Program(_SHARED.setdefault(key, run), consts, shapes)


def by_identity(
    function: Callable[..., Any], shapes: Any, identity: Hashable = None
) -> Program:
    """The function as it stands, which holds its own arrays."""

    def run(consts, *args, **keywords):
        del consts
        return function(*args, **keywords)

    run = _SHARED.setdefault(("identity", identity or function), run)
    return Program(run, (), shapes)


def _jaxpr_key(jaxpr) -> Hashable:
    """Inputs, equations and outputs, variables numbered in order of appearance."""
    numbers: dict[Any, int] = {}

    def name(variable):
        number = numbers.setdefault(variable, len(numbers))
        return number, _static_key(variable.aval)

    def atom(x):
        if isinstance(x, core.Literal):
            return _static_key(x.aval), _array_key(x.val)
        return numbers[x]

    inputs = tuple(map(name, (*jaxpr.constvars, *jaxpr.invars)))
    equations = tuple(
        (
            eqn.primitive,
            tuple(map(atom, eqn.invars)),
            tuple(map(name, eqn.outvars)),
            _static_key(eqn.params),
            # Where to compute and which generator of random bits.
            repr(eqn.ctx),
        )
        for eqn in jaxpr.eqns
    )
    return inputs, equations, tuple(map(atom, jaxpr.outvars))


def _static_key(value: Any) -> Hashable:
    """A parameter of an equation; types tell `1`, `1.0` and `True` apart."""
    jaxpr, consts = open_jaxpr(value)
    if hasattr(jaxpr, "eqns"):
        return "jaxpr", _jaxpr_key(jaxpr), _static_key(tuple(consts))
    if isinstance(value, dict):
        value = tuple(sorted(value.items()))
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_static_key, value))
    if isinstance(value, float):
        # Tells 0.0 from -0.0, and equals itself where it is not a number.
        return float, value.hex()
    if hasattr(value, "shape") and hasattr(value, "__array__"):
        return _array_key(value)
    # Functions compared by identity, which a trace may make anew. (Of a mesh there is
    # only ever one like it, and it is callable because it decorates.)
    anew = callable(value) and type(value).__eq__ is object.__eq__
    if (anew and not isinstance(value, jax.sharding.Mesh)) or hasattr(
        value, "call_wrapped"
    ):
        raise TypeError(value)
    hash(value)
    return type(value), value


def _array_key(value: Any) -> Hashable:
    array = np.asarray(value)  # Of random keys a TypeError.
    return array.dtype, array.shape, array.tobytes()
