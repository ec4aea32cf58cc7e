"""Convolutions: where a kernel meets its input, and that input's second moment."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxunlearn import parallel
from jaxunlearn.capture import symmetric_blocks
from jaxunlearn.capture.layout import Layout, View
from jaxunlearn.capture.shift_products import Offsets

# A product of fewer rows is slower for its size.
_ROWS = 2048


@dataclasses.dataclass(frozen=True)
class Convolution:
    """`conv_general_dilated` of an input and a leaf."""

    image_axes: tuple[int, ...]  # the input's, as (batch, *spatial, channels)
    kernel_axes: tuple[int, ...]  # the leaf's, as (*spatial, in, out)
    out_axes: tuple[int, ...]  # the product's, as (batch, *spatial, features)
    batch: int  # images in one operand (one, as the program is traced)
    sizes: tuple[int, ...]  # the input's spatial shape
    channels: int
    taps: tuple[int, ...]  # the kernel's spatial shape
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]  # the input's
    kernel_dilation: tuple[int, ...]
    groups: int  # feature groups

    @classmethod
    def refuse(cls, params, leaf_side: int) -> str:
        """See `Contraction.refuse`."""
        if leaf_side == 0 or params["batch_group_count"] != 1:
            return "it is convolved as an image or in batch groups, not as a kernel"
        return ""

    @classmethod
    def read(cls, params, leaf_side: int, shapes) -> "Convolution":
        """See `Contraction.read`."""
        numbers = params["dimension_numbers"]
        batch, channels, *spatial = numbers.lhs_spec
        out, into, *taps = numbers.rhs_spec
        out_batch, features, *places = numbers.out_spec
        return cls(
            image_axes=(batch, *spatial, channels),
            kernel_axes=(*taps, into, out),
            out_axes=(out_batch, *places, features),
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
        # [m, *out, g, taps * c] -> [g, m * out, taps * c]
        (patches,) = self._patches(self._data(x), 1)
        patches = jnp.moveaxis(patches, -2, 0)
        return patches.reshape(self.groups, -1, self.fan_in)

    def outputs(self, y: Float[Array, "m ..."]) -> Float[Array, "g n o"]:
        """See `Contraction.outputs`: a row for each position."""
        y = y.transpose(0, *(axis + 1 for axis in self.out_axes))
        width = y.shape[-1] // self.groups
        rows = widened(y).reshape(math.prod(y.shape[:-1]), self.groups, width)
        return jnp.moveaxis(rows, 1, 0)

    def sums(self, x: Float[Array, "m ..."]) -> Float[Array, "g r w w"]:
        """See `Contraction.sums`. Patches are never written out as a whole."""
        x = self._data(x)
        if math.prod(self.out_sizes) == 0:
            return self._sums_of(x)
        sums = jax.eval_shape(self._sums_of, x).size * x.dtype.itemsize
        operand = len(x) // self.batch * self._written * x.dtype.itemsize
        # Large results cost more to add up than operands to read; so do short products.
        count = operand // max(parallel.product_bytes(), 2 * sums)
        rows = len(x) // self.batch * self.count
        return _in_parts(self._sums_of, x, min(count, len(x), rows // _ROWS))

    def whole(self, sums: Float[Array, "g r w w"]) -> Float[Array, "g d d"]:
        """See `Contraction.whole`."""
        if self.by_offsets:
            taps = math.prod(self.taps)
            return symmetric_blocks.whole(sums, taps, self._offsets.shares())
        return symmetric_blocks.whole(sums, self._blocks)

    @property
    def _written(self) -> int:
        """How many numbers of one operand `sums` may write out at once."""
        if self.by_offsets:
            return self.batch * math.prod(self.data_sizes) * self.channels
        return self.count * self.fan_in * self.groups

    @property
    def fan_in(self) -> int:
        """Columns of a patch."""
        return math.prod(self.taps) * self._width

    @property
    def _width(self) -> int:
        return self.channels // self.groups

    @property
    def by_offsets(self) -> bool:
        """Whether shifted products beat patches; 3 x 3 at stride one is such a case.

        Not for few channels or taps that skip, where patches are cheap or needed. The
        costs' constants are from `benchmarks/convolution_moments.py`.
        """
        if set(self.stride) != {1} or math.prod(self.out_sizes) == 0:
            return False
        patches = symmetric_blocks.block_cost(self.fan_in, self._blocks)
        patches *= math.prod(self.out_sizes)
        return math.prod(self.taps) > 1 and self._offsets.cost(self._width) < patches

    @property
    def _offsets(self) -> Offsets:
        low = tuple(max(lo, 0) for lo, _ in self.padding)
        sizes, out = self.data_sizes, self.out_sizes
        return Offsets(sizes, self.taps, self.kernel_dilation, low, out)

    @property
    def _blocks(self) -> int:
        one = math.prod(self.taps) == 1
        return symmetric_blocks.block_count(self.fan_in, 1 if one else self._width)

    def _sums_of(self, x):
        if math.prod(self.out_sizes) == 0:
            count, width = self._blocks, self.fan_in // self._blocks
            size = (self.groups, count * (count + 1) // 2, width, width)
            return jnp.zeros(size, x.dtype)
        if self.by_offsets:
            return self._offsets.sums(x)
        return symmetric_blocks.upper_blocks(self._patches(x, self._blocks))

    def _data(self, x):
        """`[m, *spatial, g, c]`, dilated and cropped, not yet padded."""
        lead = x.ndim - len(self.image_axes)
        x = x.transpose(*range(lead), *(lead + a for a in self.image_axes))
        x = widened(x).reshape(-1, *x.shape[lead + 1 :])
        edges = [(min(lo, 0), min(hi, 0)) for lo, hi in self.padding]
        x = _pad(x, edges, self.dilation)
        return x.reshape(*x.shape[:-1], self.groups, self._width)

    def _patches(self, x, count):
        """`[m, *out, g, d / count]`: the patches, cut into so many equal columns."""
        edges = [(max(lo, 0), max(hi, 0)) for lo, hi in self.padding]
        x = _pad(x, edges, (1,) * len(edges))
        views = []
        for tap in itertools.product(*map(range, self.taps)):
            view = x
            for axis, t in enumerate(tap):
                start = t * self.kernel_dilation[axis]
                stop = start + (self.out_sizes[axis] - 1) * self.stride[axis] + 1
                view = lax.slice_in_dim(
                    view, start, max(start, stop), self.stride[axis], axis=axis + 1
                )
            views.append(view)
        if len(views) == 1:
            return jnp.split(views[0], count, axis=-1)
        each = len(views) // count
        groups = [views[i : i + each] for i in range(0, len(views), each)]
        return [jnp.concatenate(group, axis=-1) for group in groups]


def _in_parts(function, x, count):
    """The sum of `function` over some images at a time, in about `count` parts.

    An operand that stays in a CPU's caches is read many times for the price of one:
    13 products of 64 images of 32 x 32 x 48 take 35 ms by 1 MB and 59 ms in one go.
    """
    if count < 2:
        return function(x)
    # Equal parts where that takes few less, else images of zeros, which add nothing.
    count = max(
        (n for n in range(-(-count // 2), count + 1) if x.shape[0] % n == 0),
        default=count,
    )
    each = -(-x.shape[0] // count)
    missing = -x.shape[0] % each
    if missing:
        x = jnp.concatenate([x, jnp.zeros((missing, *x.shape[1:]), x.dtype)])
    return lax.map(function, x.reshape(-1, each, *x.shape[1:])).sum(0)


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
