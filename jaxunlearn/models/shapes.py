"""What a network's variables are, without any memory for them."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import unflatten_dict

from jaxunlearn.checks import as_integer, short
from jaxunlearn.classifier.classifier import freeze
from jaxunlearn.models.tensors import named
from jaxunlearn.parallel.hardware import free_memory

# How many blocks are traced of a network that may have any number of equal ones.
_BLOCKS = 2


def variable_shapes(
    model: nn.Module, image_shape: Any, *, training: bool = False
) -> dict[str, Any]:
    """Shape and type of each variable by its path, for images (h, w, c)."""
    sides = image_shape if isinstance(image_shape, tuple | list) else ()
    if len(sides) != 3 or not all(0 < (as_integer(n) or 0) < 2**31 for n in sides):
        msg = f"image_shape must be (h, w, c), positive integers below 2**31; it is {short(image_shape)}."  # noqa: E501
        raise ValueError(msg)
    network = freeze(model, {"params": {}}).network
    if not training:  # `init` takes the call of training
        network = dataclasses.replace(network, training=network.evaluation)
    init = functools.partial(network.init, image_shape=tuple(sides))
    params, state = jax.eval_shape(init, jax.random.key(0))
    return named({"params": params, **state})


def nested(arrays: dict[str, Any]) -> dict[str, Any]:
    """Variables out of arrays by their paths; `state/` before one is left out."""
    tree = unflatten_dict(arrays, sep="/")
    return tree | tree.pop("state", {})


def check_memory(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Refuse a network whose parameters alone do not fit into what memory is free."""
    needed, free = _parameter_bytes(model, image_shape), free_memory()
    if needed > free:
        fields = (f.name for f in dataclasses.fields(model))
        options = (n for n in fields if n not in ("parent", "name"))
        set_to = ", ".join(f"{n}={short(getattr(model, n))}" for n in options)
        msg = (
            f"The parameters of this {type(model).__name__} would take "
            f"{needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB of memory are free: "
            f"lower num_classes or the options that make it large, of {set_to}."
        )
        raise ValueError(msg)


def _parameter_bytes(model, image_shape) -> int:
    depth = getattr(model, "depth", 0)
    if depth > _BLOCKS:  # one block by one would take hours
        one, two = (
            _parameter_bytes(model.clone(depth=n), image_shape)
            for n in (_BLOCKS - 1, _BLOCKS)
        )
        return two + (depth - _BLOCKS) * (two - one)
    leaves = variable_shapes(model, image_shape).values()
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
