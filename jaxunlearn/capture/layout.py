"""How a parameter leaf is read as a batch of matrices `[g, d, o]`.

`d` is the fan-in over which the leaf meets its input, `o` what comes out, `g` the
groups that never meet: feature groups, batch axes of an einsum, slices of a scan.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Step = tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class View:
    """A leaf as one equation sees it, through steps that lose no element.

    Steps are `("reshape", sizes)`, `("transpose", permutation)` and `("rev", axes)`.
    """

    shape: tuple[int, ...]  # the leaf's own
    steps: tuple[Step, ...] = ()
    sliced: int = 0  # how many leading axes surrounding scans slice off

    @property
    def whole(self) -> tuple[int, ...]:
        """The viewed shape, the sliced axes included."""
        return _shapes(self.shape, self.steps)[-1]

    def then(self, name: str, numbers: tuple[int, ...]) -> "View":
        """One more step, on the axes after the sliced ones."""
        lead = self.whole[: self.sliced]
        if name == "reshape":
            numbers = (*lead, *numbers)
            if numbers == self.whole:
                return self
        else:
            numbers = tuple(axis + self.sliced for axis in numbers)
            if name == "transpose":
                numbers = (*range(self.sliced), *numbers)
                if numbers == tuple(range(len(numbers))):
                    return self
        return dataclasses.replace(self, steps=(*self.steps, (name, numbers)))

    def slice(self) -> "View":
        """The view of one iteration of a scan over the next axis."""
        return dataclasses.replace(self, sliced=self.sliced + 1)

    def layout(
        self,
        kind: str,
        groups: tuple[int, ...],
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        splits: int = 1,
    ) -> "Layout":
        """The layout whose groups, fan-in and fan-out are these axes of the view.

        `splits` feature groups share the output axes, as in a convolution.
        """
        shape = self.whole[self.sliced :]
        g, d, o = (
            math.prod(shape[a] for a in axes) for axes in (groups, inputs, outputs)
        )
        view = self.then("transpose", (*groups, *inputs, *outputs))
        if splits > 1:
            view = view.then("reshape", (g, d, splits, o // splits))
            view = view.then("transpose", (0, 2, 1, 3))
        g, o = g * splits * math.prod(self.whole[: self.sliced]), o // splits
        steps = view.steps
        if view.whole != (g, d, o):
            steps = (*steps, ("reshape", (g, d, o)))
        return Layout(kind, self.shape, steps, g, d, o)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A leaf read as `[g, d, o]` and back, without loss.

    >>> kernel = View((3, 3, 8, 16)).layout("conv", (), (0, 1, 2), (3,))
    >>> kernel.to_matrix(jnp.zeros((3, 3, 8, 16))).shape
    (1, 72, 16)
    """

    kind: str  # "dense", "conv" or "einsum"
    shape: tuple[int, ...]  # the leaf's
    steps: tuple[Step, ...]  # from the leaf to `[g, d, o]`
    groups: int
    fan_in: int
    fan_out: int

    def to_matrix(self, leaf: Array) -> Float[Array, "g d o"]:
        """The leaf as a batch of matrices, inputs along the rows."""
        return _apply(self.steps, leaf)

    def from_matrix(self, matrix: Float[Array, "g d o"]) -> Array:
        """The leaf again."""
        shapes = _shapes(self.shape, self.steps)[:-1]
        for (name, numbers), before in zip(self.steps[::-1], shapes[::-1], strict=True):
            matrix = _INVERSES[name](matrix, numbers, before)
        return matrix

    def swapped(self) -> "Layout":
        """The leaf read as `[g, o, d]`: what comes out takes the fan-in's place."""
        steps = (*self.steps, ("transpose", (0, 2, 1)))
        sizes = {"fan_in": self.fan_out, "fan_out": self.fan_in}
        return dataclasses.replace(self, steps=steps, **sizes)

    def renumber(self, other: "Layout") -> "Renumbering | None":
        """How `other`'s rows must be permuted to be rows of this layout.

        None where the two contract different elements of the leaf together, as
        `x @ W` and `h @ W.T` do: then no common input space exists.
        """
        if self.steps == other.steps:
            return Renumbering(None, None)
        elements = np.arange(math.prod(self.shape)).reshape(self.shape)
        ours, theirs = (_apply(layout.steps, elements) for layout in (self, other))
        if ours.shape[:2] != theirs.shape[:2]:
            return None
        place = np.empty((elements.size, 2), np.int64)
        g, d, o = ours.shape
        place[ours, 0] = np.arange(g)[:, None, None]
        place[ours, 1] = np.arange(d)[None, :, None]
        group, row = place[theirs, 0], place[theirs, 1]
        if (group != group[:, :1, :1]).any() or (row != row[:, :, :1]).any():
            return None
        # Inverse permutations: where in `theirs` our group and our row are found.
        groups = np.argsort(group[:, 0, 0])
        rows = np.argsort(row[:, :, 0], axis=1)[groups]
        return Renumbering(groups, rows)


@dataclasses.dataclass(frozen=True)
class Renumbering:
    """A permutation of groups, and of the fan-in within each."""

    groups: np.ndarray | None
    rows: np.ndarray | None

    def __call__(self, array: Array, *axes: int) -> Array:
        """Permute `array [g, ...]` along its group axis and these fan-in axes."""
        if self.groups is None:
            return array
        array = array[self.groups]
        for axis in axes:
            shape = [1] * array.ndim
            shape[0], shape[axis] = self.rows.shape
            array = jnp.take_along_axis(array, self.rows.reshape(shape), axis=axis)
        return array


def _shapes(shape, steps: tuple[Step, ...]) -> list[tuple[int, ...]]:
    """The shapes before the first step, between all, and after the last."""

    def after(shape, step):
        return _SHAPES[step[0]](shape, step[1])

    return list(itertools.accumulate(steps, after, initial=shape))


def _apply(steps: tuple[Step, ...], array):
    for name, numbers in steps:
        array = _STEPS[name](array, numbers)
    return array


def _reverse(array, axes):
    return array[
        tuple(slice(None, None, -1 if a in axes else 1) for a in range(array.ndim))
    ]


# What a step does to an array, to its shape, and how it is undone.
_STEPS = {
    "reshape": lambda array, sizes: array.reshape(sizes),
    "transpose": lambda array, axes: array.transpose(axes),
    "rev": _reverse,
}
_SHAPES = {
    "reshape": lambda shape, sizes: sizes,
    "transpose": lambda shape, axes: tuple(shape[axis] for axis in axes),
    "rev": lambda shape, axes: shape,
}
_INVERSES = {
    "reshape": lambda array, sizes, before: array.reshape(before),
    "transpose": lambda array, axes, _: array.transpose(np.argsort(axes).tolist()),
    "rev": lambda array, axes, _: _reverse(array, axes),
}


def path_name(path) -> str:
    """A leaf's path in the parameters, as errors and tables print it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
