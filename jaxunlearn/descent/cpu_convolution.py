"""Gradients of convolution kernels as products over a few images at a time.

On a CPU, XLA takes them over the whole minibatch at once, outside of all caches. Cut
into pieces that stay in a cache, and written as matrix products, they take as long for
small minibatches and down to a tenth of the time for large ones
(`benchmarks/convolution_formulations.py`). For the convolution itself, and for its
gradient with respect to the input, pieces gain with jax 0.10 and lose with 0.12.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunlearn import parallel
from jaxunlearn.capture.jaxprs import evaluate, open_jaxpr

# In units of `parallel.product_bytes`: what of an operand one product reads, and up to
# how much XLA's own gradient is as fast.
_PIECE, _WHOLE = 0.8, 4
# Channels up to which the taps of a kernel are multiplied all at once.
_NARROW = 16
_LAYOUT = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


@dataclasses.dataclass(frozen=True)
class PiecewiseConvolution:
    """A convolution of `[n, h, w, c]` with `[k, l, c, o]`, XLA's but for one gradient.

    To be differentiated in reverse only.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int] = (1, 1)  # from tap to tap of the kernel
    precision: Any = None

    @classmethod
    def read(cls, eqn) -> "PiecewiseConvolution | None":
        """Of an equation, or None where it is a convolution of another kind."""
        params, (x, kernel) = eqn.params, (v.aval for v in eqn.invars)
        numbers = params["dimension_numbers"]
        layout = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
        plain = (
            layout == _LAYOUT
            and params["feature_group_count"] == params["batch_group_count"] == 1
            and set(params["lhs_dilation"]) == {1}
            and min(itertools.chain(*params["padding"])) >= 0
            and x.dtype == kernel.dtype == eqn.outvars[0].aval.dtype
            and x.dtype in (jnp.float32, jnp.float64)
        )
        if not plain:
            return None
        return cls(
            tuple(params["window_strides"]),
            tuple(map(tuple, params["padding"])),
            tuple(params["rhs_dilation"]),
            params["precision"],
        )

    def __call__(self, x, kernel):
        """`[n, p, q, o]`."""

        @jax.custom_vjp
        def convolution(*operands):
            return self.whole(*operands)

        def backward(operands, g):
            x, kernel = operands
            (d_x,) = jax.linear_transpose(lambda x: self.whole(x, kernel), x)(g)
            return d_x, self.kernel_gradient(x, g, kernel)

        convolution.defvjp(lambda *given: (self.whole(*given), given), backward)
        return convolution(x, kernel)

    def whole(self, x, kernel):
        """XLA's own."""
        return lax.conv_general_dilated(
            *(x, kernel, self.strides, self.padding),
            rhs_dilation=self.dilation,
            dimension_numbers=lax.ConvDimensionNumbers(*_LAYOUT),
            precision=self.precision,
        )

    def kernel_gradient(self, x, g, kernel):
        """A product for each tap, summed over pieces of a few images.

        `g` is the gradient with respect to the outputs; of the kernel the shape counts.
        """
        # The larger one of the two operands of each product.
        each = math.prod(g.shape[1:3]) * max(kernel.shape[2:]) * g.dtype.itemsize
        unit = parallel.product_bytes()
        if len(x) * each <= _WHOLE * unit:
            return jax.linear_transpose(lambda k: self.whole(x, k), kernel)(g)[0]

        def met(tap, axis):
            """Where one tap of the kernel lies on a padded map."""
            first, stride = tap * self.dilation[axis], self.strides[axis]
            return slice(first, first + (g.shape[1 + axis] - 1) * stride + 1, stride)

        def piece(x, g):
            x = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
            rows = [x[:, met(k, 0), met(l, 1)] for k, l in np.ndindex(kernel.shape[:2])]
            if x.shape[3] < _NARROW:
                rows = [jnp.concatenate(rows, axis=-1)]
            columns = g.reshape(-1, g.shape[3])
            rows = [x.reshape(-1, x.shape[3]).T for x in rows]
            products = [jnp.matmul(r, columns, precision=self.precision) for r in rows]
            return jnp.stack(products).reshape(kernel.shape)

        whole, rest = _cut((x, g), max(1, int(_PIECE * unit / each)))
        start = jnp.zeros_like(kernel)
        total, _ = lax.scan(lambda t, xg: (t + piece(*xg), None), start, whole)
        return total if rest is None else total + piece(*rest)


def _cut(arrays, most):
    """Arrays as whole pieces of at most so many images, and what is left, or None."""
    count = len(arrays[0])
    # Evenly, where that is possible with at least half as many.
    fitting = (size for size in range(most, most // 2, -1) if count % size == 0)
    size = next(fitting, most)
    pieces, rest = divmod(count, size)
    whole = tuple(x[: count - rest].reshape(pieces, size, *x.shape[1:]) for x in arrays)
    return whole, tuple(x[-rest:] for x in arrays) if rest else None


def in_pieces(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose kernels' gradients are taken piece by piece on a CPU.

    Only reverse differentiation takes another way than before; it gives the same but
    for rounding. Convolutions inside loops, branches and functions with derivatives of
    their own stay as they are. Elsewhere than on a CPU this is `function` itself.
    """
    if not parallel.loops_are_slow():
        return function

    @functools.wraps(function)
    def run(*args):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = evaluate(*open_jaxpr(closed), jax.tree.leaves(args), _replaced)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


def _replaced(eqn) -> PiecewiseConvolution | None:
    name = eqn.primitive.name
    return PiecewiseConvolution.read(eqn) if name == "conv_general_dilated" else None
