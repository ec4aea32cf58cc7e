"""A classifier as a pure function of parameters, state and images.

`freeze` turns a Flax module with its variables, or a `Function`, into a `Classifier`;
`thaw` goes back to the user's own format. Nothing between the two knows a framework.
"""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxunlearn.checks import short
from jaxunlearn.classifier.flax_network import of_linen, of_nnx
from jaxunlearn.classifier.function import Function, of_function
from jaxunlearn.classifier.images import MARGIN, check_images, refused_by
from jaxunlearn.classifier.network import REFUSALS, Network


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Standardise pixels: `(pixels - mean) / std`, per channel.

    Args:
      mean: per channel (or one number for all), in units of [0, 1] pixels.
      std: likewise, positive.

    >>> Preprocess(mean=0.5, std=0.25)(np.full((1, 2, 2, 1), 255, np.uint8)).max()
    Array(2., dtype=float32)
    """

    mean: Any
    std: Any

    def __post_init__(self):
        for name in ("mean", "std"):
            given = getattr(self, name)
            try:
                value = np.atleast_1d(np.asarray(given, dtype=np.float64))
            except (TypeError, ValueError, OverflowError):  # No numbers.
                value = np.array(np.nan)
            if value.ndim != 1 or not np.all(np.isfinite(value)):
                msg = f"Preprocess.{name} must be finite, one number a channel; it is {short(given)}."  # noqa: E501
                raise ValueError(msg)
            object.__setattr__(self, name, tuple(value.tolist()))
        if min(self.std) <= 0:
            msg = f"Preprocess.std must be positive in every channel; it is {self.std}."
            raise ValueError(msg)
        if not -MARGIN <= min(self.mean) <= max(self.mean) <= 1 + MARGIN:
            msg = f"Preprocess takes pixels in [0, 1], and a mean of them; it is {self.mean}. Divide mean and std of pixels of 0 to 255 by 255."  # noqa: E501
            raise ValueError(msg)

    def __call__(self, images: Array | np.ndarray) -> Float[Array, "..."]:
        """Standardise uint8 images, or floats that are pixels in [0, 1]."""
        images = jnp.asarray(images)
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        # Explicit shapes: the library promises to run under rank promotion "raise".
        shape = (1,) * (images.ndim - 1) + (-1,)
        mean = jnp.asarray(self.mean, images.dtype).reshape(shape)
        std = jnp.asarray(self.std, images.dtype).reshape(shape)
        return (images - mean) / std


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier: a pytree of `params` and `state`, the rest static.

    Attributes:
      params: the leaves that unlearning may move.
      state: the leaves that it may not, such as BatchNorm statistics.
      preprocess: from pixels to what the network expects, or None.
      network: how the leaves become a function.
    """

    params: PyTree
    state: PyTree
    preprocess: Preprocess | None
    network: Network

    def __call__(self, images: Array | np.ndarray | Any) -> Float[Array, "n k"]:
        """Logits, through `preprocess`.

        Args:
          images: `[n, h, w, c]`. With a `Preprocess`: uint8, or floats that are pixels
            in [0, 1]. Without one: floats in whatever range the network expects.

        Raises:
          TypeError: images are integers and there is no `Preprocess`, or complex; or
            the network returns no array, or none of floats.
          ValueError: images are not `[n, h, w, c]`, or floats clearly outside [0, 1]
            where there is a `Preprocess`; or there is not one row of logits for each.
        """
        return self.logits(self.prepare(images))

    def logits(self, images: Float[Array, "n ..."]) -> Float[Array, "n k"]:
        """The network's checked logits for images as `prepare` returns them."""
        given = self.network.apply, self.params, self.state, images
        try:
            logits = given[0](*given[1:])
        except jax.errors.ConcretizationTypeError:
            raise  # The network asks for a value while it is traced; JAX says where.
        except REFUSALS as error:
            raise ValueError(refused_by(*given, error)) from error
        if not hasattr(logits, "shape"):
            msg = (
                "The network must return logits of shape [n, classes]; it returned a "
                f"{type(logits).__name__}. Freeze one that returns the logits alone."
            )
            raise TypeError(msg)
        if jnp.ndim(logits) != 2 or logits.shape[0] != images.shape[0]:
            msg = (
                f"The network must return logits of shape [n, classes]; for "
                f"{images.shape[0]} images it returned {jnp.shape(logits)}."
            )
            raise ValueError(msg)
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            msg = f"The network must return floating-point logits; they are {logits.dtype}."  # noqa: E501
            raise TypeError(msg)
        return logits

    def prepare(self, images: Array | np.ndarray | Any) -> Float[Array, "n h w c"]:
        """Images as the network expects them: checked and standardised."""
        images = check_images(images, self.preprocess)
        if self.preprocess is not None:
            return self.preprocess(images)
        return jnp.asarray(images)

    def replace(self, **fields) -> "Classifier":
        """A copy with these fields replaced."""
        return dataclasses.replace(self, **fields)


def check_classifier(classifier: Any, name: str = "classifier") -> None:
    """Refuse what is no `Classifier`."""
    if not isinstance(classifier, Classifier):
        msg = f"{name} must be a Classifier, as freeze(model, variables) returns it; it is a {type(classifier).__name__}."  # noqa: E501
        raise TypeError(msg)


jax.tree_util.register_dataclass(
    Classifier, data_fields=["params", "state"], meta_fields=["preprocess", "network"]
)


# How each kind of model is taken apart: into network, params and state.
_FORMATS = {nn.Module: of_linen, nnx.Module: of_nnx, Function: of_function}


def freeze(
    model: nn.Module | nnx.Module | Function | Any,
    variables: Mapping[str, Any] | None = None,
    *,
    preprocess: Preprocess | Any = None,
    **call_options: Hashable,
) -> Classifier:
    """Turn a trained network into a `Classifier`.

    Args:
      model: a linen module, an NNX module (which is copied, never changed), or a
        `Function` of any other framework.
      variables: linen only: what `model.init` returned or training made of it;
        `nn.Partitioned` boxes are opened, and closed again by `thaw`.
      preprocess: from pixels to what the network expects.
      **call_options: Flax only: passed to the module's `__call__`. `train=False`,
        `deterministic=True` and their kin are passed anyway where it takes them.

    Raises:
      TypeError: `model` is none of these, an option is unknown to its `__call__`, or
        `variables` are missing for linen or given for another.
      ValueError: `variables` hold no `params`.

    >>> model = nn.Dense(3)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> freeze(model, variables).params["kernel"].shape
    (4, 3)
    """
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        msg = f"preprocess must be a Preprocess or None; it is a {type(preprocess).__name__}."  # noqa: E501
        raise TypeError(msg)
    for kind, take_apart in _FORMATS.items():
        if isinstance(model, kind):
            network, params, state = take_apart(model, variables, call_options)
            return Classifier(params, state, preprocess, network)
    msg = (
        "model must be a Flax linen or NNX module, or a Function(apply, params, state) "
        f"for another framework; it is a {type(model).__name__}."
    )
    raise TypeError(msg)


def thaw(classifier: Classifier) -> Any:
    """The way back to the user's own format.

    Linen variables, a new NNX module of the user's class, or a `Function` with the same
    `apply`, whose `params` and `state` are those of the classifier.

    >>> model = nn.Dense(3)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> bool((thaw(freeze(model, variables))["params"]["bias"] == 0).all())
    True
    """
    check_classifier(classifier)
    return classifier.network.thaw(classifier.params, classifier.state)
