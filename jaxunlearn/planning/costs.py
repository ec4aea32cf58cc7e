"""What a program will cost, read off its jaxpr: products, bytes moved, bytes held.

Nothing is computed or compiled; arguments may be shapes.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxunlearn.capture.jaxprs import evaluate, open_jaxpr

# XLA computes these where their result is read, instead of writing it down.
_ELEMENTWISE = {
    *("abs", "add", "add_any", "and", "broadcast_in_dim", "ceil", "clamp"),
    *("convert_element_type", "copy", "copy_p", "cos", "div", "eq", "erf", "erfc"),
    *("exp", "exp2", "expand_dims", "floor", "ge", "gt", "integer_pow", "iota"),
    *("is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul"),
    *("ne", "neg"),
    *("not", "or", "pow", "reduce_precision", "rem", "reshape", "rev", "round"),
    *("rsqrt", "select_n", "sign", "sin", "slice", "sqrt", "square", "squeeze"),
    *("stop_gradient", "sub", "tanh", "transpose", "xor"),
}

# And these wherever it is read.
_FREE = {
    *("broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "iota"),
    *("reshape", "rev", "slice", "squeeze", "stop_gradient", "transpose", "eq", "ge"),
    *("gt", "le", "lt", "ne", "and", "or", "not"),
}

_PARTIAL = frozenset(("dynamic_slice", "dynamic_update_slice", "gather"))


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A matrix product or convolution of a program.

    Attributes:
      equation: of the jaxpr.
      flops: floating-point operations of one execution.
      times: how often it is executed.
    """

    equation: Any
    flops: float
    times: int

    @property
    def signature(self) -> str:
        """Equal for products that are the same program."""
        equation = self.equation
        shapes = [v.aval.str_short() for v in equation.invars]
        params = sorted((name, str(v)) for name, v in equation.params.items())
        return f"{equation.primitive.name} {shapes} {params}"


@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
    """The cost of a program.

    Attributes:
      products: its matrix products and convolutions, in order.
      moved: bytes that everything else reads and writes.
      held: bytes of intermediate results that are needed at the same time, at most.
    """

    products: tuple[Product, ...]
    moved: float
    held: float

    @property
    def flops(self) -> float:
        """Of all products."""
        return float(sum(p.flops * p.times for p in self.products))


def program_cost(function: Callable[..., Any], *arguments: Any) -> Cost:
    """The cost of `function(*arguments)`.

    A product of `[m, k]` and `[k, n]` counts `2 m k n`, a convolution 2 for each weight
    that meets a number of an image, padding included. Loops count as often as they
    turn, of several branches the dearest.

    Memory: results are held from where they are written to where they are last read.
    Elementwise results, and reshaped ones, are not written but computed by what reads
    them, as XLA fuses them; a guess where several do.

    Args:
      function: traceable.
      *arguments: arrays, or `jax.ShapeDtypeStruct`s.

    >>> x = jax.ShapeDtypeStruct((4, 8), np.float32)
    >>> cost = program_cost(lambda x: (x @ x.T) @ (x + 1), x)
    >>> cost.flops, cost.held
    (512.0, 64)
    """
    jaxpr, consts = open_jaxpr(jax.make_jaxpr(function)(*arguments))

    def without_calls(*leaves):
        return evaluate(jaxpr, consts, leaves, lambda equation: None)

    # What is called through `jit` is compiled as if it stood there.
    flat = jax.make_jaxpr(without_calls)(*jax.tree.leaves(arguments))
    walk = _Walk(open_jaxpr(flat)[0])
    return Cost(tuple(walk.products), walk.moved, walk.held)


