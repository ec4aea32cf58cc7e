"""What a network's variables are, without any memory for them."""

import functools
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import unflatten_dict

from jaxunlearn.checks import as_integer
from jaxunlearn.classifier.classifier import freeze
from jaxunlearn.models.tensors import named


def variable_shapes(model: nn.Module, image_shape: Any) -> dict[str, Any]:
    """Shape and type of each variable by its path, for images (h, w, c)."""
    sides = image_shape if isinstance(image_shape, tuple | list) else ()
    if len(sides) != 3 or not all((as_integer(n) or 0) > 0 for n in sides):
        msg = f"image_shape must be (h, w, c), positive integers; it is {image_shape}."
        raise ValueError(msg)
    network = freeze(model, {"params": {}}).network
    init = functools.partial(network.init, image_shape=tuple(sides))
    params, state = jax.eval_shape(init, jax.random.key(0))
    return named({"params": params, **state})


def nested(arrays: dict[str, Any]) -> dict[str, Any]:
    """Variables out of arrays by their paths; `state/` before one is left out."""
    tree = unflatten_dict(arrays, sep="/")
    return tree | tree.pop("state", {})
