"""Patches' second moment at stride one: a block depends on the offset of its two taps.

With `x` zero outside, `F(q) = sum_p x[p] x[p + q]T` over all positions `p` serves every
pair of taps `t2 - t1 = q`. What tap `t1` never visits is taken away by inclusion and
exclusion over the few lines along each axis: the lines of one axis, of the other, and
what both have in common back again. For a 3 x 3 kernel with as many outputs as inputs
these are 13 products over all positions and 16 over single lines, instead of 81.
"""

import dataclasses
import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxunlearn.capture.symmetric_blocks import NARROW, contract

# What a product costs for each position besides, in multiplications: 3 columns take 6
# ns a position where 48 take 50.
_POSITION = 400
# Maps of which the overlaps with their own shifts are a smaller share than this are
# multiplied overlap by overlap: 4 x 4 by 3 x 3 is (24 ms instead of 45 for 64 images of
# 512 channels on two cores), 8 x 8 is not.
_OVERLAP = 0.6


@dataclasses.dataclass(frozen=True)
class Offsets:
    """The products that make up the gram of a convolution of stride one."""

    # All per spatial axis.
    sizes: tuple[int, ...]  # the input's
    taps: tuple[int, ...]
    steps: tuple[int, ...]  # from tap to tap
    low: tuple[int, ...]  # zeros before the input
    out: tuple[int, ...]  # the outputs' sizes

    @functools.cached_property
    def offsets(self) -> list[tuple[int, ...]]:
        """Half of them: those that are not negative, the first axis deciding."""
        every = itertools.product(*(range(1 - k, k) for k in self.taps))
        return [q for q in every if q >= (0,) * len(self.taps)]

    @functools.cached_property
    def terms(self) -> list[tuple[tuple[int, ...], list[tuple]]]:
        """For all subsets of axes: `(axes, [(offset, a line along each of these)])`."""
        axes = range(len(self.taps))
        subsets = itertools.chain.from_iterable(
            itertools.combinations(axes, n) for n in range(len(axes) + 1)
        )
        return [
            (
                subset,
                [
                    (q, lines)
                    for q in self.offsets
                    for lines in itertools.product(
                        *(self._lines(axis, q[axis]) for axis in subset)
                    )
                ],
            )
            for subset in subsets
        ]

    def sums(self, x: Float[Array, "m *space g c"]) -> Float[Array, "g r c c"]:
        """All terms' products, summed over images."""
        reach = [(k - 1) * step for k, step in zip(self.taps, self.steps, strict=True)]
        # No offset points backwards along the first axis.
        edges = [(n if axis else 0, n, 0) for axis, n in enumerate(reach)]
        padded = lax.pad(
            x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0), (0, 0, 0)]
        )
        origin = np.array([low for low, _, _ in edges], np.int32)
        parts = []
        for axes, items in self.terms:
            if not axes and self._overlap < _OVERLAP:
                parts += [self._overlapping(x, q)[None] for q, _ in items]
            elif items:
                parts.append(self._products(x, padded, origin, axes, items))
        return jnp.concatenate(parts).swapaxes(0, 1)

    def shares(self) -> Float[np.ndarray, "p r"]:
        """With which sign each product counts in each pair of taps `t1 <= t2`."""
        every = list(itertools.product(*map(range, self.taps)))
        pairs = list(itertools.combinations_with_replacement(every, 2))
        number = {pair: i for i, pair in enumerate(pairs)}
        products = [(axes, *item) for axes, items in self.terms for item in items]
        shares = np.zeros((len(pairs), len(products)))
        visited = [self._visited(axis) for axis in range(len(self.taps))]
        for column, (axes, q, lines) in enumerate(products):
            for tap in every:
                other = tuple(t + n for t, n in zip(tap, q, strict=True))
                row = number.get((tap, other))
                missed = not any(
                    visited[axis][tap[axis], line]
                    for axis, line in zip(axes, lines, strict=True)
                )
                if row is not None and missed:
                    shares[row, column] = (-1) ** len(axes)
        return shares

    def cost(self, width: int) -> float:
        """Multiplications that one image brings, a narrow product's counted as more."""
        positions = sum(
            len(items)
            * math.prod(size for a, size in enumerate(self.sizes) if a not in axes)
            for axes, items in self.terms
        )
        return positions * (width * (width + NARROW) + _POSITION)

    def _visited(self, axis) -> np.ndarray:
        """Which tap visits which position along an axis, `[taps, positions]`."""
        positions = np.arange(self.sizes[axis])
        first = np.arange(self.taps[axis])[:, None] * self.steps[axis] - self.low[axis]
        return (positions >= first) & (positions < first + self.out[axis])

    def _lines(self, axis, offset) -> list[int]:
        """Positions that some tap misses, and whose partner lies inside.

        Only taps that have a partner at this offset count.
        """
        taps = np.arange(self.taps[axis])
        paired = (taps + offset >= 0) & (taps + offset < self.taps[axis])
        missed = ~self._visited(axis)[paired].all(axis=0)
        partner = np.arange(self.sizes[axis]) + offset * self.steps[axis]
        inside = (partner >= 0) & (partner < self.sizes[axis])
        return np.flatnonzero(missed & inside).tolist()

    @property
    def _overlap(self) -> float:
        shares = [
            math.prod(
                max(0, 1 - abs(n) * step / size)
                for n, step, size in zip(q, self.steps, self.sizes, strict=True)
            )
            for q in self.offsets
        ]
        return sum(shares) / len(shares)

    def _overlapping(self, x, offset):
        """`F(q)` of the part of the input that meets its own shift."""
        y = x
        for axis, (n, step) in enumerate(zip(offset, self.steps, strict=True)):
            shift, size = n * step, self.sizes[axis]
            far = min(abs(shift), size)
            near, there = (0, size - far), (far, size)
            first, second = (near, there) if shift >= 0 else (there, near)
            x = lax.slice_in_dim(x, *first, axis=axis + 1)
            y = lax.slice_in_dim(y, *second, axis=axis + 1)
        return contract(x, y)

    def _products(self, x, padded, origin, axes, items):
        """Products of the input, or of lines of it, with what lies at the offsets."""
        spatial = range(len(self.taps))
        sizes = [1 if axis in axes else self.sizes[axis] for axis in spatial]
        size = (x.shape[0], *sizes, *x.shape[-2:])
        starts = np.zeros((len(items), 2, len(self.taps)), np.int32)
        for number, (q, lines) in enumerate(items):
            starts[number, 0, list(axes)] = lines
            starts[number, 1] = starts[number, 0] + np.array(q) * self.steps
        starts[:, 1] += origin

        def product(start):
            # Indices of one type, whether or not 64-bit integers are on.
            zero = jnp.zeros((), start.dtype)
            near = x
            if axes:
                near = lax.dynamic_slice(x, (zero, *start[0], zero, zero), size)
            there = lax.dynamic_slice(padded, (zero, *start[1], zero, zero), size)
            return contract(near, there)

        return lax.map(product, jnp.asarray(starts))