class _Walk:
    """One jaxpr from its first equation to its last.

    Attributes:
      products, moved: as in `Cost`.
      held: likewise, arguments and results of the jaxpr left out.
    """

    def __init__(self, jaxpr: Any):
        self.products: list[Product] = []
        self.moved = 0.0
        self.held = 0.0
        equations, outvars = _live(jaxpr), set(map(id, _variables(jaxpr.outvars)))
        # Of each variable the written results that it is computed from.
        sources: dict[int, frozenset[int]] = {}
        written: dict[int, tuple[int, float]] = {}
        ends: dict[int, int] = {}
        inner: list[float] = []
        readers = collections.Counter(
            id(v) for equation in equations for v in set(_variables(equation.invars))
        )
        for place, equation in enumerate(equations):
            read = frozenset[int]().union(
                *(sources.get(id(v), frozenset()) for v in _variables(equation.invars))
            )
            ends.update(dict.fromkeys(read, place))
            inner.append(self._visit(equation))
            fused = equation.primitive.name in _ELEMENTWISE
            self.moved += _moved(equation, fused, readers)
            for variable in equation.outvars:
                virtual = fused and (
                    readers[id(variable)] < 2 or equation.primitive.name in _FREE
                )
                sources[id(variable)] = read
                if id(variable) in outvars:
                    sources[id(variable)] = frozenset()
                elif not virtual:
                    sources[id(variable)] = frozenset([id(variable)])
                    written[id(variable)] = (place, _bytes(variable))
                    ends[id(variable)] = place
        self.held = _peak(written, ends, inner)

    def _visit(self, equation) -> float:
        """Count an equation; bytes held inside of it."""
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            shapes = [v.aval.shape for v in equation.invars]
            self.products.append(Product(equation, product_flops(equation, *shapes), 1))
            return 0.0
        bodies = list(_bodies(params))
        if not bodies:
            return 0.0
        times = int(params["length"]) if name == "scan" else 1
        walks = [_Walk(body) for body in bodies]
        # Of a choice only one side is executed; a loop has a condition and a body.
        if name == "cond":
            walks = [max(walks, key=lambda w: sum(p.flops for p in w.products))]
        for walk in walks:
            self.moved += times * walk.moved
            self.products += [
                dataclasses.replace(p, times=times * p.times) for p in walk.products
            ]
        return max(walk.held for walk in walks)


def _moved(equation, fused: bool, readers) -> float:
    """Bytes that an equation reads and writes, if it does so by itself."""
    name = equation.primitive.name
    if name in ("dot_general", "conv_general_dilated") or any(_bodies(equation.params)):
        return 0.0
    if fused and (name in _FREE or all(readers[id(v)] < 2 for v in equation.outvars)):
        return 0.0
    if name in _PARTIAL:
        # Of a large operand they touch no more than what they take or put.
        taken = 1 if name == "dynamic_update_slice" else 0
        part = (*equation.outvars, *equation.invars)[taken * 2]
        return 2.0 * sum(map(_bytes, _variables((part,))))
    return sum(map(_bytes, _variables((*equation.invars, *equation.outvars))))


def _live(jaxpr) -> list[Any]:
    """The equations whose results are used."""
    wanted, found = set(map(id, _variables(jaxpr.outvars))), []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(v) in wanted for v in equation.outvars):
            wanted.update(map(id, _variables(equation.invars)))
            found.append(equation)
    return found[::-1]


def _peak(written, ends, inner) -> float:
    """The largest sum of bytes of results that live at one equation."""
    change = np.zeros(len(inner) + 1)
    for variable, (place, size) in written.items():
        change[place] += size
        change[ends[variable] + 1] -= size
    if not inner:
        return 0
    return int(max(np.cumsum(change)[:-1] + np.asarray(inner)))


def _bodies(params) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr, _ = open_jaxpr(item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _variables(atoms) -> list[Any]:
    """Without literals."""
    return [atom for atom in atoms if not hasattr(atom, "val")]


def _bytes(variable) -> float:
    aval = variable.aval
    shape = getattr(aval, "shape", ())
    return math.prod(shape) * getattr(aval.dtype, "itemsize", 4)


def product_flops(
    equation: Any, left: tuple[int, ...], right: tuple[int, ...]
) -> float:
    """Operations of a product of an equation's kind, for operands of these shapes."""
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        (_, contracted), (_, batched) = numbers
        used = {*contracted, *batched}
        others = [n for axis, n in enumerate(right) if axis not in used]
        return 2.0 * math.prod(left) * math.prod(others)
    pixels = [equation.outvars[0].aval.shape[a] for a in numbers.out_spec[2:]]
    images = left[numbers.lhs_spec[0]] / equation.params["batch_group_count"]
    # Zeros between the pixels, as a gradient of strides has them, are not multiplied.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2.0 * images * math.prod(pixels) * math.prod(right) / zeros
