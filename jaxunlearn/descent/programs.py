"""Functions compared by what they compute.

`jax.jit` compares a static function by identity, so that every new `optax.chain` or
lambda would compile a program anew. Here such a function is traced once, abstractly,
and becomes a value: equal to any other function whose trace is the same, equation by
equation. Because the trace itself is what runs, nothing that a comparison could miss
has an influence. Arrays that the function closes over are arguments.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import eval_jaxpr
from jax.extend import core


class Program:
    """A traced function: `program(consts, *args)`, hashable and compared by structure.

    `args` have the tree structure, shapes and dtypes of the examples that it was traced
    for. See `as_program`.
    """

    def __init__(self, jaxpr: Any, structure: Any, key: Hashable):
        self._jaxpr = jaxpr
        self._structure = structure
        self._key = key
        self._hash = hash(key)

    def __call__(self, consts: Any, *args: Any) -> Any:
        """What the function returns for `args`, closing over `consts`."""
        outputs = eval_jaxpr(self._jaxpr, consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(self._structure, outputs)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Program)
            and self._hash == other._hash
            and self._key == other._key
        )

    def __hash__(self) -> int:
        return self._hash


class Opaque(NamedTuple):
    """A function compared by identity, called like a `Program`."""

    function: Callable[..., Any]

    def __call__(self, consts: Any, *args: Any) -> Any:
        """What the function returns for `args`."""
        del consts  # The function holds its own.
        return self.function(*args)


class Traced(NamedTuple):
    """What `as_program` returns.

    Attributes:
      program: static and hashable, called as `program(consts, *args)`.
      consts: arrays that the function closes over, to be passed as arguments.
      shapes: of what it returns, as `jax.eval_shape` gives them.
    """

    program: Program | Opaque
    consts: tuple[Any, ...]
    shapes: Any


def as_program(function: Callable[..., Any], *args: Any) -> Traced:
    """Trace `function` on arrays or their shapes, computing nothing.

    Where the trace holds functions of its own (custom derivatives, callbacks), which
    cannot be compared, the function is left as it is and compared by identity.

    >>> def scale(factor):
    ...     return as_program(lambda x: factor * x, np.ones(2)).program
    >>> scale(2.0) == scale(2.0), scale(2.0) == scale(3.0)
    (True, False)
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
        return Traced(Program(jaxpr, structure, key), consts, shapes)
    except _NotComparableError:
        return Traced(Opaque(function), (), shapes)


class _NotComparableError(Exception):
    pass


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

    inputs = tuple(name(v) for v in (*jaxpr.constvars, *jaxpr.invars))
    equations = tuple(
        (
            eqn.primitive,
            tuple(atom(v) for v in eqn.invars),
            tuple(name(v) for v in eqn.outvars),
            _static_key(eqn.params),
            # Where to compute and which generator of random bits.
            repr(eqn.ctx),
        )
        for eqn in jaxpr.eqns
    )
    return inputs, equations, tuple(atom(v) for v in jaxpr.outvars)


def _static_key(value: Any) -> Hashable:
    """A parameter of an equation; types tell `1`, `1.0` and `True` apart."""
    if hasattr(value, "eqns"):
        return "jaxpr", _jaxpr_key(value), _static_key(getattr(value, "consts", ()))
    if hasattr(value, "jaxpr") and hasattr(value, "consts"):
        return "closed", _jaxpr_key(value.jaxpr), _static_key(value.consts)
    if isinstance(value, tuple | list):
        return type(value), tuple(_static_key(v) for v in value)
    if isinstance(value, dict):
        return dict, tuple((k, _static_key(v)) for k, v in sorted(value.items()))
    if isinstance(value, float):
        # Tells 0.0 from -0.0, and equals itself where it is not a number.
        return float, value.hex()
    if hasattr(value, "shape") and hasattr(value, "__array__"):
        return _array_key(value)
    # Functions compared by identity, which a trace may make anew. (Of a mesh there is
    # only ever one like it, and it is callable because it decorates.)
    by_identity = callable(value) and type(value).__eq__ is object.__eq__
    if by_identity and not isinstance(value, jax.sharding.Mesh):
        raise _NotComparableError
    if hasattr(value, "call_wrapped"):
        raise _NotComparableError
    try:
        hash(value)
    except TypeError:
        raise _NotComparableError from None
    return type(value), value


def _array_key(value: Any) -> Hashable:
    try:
        array = np.asarray(value)
    except TypeError:  # Random keys.
        raise _NotComparableError from None
    return array.dtype, array.shape, array.tobytes()
