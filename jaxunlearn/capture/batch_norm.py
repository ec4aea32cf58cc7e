"""BatchNorm in inference mode, read off the program.

An input less a running mean, times the reciprocal root of a running variance, is a
BatchNorm layer's input, and so is one of the affine map that the two fold into,
`x a + (beta - mean a)` with `a = gamma / sqrt(var + eps)`. Factors and terms that no
image reaches change nothing. What is written otherwise is not seen.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from jaxunlearn.checks import is_traced


class Statistic(NamedTuple):
    """A value on the way from running statistics to a normalised input.

    Its role is "leaf" (a state leaf), "negated" (minus it), "shifted" (it plus
    epsilon), "root" of that, "scale" (the reciprocal root), "offset" (a leaf times a
    scale), "centred" (an input less a leaf), "scaled" (an input times a scale), or
    "normalised".
    """

    role: str
    index: int  # which state leaf; of "scaled", the variance
    axes: tuple[int, ...] = ()  # where the leaf's axes lie in the value
    slices: tuple[int, ...] = ()  # the depths of the scans that slice it
    key: str = ""  # of the captured input, from "centred" and "scaled" on
    variance: int = -1  # which state leaf divided it, for "offset" and "normalised"


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
    roles = {v.statistic.role for v in inputs if v.statistic is not None}
    if not roles or "normalised" in roles:  # The latter is the end of the way.
        return None
    if len(inputs) == 1:
        return _of_one(eqn, *inputs)
    if len(inputs) != 2:
        return None
    step = _STEPS.get(eqn.primitive.name)
    found = None if step is None else step(*inputs)
    if found is None or found.role not in ("centred", "scaled") or found.key:
        return found
    # Of the input as it is used: an axis that only the leaf has is one of copies, an
    # axis of one that is repeated along the input is summed over.
    used, leaf = eqn.outvars[0].aval.shape, _with_role(inputs, "leaf", "scale")
    axes = [a for a in found.axes if used[a] == jnp.shape(leaf.array)[a]]
    # Statistics over the input come in the order of its axes.
    return found._replace(key=key, axes=tuple(axes)) if axes == sorted(axes) else None


def _of_one(eqn, value) -> Statistic | None:
    name, statistic = eqn.primitive.name, value.statistic
    roots = {"rsqrt": "scale", "sqrt": "root"}
    if name in roots and statistic.role in ("leaf", "shifted"):
        return statistic._replace(role=roots[name])
    if name == "neg" and statistic.role in ("leaf", "offset"):
        role = "negated" if statistic.role == "leaf" else "offset"
        return statistic._replace(role=role)
    if name == "integer_pow" and eqn.params["y"] == -1 and statistic.role == "root":
        return statistic._replace(role="scale")
    axes = _follow_axes(eqn, jnp.shape(value.array), statistic.axes)
    if axes is None or (statistic.key and axes != statistic.axes):
        return None
    return statistic._replace(axes=axes)


def _with_role(inputs, *roles):
    """The input that is one of these, if there is one."""
    held = (v for v in inputs if v.statistic and v.statistic.role in roles)
    return next(held, None)


def _shifted(left, right) -> Statistic | None:
    leaf = _with_role((left, right), "leaf")
    if leaf is None or left.image or right.image:
        return None
    return leaf.statistic._replace(role="shifted")


def _added(left, right) -> Statistic | None:
    return _joined(left, right) or _shifted(left, right)


def _joined(left, right) -> Statistic | None:
    """What an offset is added to, or what is added to it."""
    offset, scaled = (_with_role((left, right), r) for r in ("offset", "scaled"))
    other = right if (scaled or offset) is left else left
    if offset and scaled and offset.statistic.variance == scaled.statistic.index:
        mean, variance = offset.statistic.index, scaled.statistic.index
        return scaled.statistic._replace(
            role="normalised", index=mean, variance=variance
        )
    plain = other.statistic is None and not other.image
    return (scaled or offset).statistic if plain and (scaled or offset) else None


def _subtracted(left, right) -> Statistic | None:
    if left.image and right.statistic and right.statistic.role == "leaf":
        return right.statistic._replace(role="centred")
    return _joined(left, right)


def _multiplied(left, right) -> Statistic | None:
    pair = left, right
    scale, centred = _with_role(pair, "scale"), _with_role(pair, "centred")
    if scale and centred:
        return _normalised(centred, scale)
    known = scale or centred or _with_role(pair, "offset", "scaled")
    if known is None:
        return None
    other = right if known is left else left
    if scale and other.statistic and other.statistic.role in ("leaf", "negated"):
        index = scale.statistic.index
        return other.statistic._replace(role="offset", variance=index)
    if scale and other.image:
        return scale.statistic._replace(role="scaled")
    return None if other.image or other.statistic else known.statistic


def _divided(left, right) -> Statistic | None:
    statistic = left.statistic
    if right.statistic is None:
        factored = _with_role((left,), "centred", "scale", "scaled", "offset")
        return statistic if factored and not right.image else None
    if right.statistic.role != "root":
        return None
    if statistic is not None and statistic.role == "centred":
        return _normalised(left, right)
    plain = statistic is None and not left.image
    return right.statistic._replace(role="scale") if plain else None


def _raised(left, right) -> Statistic | None:
    """`(var + eps) ** -0.5`, or the root."""
    roles = {-0.5: "scale", 0.5: "root"}
    if is_traced(right.array) or jnp.ndim(right.array):
        return None
    role = roles.get(float(right.array))
    if role is None or _with_role((left,), "leaf", "shifted") is None:
        return None
    return left.statistic._replace(role=role)


def _normalised(centred, variance) -> Statistic:
    index = variance.statistic.index
    return centred.statistic._replace(role="normalised", variance=index)


_STEPS = {
    "add": _added,
    "add_any": _added,
    "div": _divided,
    "max": _shifted,
    "mul": _multiplied,
    "pow": _raised,
    "sub": _subtracted,
}


def _follow_axes(eqn, shape, axes):
    """Where a statistic's axes lie after a cast, reshape or broadcast; None if lost."""
    name, after = eqn.primitive.name, eqn.outvars[0].aval.shape
    if name == "convert_element_type":
        return axes
    if name == "broadcast_in_dim":
        places = eqn.params["broadcast_dimensions"]
        return tuple(int(places[a]) for a in axes if shape[a] == after[places[a]])
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
