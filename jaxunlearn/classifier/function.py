"""Any pure function of parameters, state and images as a network."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn.classifier.network import Network, Static

# What has a Function and no Flax module is not trained here.
UNTRAINABLE = (
    "A Function only infers, and training needs a train function and fresh parameters: "
    "train with the network's own framework and freeze the result (Task.train, where "
    "a method trains from scratch), or use a Flax linen or NNX module."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A network of any framework: `apply(params, state, images) -> logits [n, k]`.

    `freeze` makes a `Classifier` of it, for everything but training. `apply` must be
    pure, in inference mode and traceable, and take any number `n` of images. Programs
    are compiled once for each `apply` object: define it once and not in a loop.

    Attributes:
      apply: the function. Images come as `[n, h, w, c]`, preprocessed.
      params: a pytree of floating-point arrays, which unlearning may move.
      state: a pytree of arrays that it may not, or None.

    Raises:
      TypeError: `apply` cannot be called, or a leaf is no such array.
      ValueError: there are no parameters.

    >>> apply = lambda params, state, images: images.mean((1, 2)) @ params["kernel"]
    >>> function = Function(apply, {"kernel": jnp.ones((3, 10))})
    >>> function.apply(function.params, None, jnp.ones((2, 8, 8, 3))).shape
    (2, 10)
    """

    apply: Callable[..., Any] | Any
    params: PyTree
    state: PyTree = None

    def __post_init__(self):
        if not callable(self.apply):
            msg = (
                "Function.apply must be callable, as (params, state, images) -> logits;"
                f" it is a {type(self.apply).__name__}."
            )
            raise TypeError(msg)
        if not jax.tree.leaves(self.params):
            msg = (
                "Function.params hold no array: pass the parameters that apply takes, "
                "not what it holds already."
            )
            raise ValueError(msg)
        _check_arrays("params", self.params, jnp.floating, "a floating-point array")
        _check_arrays("state", self.state, np.generic, "an array")


@dataclasses.dataclass(frozen=True)
class FunctionNetwork(Network):
    """The static half of a `Function`; equal if `apply` is."""

    function: Static

    def init(self, key, image_shape):
        """Refused: a function is given with its parameters."""
        raise TypeError(UNTRAINABLE)

    def apply(self, params, state, images):
        """See `Network.apply`."""
        return self.function.value(params, state, images)

    def apply_train(self, params, state, images, key):
        """Refused: a function has no training mode."""
        raise TypeError(UNTRAINABLE)

    def thaw(self, params, state):
        """The `Function` with these parameters and state."""
        return Function(self.function.value, params, state)


def of_function(
    model: Function,
    variables: Mapping[str, Any] | None,
    call_options: Mapping[str, Hashable],
) -> tuple[Network, PyTree, PyTree]:
    """Network, params and state of a `Function`; see `classifier.freeze`."""
    if variables is not None:
        msg = "A Function holds its own params and state: freeze(function) without a second argument."  # noqa: E501
        raise TypeError(msg)
    if call_options:
        msg = (
            f"A Function takes no call options, given {sorted(call_options)}: bind them"
            " in apply, for instance with functools.partial."
        )
        raise TypeError(msg)
    return FunctionNetwork(Static(model.apply)), model.params, model.state


def _check_arrays(field, tree, kind, described) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None)
        array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        if array and (jnp.issubdtype(dtype, kind) or kind is np.generic):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        seen = f"{dtype}{list(leaf.shape)}" if array else f"a {type(leaf).__name__}"
        msg = (
            f"Function.{field} at {name or 'the only leaf'} must be {described}; it is "
            f"{seen}. Convert it, or keep it inside apply"
            + (" or in state." if field == "params" else ".")
        )
        raise TypeError(msg)
