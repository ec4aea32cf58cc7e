"""How a weight meets its input: a class for each primitive that contracts the two.

A new kind of layer is a class like `Contraction` and a row in `CONTRACTIONS`.
Operands come as the program holds them, with one leading axis `m` of images (and of
scan iterations). Sums over rows run at precision HIGHEST and in at least float32.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.capture import symmetric_blocks
from jaxunlearn.capture.convolution import Convolution, widened
from jaxunlearn.capture.layout import Layout, View


@runtime_checkable
class Contraction(Protocol):
    """A product of an input and a leaf, of known shapes: static and hashable.

    One of the equation's first two operands is the leaf, the other is the input.

    Attributes:
      count: rows that one operand brings to each group.
    """

    count: int

    @classmethod
    def refuse(cls, params, leaf_side: int) -> str:
        """Why a leaf as this operand has no input, or nothing if it has one."""
        ...

    @classmethod
    def read(cls, params, leaf_side: int, shapes) -> "Contraction":
        """From the equation's parameters and its operands' shapes."""
        ...

    def layout(self, view: View) -> Layout:
        """How the leaf, seen as the operand, is read as `[g, d, o]`."""
        ...

    def rows(self, x: Float[Array, "m ..."]) -> Float[Array, "g n d"]:
        """The input's rows, in at least float32."""
        ...

    def outputs(self, y: Float[Array, "m ..."]) -> Float[Array, "g n o"]:
        """The rows of what comes out, or of its gradient, in at least float32."""
        ...

    def sums(self, x: Float[Array, "m ..."]) -> Float[Array, "g r w w"]:
        """What `whole` makes `sum(x xT)` over rows of: additive over images."""
        ...

    def whole(self, sums: Float[Array, "g r w w"]) -> Float[Array, "g d d"]:
        """`sum(x xT)` over rows, of their `sums`."""
        ...


@dataclasses.dataclass(frozen=True)
class DotProduct:
    """`dot_general` of an input and a leaf."""

    # The input's axes and shape, the first two in the order of the leaf's axes.
    batch: tuple[int, ...]
    contract: tuple[int, ...]
    free: tuple[int, ...]
    leaf_batch: tuple[int, ...]
    leaf_contract: tuple[int, ...]
    leaf_free: tuple[int, ...]
    shape: tuple[int, ...]
    # The product's axes: batch axes in that order, then those that only one has.
    out_batch: tuple[int, ...]
    leaf_first: bool

    @classmethod
    def refuse(cls, params, leaf_side: int) -> str:
        """See `Contraction.refuse`: either side may be the leaf."""
        return ""

    @classmethod
    def read(cls, params, leaf_side: int, shapes) -> "DotProduct":
        """See `Contraction.read`."""
        side = 1 - leaf_side
        pairs = [
            sorted(zip(axes[leaf_side], axes[side], strict=True))
            for axes in params["dimension_numbers"]
        ]
        # Of the leaf, then of the input: contracted axes, then batch axes.
        (leaf_contract, contract), (leaf_batch, batch) = (
            tuple(zip(*axes, strict=True)) or ((), ()) for axes in pairs
        )
        shape, leaf_shape = shapes[side], shapes[leaf_side]
        return cls(
            batch=batch,
            contract=contract,
            free=_others(len(shape), batch + contract),
            leaf_batch=leaf_batch,
            leaf_contract=leaf_contract,
            leaf_free=_others(len(leaf_shape), leaf_batch + leaf_contract),
            shape=tuple(shape),
            out_batch=tuple(
                params["dimension_numbers"][1][leaf_side].index(axis)
                for axis in leaf_batch
            ),
            leaf_first=leaf_side == 0,
        )

    def layout(self, view: View) -> Layout:
        """See `Contraction.layout`."""
        kind = "einsum" if self.leaf_batch else "dense"
        return view.layout(kind, self.leaf_batch, self.leaf_contract, self.leaf_free)

    @property
    def count(self) -> int:
        """Rows that one operand brings to each group."""
        return math.prod(self.shape[axis] for axis in self.free)

    def rows(self, x: Float[Array, "m ..."]) -> Float[Array, "g n d"]:
        """See `Contraction.rows`."""
        lead = len(x.shape) - len(self.shape)
        axes = (*self.batch, "m", *self.free, *self.contract)
        x = x.transpose([0 if a == "m" else a + lead for a in axes])
        groups = math.prod(self.shape[axis] for axis in self.batch)
        return widened(x).reshape(groups, -1, self._fan_in)

    def outputs(self, y: Float[Array, "m ..."]) -> Float[Array, "g n o"]:
        """See `Contraction.outputs`."""
        first = len(self.batch) + 1
        counts = len(self.free), len(self.leaf_free)
        if self.leaf_first:
            leaf = range(first, first + counts[1])
            free = range(first + counts[1], y.ndim)
        else:
            free = range(first, first + counts[0])
            leaf = range(first + counts[0], y.ndim)
        y = y.transpose([*(axis + 1 for axis in self.out_batch), 0, *free, *leaf])
        sizes = y.shape[: first - 1], y.shape[y.ndim - counts[1] :]
        groups, out = map(math.prod, sizes)
        return widened(y).reshape(groups, -1, out)

    def sums(self, x: Float[Array, "m ..."]) -> Float[Array, "g r w w"]:
        """See `Contraction.sums`."""
        rows = self.rows(x).swapaxes(0, 1)
        return symmetric_blocks.upper_blocks(jnp.split(rows, self._blocks, axis=-1))

    def whole(self, sums: Float[Array, "g r w w"]) -> Float[Array, "g d d"]:
        """See `Contraction.whole`."""
        return symmetric_blocks.whole(sums, self._blocks)

    @property
    def _fan_in(self) -> int:
        return math.prod(self.shape[axis] for axis in self.contract)

    @property
    def _blocks(self) -> int:
        return symmetric_blocks.block_count(self._fan_in, 1)


def _others(count: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(count) if axis not in axes)


# By the name of the primitive. Whatever is not listed here gives a leaf no input.
CONTRACTIONS: dict[str, type[Contraction]] = {
    "conv_general_dilated": Convolution,
    "dot_general": DotProduct,
}


def flatten_scans(
    x: Float[Array, "n ..."], scans: tuple[str, ...]
) -> Float[Array, "s m ..."]:
    """Scan axes after the image axis: slices of the leaf lead, repeats join the images.

    `scans` says of each, whether it slices the leaf ("groups") or repeats it ("rows").
    """
    sliced = [i + 1 for i, kind in enumerate(scans) if kind == "groups"]
    x = jnp.moveaxis(x, sliced, range(len(sliced)))
    groups = math.prod(x.shape[: len(sliced)])
    images = math.prod(x.shape[len(sliced) : len(scans) + 1])
    return x.reshape(groups, images, *x.shape[len(scans) + 1 :])


def for_slices(function, slices: Float[Array, "s ..."]) -> Float[Array, "_ ..."]:
    """`function` of every slice, which gives `[g, ...]`; slices and groups joined."""
    groups = jax.vmap(function)(slices)
    return groups.reshape(-1, *groups.shape[2:])
