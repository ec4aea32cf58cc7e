"""The two products in which a weight meets its input, and that input's second moment.

Operands come as the program holds them, with one leading axis `m` of images (and of
scan iterations). Sums over rows run at precision HIGHEST and in at least float32.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.capture import symmetric_blocks
from jaxunlearn.capture.convolution import Convolution, widened
from jaxunlearn.capture.layout import Layout, View


@dataclasses.dataclass(frozen=True)
class DotProduct:
    """`dot_general` of an input and a leaf.

    Attributes:
      batch, contract, free: the input's axes, the first two in the order of the
        leaf's axes.
      leaf_batch, leaf_contract, leaf_free: the leaf's axes.
      shape: the input's shape.
    """

    batch: tuple[int, ...]
    contract: tuple[int, ...]
    free: tuple[int, ...]
    leaf_batch: tuple[int, ...]
    leaf_contract: tuple[int, ...]
    leaf_free: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def read(cls, dimension_numbers, leaf_side: int, shapes) -> "DotProduct":
        """From the equation's parameters; operand number `leaf_side` is the leaf."""
        contracting, batching = dimension_numbers
        pairs = {}
        for name, sides in (("contract", contracting), ("batch", batching)):
            ours, theirs = sides[1 - leaf_side], sides[leaf_side]
            pairs[name] = sorted(zip(theirs, ours, strict=True))
        taken = [
            [axis for pair in pairs.values() for axis in pair_axes(pair, i)]
            for i in (1, 0)
        ]  # noqa: E501
        free, leaf_free = (
            tuple(a for a in range(len(shape)) if a not in used)
            for shape, used in zip(
                (shapes[1 - leaf_side], shapes[leaf_side]), taken, strict=True
            )  # noqa: E501
        )
        return cls(
            batch=pair_axes(pairs["batch"], 1),
            contract=pair_axes(pairs["contract"], 1),
            free=free,
            leaf_batch=pair_axes(pairs["batch"], 0),
            leaf_contract=pair_axes(pairs["contract"], 0),
            leaf_free=leaf_free,
            shape=tuple(shapes[1 - leaf_side]),
        )

    def layout(self, view: View) -> Layout:
        """How the leaf is read as `[g, d, o]`."""
        kind = "einsum" if self.leaf_batch else "dense"
        return view.layout(kind, self.leaf_batch, self.leaf_contract, self.leaf_free)

    @property
    def count(self) -> int:
        """Rows that one operand brings to each group."""
        return math.prod(self.shape[axis] for axis in self.free)

    @property
    def written(self) -> int:
        """How many numbers of one operand `sums` may write out at once."""
        return math.prod(self.shape)

    def rows(self, x: Float[Array, "m ..."]) -> Float[Array, "g n d"]:
        """The input's rows, in at least float32."""
        lead = len(x.shape) - len(self.shape)
        axes = (*self.batch, "m", *self.free, *self.contract)
        x = x.transpose([0 if a == "m" else a + lead for a in axes])
        groups = math.prod(self.shape[axis] for axis in self.batch)
        fan_in = math.prod(self.shape[axis] for axis in self.contract)
        return widened(x).reshape(groups, -1, fan_in)

    def sums(self, x: Float[Array, "m ..."]) -> Float[Array, "g r w w"]:
        """What `whole` makes `sum(x xT)` over rows of: additive over images."""
        rows = self.rows(x).swapaxes(0, 1)
        return symmetric_blocks.upper_blocks(jnp.split(rows, self._blocks, axis=-1))

    def whole(self, sums: Float[Array, "g r w w"]) -> Float[Array, "g d d"]:
        """`sum(x xT)` over rows, of their `sums`."""
        return symmetric_blocks.whole(sums, self._blocks)

    @property
    def _blocks(self) -> int:
        fan_in = math.prod(self.shape[axis] for axis in self.contract)
        return symmetric_blocks.block_count(fan_in, 1)


def pair_axes(pairs, side: int) -> tuple[int, ...]:
    """One side of a list of axis pairs."""
    return tuple(pair[side] for pair in pairs)


Product = DotProduct | Convolution


def flatten_scans(
    x: Float[Array, "n ..."], scans: tuple[str, ...]
) -> Float[Array, "s m ..."]:
    """Scan axes after the image axis: slices of the leaf lead, repeats join the images.

    Args:
      x: `[n, *scan axes, ...]`.
      scans: for each scan axis, "groups" where it slices the leaf, else "rows".
    """
    sliced = [i + 1 for i, kind in enumerate(scans) if kind == "groups"]
    x = jnp.moveaxis(x, sliced, range(len(sliced)))
    groups = math.prod(x.shape[: len(sliced)])
    images = math.prod(x.shape[len(sliced) : len(scans) + 1])
    return x.reshape(groups, images, *x.shape[len(scans) + 1 :])


def group_sums(product: Product, x, scans) -> Float[Array, "s g r w w"]:
    """The `sums` of every slice and group of one product."""
    return jax.vmap(product.sums)(flatten_scans(x, scans))


def group_grams(
    product: Product, sums: Float[Array, "s g r w w"]
) -> Float[Array, "s*g d d"]:
    """The gram of every slice and group of one product, of their `sums`."""
    grams = jax.vmap(product.whole)(sums)
    return grams.reshape(-1, *grams.shape[2:])


def group_rows(product: Product, x, scans) -> Float[Array, "g n d"]:
    """The rows of every slice and group of one product."""
    x = flatten_scans(x, scans)
    rows = jax.vmap(product.rows)(x)
    return rows.reshape(-1, *rows.shape[2:])
