"""How fast this machine is at what a plan counts, by a few short measurements."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.capture.jaxprs import bind
from jaxunlearn.nullspace import linalg
from jaxunlearn.planning.costs import Cost, Product, product_flops

# A product is cut along its batch until it is no larger than this.
_LARGEST = 1e9
_REPEATS = 3
_PASSES = 4
_DECOMPOSITIONS = (64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
      products: seconds for each floating-point operation, by a product's signature.
      bandwidth: bytes read and written in a second, elementwise.
      decompositions: seconds of `eigh` in float64, by fan-in.
    """

    products: Mapping[str, float]
    bandwidth: float
    decompositions: Mapping[int, float]

    def seconds(self, cost: Cost) -> float:
        """Of one run of a program, whose products have been measured."""
        times = (p.flops * p.times * self.products[p.signature] for p in cost.products)
        return sum(times) + cost.moved / self.bandwidth

    def decomposition(self, d: int) -> float:
        """Seconds of one `eigh`, between those measured by a power of `d`, or beyond.

        >>> Rates({}, 1.0, {64: 1.0, 128: 8.0}).decomposition(256)
        64.0
        """
        sizes = sorted(self.decompositions)
        right = next((n for n, size in enumerate(sizes) if size >= d), len(sizes) - 1)
        one, other = sizes[max(right - 1, 0)], sizes[max(right, 1)]
        first, second = (self.decompositions[size] for size in (one, other))
        power = math.log(second / first) / math.log(other / one)
        return second * (d / other) ** (min(power, 3) if d > other else power)


def measure(costs: Iterable[Cost]) -> Rates:
    """Run every different product of these programs once for itself, on ones.

    Products that are large are measured with fewer images, or rows, as the time of each
    operation hardly depends on how many there are. Takes about a second for every four
    different products, most of it to compile them.
    """
    idle = _seconds(jax.jit(lambda x: x + 1), jnp.ones(1))
    different = {p.signature: p for cost in costs for p in cost.products}
    products = {name: _per_flop(p, idle) for name, p in different.items()}
    many = jnp.ones(2**24, jnp.float32)
    bandwidth = _PASSES * 2 * many.nbytes / _seconds(_pass_over, many)
    rng = np.random.default_rng(0)
    eigh = {}
    for d in _DECOMPOSITIONS:
        rows = rng.normal(size=(2 * d, d))
        eigh[d] = _seconds(linalg.eigenpairs, rows.T @ rows)
    return Rates(products, bandwidth, eigh)


@jax.jit
def _pass_over(x):
    # In a loop, as memory that a program uses again is not asked of the system again.
    return jax.lax.fori_loop(0, _PASSES, lambda _, x: x + 1, x)


def _per_flop(product: Product, idle: float) -> float:
    equation = product.equation
    shapes = _cut(equation, product.flops / _LARGEST)
    dtypes = [v.aval.dtype for v in equation.invars]
    operands = [jnp.ones(s, t) for s, t in zip(shapes, dtypes, strict=True)]

    def run(*operands):
        return bind(equation, operands)[0]

    seconds = _seconds(jax.jit(run), *operands)
    # What it takes to start any program is not part of a product in a larger one.
    return max(seconds - idle, 0.05 * seconds) / product_flops(equation, *shapes)


def _cut(equation: Any, times: float) -> list[tuple[int, ...]]:
    """The operands' shapes, one axis of them shorter by about so many times."""
    shapes = [list(v.aval.shape) for v in equation.invars]
    axes = [a for a in _free_axes(equation) if shapes[a[0][0]][a[0][1]] > 1]
    if times > 1 and axes:
        longest = max(axes, key=lambda axis: shapes[axis[0][0]][axis[0][1]])
        for operand, axis in longest:
            # Enough for all lanes of a processor.
            size = shapes[operand][axis]
            shapes[operand][axis] = max(math.ceil(size / times), min(size, 8))
    return [tuple(shape) for shape in shapes]


def _free_axes(equation: Any) -> list[list[tuple[int, int]]]:
    """Axes, as (operand, axis), that may be cut with no other parameter changed."""
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        contracted, batched = numbers
        axes = [[(0, a), (1, b)] for a, b in zip(*contracted, strict=True)]
        axes += [[(0, a), (1, b)] for a, b in zip(*batched, strict=True)]
        for operand, variable in enumerate(equation.invars):
            used = {*contracted[operand], *batched[operand]}
            free = set(range(variable.aval.ndim)) - used
            axes += [[(operand, a)] for a in sorted(free)]
        return axes
    if equation.params["batch_group_count"] > 1:
        return []
    # The images; in a gradient for the kernel, they are what is summed over.
    images = [[(0, numbers.lhs_spec[0])]]
    if equation.params["feature_group_count"] == 1:
        images.append([(0, numbers.lhs_spec[1]), (1, numbers.rhs_spec[1])])
    return images


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """The fastest of a few runs after a first one: what disturbs only slows down."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - begun)
    return min(times)
