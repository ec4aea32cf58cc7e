"""What is known of a value in a program, and what equations make of that."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxunlearn.capture.batch_norm import Statistic
from jaxunlearn.capture.contractions import CONTRACTIONS
from jaxunlearn.capture.layout import View

# Primitives that hand every element on as it is.
PASSED_ON = {
    *("copy", "copy_p", "device_put", "mesh_cast", "name", "optimization_barrier"),
    *("pcast", "pvary", "reduce_precision", "reshard", "sharding_constraint"),
    "stop_gradient",
}
# Calls that are looked into if a leaf or a statistic is handed to them.
INLINED = {
    *("call", "checkpoint", "closed_call", "core_call", "custom_jvp_call", "jit"),
    *("custom_vjp_call", "custom_vjp_call_jaxpr", "pjit", "remat", "remat2"),
}
# Why a leaf that ends in one of these has no input.
_REASONS = {
    "add": "it is added to its input, as a bias is",
    "sub": "it is subtracted",
    "mul": "it multiplies elementwise, as a scale does",
    "div": "it divides or is divided, as a re-parametrised weight is",
    "gather": "it is looked up, as an embedding is",
    "slice": "only a slice of it is used in a product",
    "dynamic_slice": "only a slice of it is used in a product",
    "split": "only a slice of it is used in a product",
    "concatenate": "it is joined with another array before its use",
    "while": "it is used inside a while loop",
}


class Leaf(NamedTuple):
    """A value that is a parameter leaf, still whole."""

    index: int
    view: View | None  # None once it was broadcast over a new axis
    slices: tuple[int, ...] = ()  # the depths of the scans that slice it

    def then(self, name: str, numbers) -> "Leaf":
        """The leaf after one more step of its view."""
        return self._replace(view=self.view and self.view.then(name, tuple(numbers)))


class Value(NamedTuple):
    """An array and what is known of it."""

    array: Any
    image: bool = False  # whether the image reaches it
    uses: frozenset[str] = frozenset()  # keys of the contractions upstream
    leaf: Leaf | None = None  # what it still is
    statistic: Statistic | None = None


def refusal(eqn, inputs, side) -> str:
    """Why a leaf that ends in this equation has no input, or nothing if it has one."""
    name, value = eqn.primitive.name, inputs[side]
    if name not in CONTRACTIONS:
        other = f"it is used by `{name}`, which is no product with an input"
        return _REASONS.get(name, other)
    other = inputs[1 - side]
    if other.leaf is not None:
        return "it is multiplied with another parameter, as in a merged product"
    if not other.image:
        return "it is multiplied with an operand that no image reaches"
    if value.leaf.view is None:
        return f"it is broadcast to {jnp.shape(value.array)} before its product"
    if jnp.issubdtype(value.array.dtype, jnp.complexfloating):
        return "it is complex"
    return CONTRACTIONS[name].refuse(eqn.params, side)


def _converted(eqn, leaf):
    return leaf if jnp.issubdtype(eqn.params["new_dtype"], jnp.floating) else None


def _resized(eqn, leaf):
    return leaf.then("reshape", eqn.outvars[0].aval.shape)


def _reshaped(eqn, leaf):
    # A reshape may transpose first.
    order = eqn.params["dimensions"]
    return _resized(eqn, leaf if order is None else leaf.then("transpose", order))


def _broadcast(eqn, leaf):
    same = eqn.invars[0].aval.size == eqn.outvars[0].aval.size
    return _resized(eqn, leaf) if same else leaf._replace(view=None)


# Equations that keep a leaf a leaf, and what they make of it; None: it is lost.
_STEPS = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _converted,
    "expand_dims": _resized,
    "reshape": _reshaped,
    "rev": lambda eqn, leaf: leaf.then("rev", eqn.params["dimensions"]),
    "squeeze": _resized,
    "transpose": lambda eqn, leaf: leaf.then("transpose", eqn.params["permutation"]),
}


def follow_leaf(eqn, leaf: Leaf) -> Leaf | None:
    """The leaf as an equation hands it on, or None where it is not a leaf any more."""
    step = _STEPS.get(eqn.primitive.name)
    return None if step is None else step(eqn, leaf)


def sliced(value: Value, array, depth) -> Value:
    """A scanned value as the body of the scan at this depth sees it."""
    leaf, statistic = value.leaf, None
    if leaf is not None:
        view = leaf.view and leaf.view.slice()
        leaf = leaf._replace(view=view, slices=(*leaf.slices, depth))
    if value.statistic is not None and value.statistic.role == "leaf":
        axes = tuple(axis - 1 for axis in value.statistic.axes if axis > 0)
        slices = (*value.statistic.slices, depth)
        statistic = value.statistic._replace(axes=axes, slices=slices)
    return Value(array, value.image, value.uses, leaf, statistic)
