"""Convolutions: where a kernel meets its input, and that input's second moment."""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxunlearn.layout import Layout, View

_HIGHEST = lax.Precision.HIGHEST
# Below this many columns a matrix product costs about the same; it steers only the
# choice between two exact ways to the same gram.
_NARROW = 24


@dataclasses.dataclass(frozen=True)
class Convolution:
    """`conv_general_dilated` of an input and a leaf.

    Attributes:
      image_axes: the input's axes as (batch, *spatial, channels).
      kernel_axes: the leaf's axes as (*spatial, in, out).
      sizes, channels: the input's spatial shape and channels.
      batch: how many images one operand holds (one, as the program is traced).
      taps: the kernel's spatial shape.
      stride, padding, dilation, kernel_dilation: per spatial axis; `dilation` is the
        input's.
      groups: feature groups.
    """

    image_axes: tuple[int, ...]
    kernel_axes: tuple[int, ...]
    batch: int
    sizes: tuple[int, ...]
    channels: int
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int

    @classmethod
    def read(cls, params, shapes) -> "Convolution":
        """From the equation's parameters and its operands' shapes."""
        numbers = params["dimension_numbers"]
        batch, channels, *spatial = numbers.lhs_spec
        out, into, *taps = numbers.rhs_spec
        return cls(
            image_axes=(batch, *spatial, channels),
            kernel_axes=(*taps, into, out),
            batch=shapes[0][batch],
            sizes=tuple(shapes[0][axis] for axis in spatial),
            channels=shapes[0][channels],
            taps=tuple(shapes[1][axis] for axis in taps),
            stride=tuple(params["window_strides"]),
            padding=tuple((int(lo), int(hi)) for lo, hi in params["padding"]),
            dilation=tuple(params["lhs_dilation"]),
            kernel_dilation=tuple(params["rhs_dilation"]),
            groups=params["feature_group_count"],
        )

    def layout(self, view: View) -> Layout:
        """How the leaf is read as `[g, d, o]`, `d` running over taps, then channels."""
        *inputs, out = self.kernel_axes
        return view.layout("conv", (), tuple(inputs), (out,), splits=self.groups)

    @property
    def data_sizes(self) -> tuple[int, ...]:
        """Spatial shape after input dilation and after cropping (negative padding)."""
        return tuple(
            (size - 1) * dilation + 1 + min(lo, 0) + min(hi, 0)
            for size, dilation, (lo, hi) in zip(
                self.sizes, self.dilation, self.padding, strict=True
            )
        )

    @property
    def out_sizes(self) -> tuple[int, ...]:
        """Spatial shape of the outputs."""
        return tuple(
            max(0, (size + max(lo, 0) + max(hi, 0) - (k - 1) * r - 1) // s + 1)
            for size, (lo, hi), k, r, s in zip(
                self.data_sizes,
                self.padding,
                self.taps,
                self.kernel_dilation,
                self.stride,
                strict=True,
            )
        )

    @property
    def count(self) -> int:
        """Rows that one operand brings to each group."""
        return self.batch * math.prod(self.out_sizes)

    def rows(self, x: Float[Array, "m ..."]) -> Float[Array, "g n d"]:
        """Every patch, written out."""
        views = self._strips(self._padded(x), range(len(self.taps)))
        # [taps][m, *out, g, c] -> [g, m * out, taps * c]
        patches = jnp.stack(views, axis=-2)
        patches = jnp.moveaxis(patches, -3, 0)
        return patches.reshape(self.groups, -1, math.prod(self.taps) * self._width)

    def gram(self, x: Float[Array, "m ..."]) -> Float[Array, "g d d"]:
        """`sum(x xT)` over patches, which are never written out as a whole."""
        if math.prod(self.out_sizes) == 0:
            size = math.prod(self.taps) * self._width
            return jnp.zeros((self.groups, size, size), widened(x).dtype)
        if set(self.stride) == {1} and self._offset_cost() < self._strip_cost():
            return self._gram_by_offsets(self._data(x))
        # A few images at a time: the views of all of them would be larger than the
        # patches of a narrow layer.
        parts = next(n for n in (8, 5, 4, 3, 2, 1) if x.shape[0] % n == 0)
        x = x.reshape(parts, -1, *x.shape[1:])
        return lax.map(lambda part: self._gram_by_strips(self._padded(part)), x).sum(0)

    @property
    def _width(self) -> int:
        return self.channels // self.groups

    def _data(self, x):
        """`[m, *spatial, g, c]`, dilated and cropped, not yet padded."""
        lead = x.ndim - len(self.image_axes)
        x = x.transpose(*range(lead), *(lead + a for a in self.image_axes))
        x = widened(x).reshape(-1, *x.shape[lead + 1 :])
        edges = [(min(lo, 0), min(hi, 0)) for lo, hi in self.padding]
        x = _pad(x, edges, self.dilation)
        return x.reshape(*x.shape[:-1], self.groups, self._width)

    def _padded(self, x):
        edges = [(max(lo, 0), max(hi, 0)) for lo, hi in self.padding]
        return _pad(self._data(x), edges, (1,) * len(edges))

    def _strips(self, x, axes):
        """Views of the padded input, one for each tap along these spatial axes."""
        views = []
        for tap in itertools.product(*(range(self.taps[axis]) for axis in axes)):
            view = x
            for axis, t in zip(axes, tap, strict=True):
                start = t * self.kernel_dilation[axis]
                stop = start + (self.out_sizes[axis] - 1) * self.stride[axis] + 1
                view = lax.slice_in_dim(
                    view, start, stop, self.stride[axis], axis=axis + 1
                )
            views.append(view)
        return views

    def _gram_by_strips(self, x):
        """Products of views shifted along all axes but the last.

        Taps along the last axis are written out (k-fold); pairs of the others are
        multiplied once, the lower half being the upper one transposed.
        """
        *outer, last = range(len(self.taps))
        across = jnp.stack(self._strips(x, [last]), axis=-2)
        across = across.reshape(*across.shape[:-2], -1)
        views = self._strips(across, outer)
        count = len(views)
        blocks = [[None] * count for _ in range(count)]
        for i, j in itertools.combinations_with_replacement(range(count), 2):
            block = _contract(views[i], views[j], ())
            blocks[i][j], blocks[j][i] = block, block.swapaxes(1, 2)
        return jnp.block(blocks)

    def _gram_by_offsets(self, x):
        """For stride one: a block depends on the offset of its two taps, up to borders.

        With `x` zero outside, `F(q) = sum_p x[p] x[p + q]T` over all positions serves
        every pair of taps `t2 - t1 = q`. What tap `t1` never visits is taken away by
        inclusion and exclusion over the few border lines along each axis; an axis that
        is hardly more than border keeps its positions apart and adds what is visited.
        """
        taps, dims = self.taps, len(self.taps)
        terms = list(itertools.product(*(self._terms(axis) for axis in range(dims))))
        offsets = [
            q
            for q in itertools.product(*(range(1 - k, k) for k in taps))
            if q >= (0,) * dims
        ]
        reach = [(k - 1) * r for k, r in zip(taps, self.kernel_dilation, strict=True)]
        padded = _pad(x, [(n, n) for n in reach], (1,) * dims)
        starts = np.array(offsets) * self.kernel_dilation + reach

        def blocks_at(start):
            # Indices of one type, whether or not 64-bit integers are on.
            zero = jnp.zeros((), start.dtype)
            shifted = lax.dynamic_slice(padded, (zero, *start, zero, zero), x.shape)
            blocks = sum(_lines(x, shifted, term) for term in terms)
            return jnp.broadcast_to(blocks, (*taps, *blocks.shape[-3:]))

        blocks = lax.map(blocks_at, jnp.asarray(starts, jnp.int32))
        return self._assemble(blocks, offsets)

    def _terms(self, axis) -> list["tuple[np.ndarray, np.ndarray] | None"]:
        """What to add up along an axis: all positions (None), or lines with weights.

        Lines come with a matrix `[taps, lines]` that says which tap counts which.
        """
        positions = np.arange(self.data_sizes[axis])
        first = np.arange(self.taps[axis]) * self.kernel_dilation[axis]
        first = first[:, None] - max(self.padding[axis][0], 0)
        visited = (positions >= first) & (positions < first + self.out_sizes[axis])
        border = np.flatnonzero(~visited.all(axis=0))
        if 2 * len(border) >= len(positions):
            return [(positions, visited.astype(np.float32))]
        if len(border) == 0:
            return [None]
        return [None, (border, visited[:, border] - np.float32(1))]

    def _assemble(self, blocks, offsets):
        """`[q, *taps, g, c, c]` to `[g, d, d]`: each pair of taps finds its block."""
        every = list(itertools.product(*map(range, self.taps)))
        number = {q: i for i, q in enumerate(offsets)}
        index = np.empty((len(every), len(every)), np.int32)
        for (i, a), (j, b) in itertools.product(enumerate(every), repeat=2):
            q = tuple(v - u for u, v in zip(a, b, strict=True))
            if q in number:
                index[i, j] = number[q] * len(every) + i
            else:
                index[i, j] = number[tuple(-n for n in q)] * len(every) + j
        lower = np.arange(len(every))[:, None] > np.arange(len(every))[None]
        blocks = blocks.reshape(-1, *blocks.shape[-3:])[index]
        blocks = jnp.where(
            lower[..., None, None, None], blocks.swapaxes(-1, -2), blocks
        )
        size = len(every) * self._width
        return blocks.transpose(2, 0, 3, 1, 4).reshape(self.groups, size, size)

    def _offset_cost(self) -> float:
        pairs = (math.prod(2 * k - 1 for k in self.taps) + 1) / 2
        lines = [
            sum(size if term is None else len(term[0]) for term in self._terms(axis))
            for axis, size in enumerate(self.data_sizes)
        ]
        return pairs * math.prod(lines) * max(self._width, _NARROW) ** 2

    def _strip_cost(self) -> float:
        outer = math.prod(self.taps[:-1])
        width = max(self.taps[-1] * self._width, _NARROW)
        return outer * (outer + 1) / 2 * math.prod(self.out_sizes) * width**2


def _lines(x, shifted, term):
    """Products along one term's lines, weighted by tap: `[*taps or 1, g, c, c]`."""
    kept = [axis for axis, lines in enumerate(term) if lines is not None]
    for axis in kept:
        x = jnp.take(x, term[axis][0], axis=axis + 1)
        shifted = jnp.take(shifted, term[axis][0], axis=axis + 1)
    sums = _contract(x, shifted, kept)
    for axis in kept:
        # The leading axis of lines becomes one of taps, behind those still to come.
        weights = term[axis][1].astype(sums.dtype)
        sums = jnp.tensordot(weights, sums, (1, 0), precision=_HIGHEST)
        sums = jnp.moveaxis(sums, 0, len(kept) - 1)
    sizes = [1 if lines is None else len(lines[1]) for lines in term]
    return sums.reshape(*sizes, *sums.shape[-3:])


def _contract(x, y, kept):
    """`sum x yT` over images and space, some spatial axes kept: `[*kept, g, c, e]`."""
    if x.shape[-2] == 1 and not kept:
        # A plain matrix product: the batched form makes XLA transpose its operands.
        x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
        return jnp.matmul(x.T, y, precision=_HIGHEST)[None]
    letters = "xyz"[: x.ndim - 3]
    lines = "".join(letters[axis] for axis in kept)
    product = f"m{letters}gc,m{letters}ge->{lines}gce"
    return jnp.einsum(product, x, y, precision=_HIGHEST)


def _pad(x, edges, dilation):
    """Pad `[m, *spatial, ...]` with zeros, or crop, and dilate its spatial axes."""
    config = [(lo, hi, d - 1) for (lo, hi), d in zip(edges, dilation, strict=True)]
    if all(entry == (0, 0, 0) for entry in config):
        return x
    rest = [(0, 0, 0)] * (x.ndim - 1 - len(config))
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, *rest])


def widened(x: Array) -> Array:
    """In at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
