"""What is known of a value in a program, and how equations carry it on."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxunlearn.capture.batch_norm import Statistic
from jaxunlearn.capture.layout import View

# Primitives that hand every element on as it is.
PASSED_ON = {
    "copy",
    "copy_p",
    "device_put",
    "mesh_cast",
    "name",
    "optimization_barrier",
    "pcast",
    "pvary",
    "reduce_precision",
    "reshard",
    "sharding_constraint",
    "stop_gradient",
}
# Calls that are looked into if a leaf or a statistic is handed to them.
INLINED = {
    "call",
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat",
    "remat2",
}
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
    """A value that is a parameter leaf, still whole.

    Attributes:
      index: which leaf.
      view: how it is seen, or None once it was broadcast over a new axis.
      slices: the depths of the scans that slice it.
    """

    index: int
    view: View | None
    slices: tuple[int, ...] = ()


class Value(NamedTuple):
    """An array and what is known of it.

    Attributes:
      array: the value.
      image: whether the image reaches it.
      uses: keys of the products upstream.
      leaf, statistic: what it still is, or None.
    """

    array: Any
    image: bool = False
    uses: frozenset[str] = frozenset()
    leaf: Leaf | None = None
    statistic: Statistic | None = None


def refusal(eqn, inputs, side) -> str:
    """Why a leaf that ends in this equation has no input, or nothing if it has one."""
    name, value, shape = eqn.primitive.name, inputs[side], jnp.shape(inputs[side].array)
    if name not in ("dot_general", "conv_general_dilated"):
        return _REASONS.get(
            name, f"it is used by `{name}`, which is no product with an input"
        )  # noqa: E501
    other = inputs[1 - side]
    if other.leaf is not None:
        return "it is multiplied with another parameter, as in a merged product"
    if not other.image:
        return "it is multiplied with an operand that no image reaches"
    if value.leaf.view is None:
        return f"it is broadcast to {shape} before its product"
    if jnp.issubdtype(value.array.dtype, jnp.complexfloating):
        return "it is complex"
    if name == "conv_general_dilated" and (
        side == 0 or eqn.params["batch_group_count"] != 1
    ):
        return "it is convolved as an image or in batch groups, not as a kernel"
    return ""


def follow_leaf(eqn, name, params, view):
    """Whether an equation keeps a leaf whole, and its view then."""
    if name == "convert_element_type":
        floating = jnp.issubdtype(params["new_dtype"], jnp.floating)
        return floating, view
    shape = eqn.outvars[0].aval.shape
    if name in ("reshape", "squeeze", "expand_dims"):
        # A reshape may transpose first.
        if view and name == "reshape" and params["dimensions"] is not None:
            view = view.then("transpose", tuple(params["dimensions"]))
        return True, view and view.then("reshape", shape)
    if name == "broadcast_in_dim":
        same = eqn.invars[0].aval.size == eqn.outvars[0].aval.size
        return True, view.then("reshape", shape) if view and same else None
    if name == "transpose":
        return True, view and view.then("transpose", tuple(params["permutation"]))
    if name == "rev":
        return True, view and view.then("rev", tuple(params["dimensions"]))
    return False, None


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
