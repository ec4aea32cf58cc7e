"""BatchNorm in inference mode, read off the program.

An input that meets a running mean in a subtraction, and whose difference is then
multiplied by the reciprocal root of a running variance, is a BatchNorm layer's input.
A folded form, with one product and one sum, is not seen.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp


class Statistic(NamedTuple):
    """A value on the way from running statistics to a normalised input.

    Its role is "leaf" (a state leaf), "shifted" (it plus epsilon), "scale" (the
    reciprocal root of that), "root", "centred" (an input less a leaf), or "normalised"
    (that times a scale).
    """

    role: str
    index: int  # which state leaf
    axes: tuple[int, ...] = ()  # where the leaf's axes lie in the value
    slices: tuple[int, ...] = ()  # the depths of the scans that slice it
    key: str = ""  # of the captured input, from "centred" on
    variance: int = -1  # which state leaf divided it, for "normalised"


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """An input normalised by running statistics (BatchNorm in inference mode)."""

    mean: int  # indices of the state leaves
    variance: int
    axes: tuple[int, ...]  # of the input, where the leaves' axes lie
    scans: tuple[str, ...]  # as in `Use`


def scan_kinds(slices, depth: int) -> tuple[str, ...]:
    """For each surrounding scan, whether it slices a leaf or repeats it."""
    return tuple("groups" if d in slices else "rows" for d in range(depth))


def follow_statistic(eqn, inputs, key) -> Statistic | None:
    """What a statistic becomes in an equation, or None where its trace is lost."""
    name = eqn.primitive.name
    at = {v.statistic.role: v for v in inputs if v.statistic is not None}
    if not at:
        return None
    if len(inputs) == 1:
        statistic, roots = inputs[0].statistic, {"rsqrt": "scale", "sqrt": "root"}
        if name in roots and statistic.role == "shifted":
            return statistic._replace(role=roots[name])
        axes = _follow_axes(eqn, jnp.shape(inputs[0].array), statistic.axes)
        return None if axes is None else statistic._replace(axes=axes)
    if len(inputs) != 2:
        return None
    left, right = inputs
    if name == "add" and "leaf" in at and not (left.image or right.image):
        return at["leaf"].statistic._replace(role="shifted")
    if name == "sub" and left.image and right is at.get("leaf"):
        shapes = jnp.shape(left.array), jnp.shape(right.array)
        # An axis of one that is repeated along the input is summed over.
        axes = [a for a in right.statistic.axes if shapes[0][a] == shapes[1][a]]
        return right.statistic._replace(role="centred", key=key, axes=tuple(axes))
    if name == "mul" and {"centred", "scale"} <= set(at):
        return _normalised(at["centred"], at["scale"])
    if name == "div" and left is at.get("centred") and "root" in at:
        return _normalised(left, at["root"])
    if name == "mul" and "scale" in at:
        other = right if left is at["scale"] else left
        return None if other.image else at["scale"].statistic
    return None


def _normalised(centred, variance) -> Statistic:
    index = variance.statistic.index
    return centred.statistic._replace(role="normalised", variance=index)


def _follow_axes(eqn, shape, axes):
    """Where a statistic's axes lie after a cast, reshape or broadcast; None if lost."""
    name, after = eqn.primitive.name, eqn.outvars[0].aval.shape
    if name == "convert_element_type":
        return axes
    if name == "broadcast_in_dim":
        places = eqn.params["broadcast_dimensions"]
        return tuple(places[a] for a in axes if shape[a] == after[places[a]])
    if name in ("reshape", "squeeze", "expand_dims"):
        if name == "reshape" and eqn.params["dimensions"] is not None:
            return None
        before, places = (
            [axis for axis, n in enumerate(sizes) if n != 1] for sizes in (shape, after)
        )
        if [shape[axis] for axis in before] != [after[axis] for axis in places]:
            return None
        return tuple(places[before.index(axis)] for axis in axes if shape[axis] != 1)
    if name == "transpose":
        return tuple(eqn.params["permutation"].index(axis) for axis in axes)
    return None
