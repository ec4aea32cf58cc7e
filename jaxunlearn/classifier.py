"""A classifier as a pure function of parameters, state and images.

`freeze` turns a Flax module and its variables into a `Classifier`; `thaw` goes back to
the user's own format. Nothing between the two knows Flax.
"""

import dataclasses
import inspect
from collections.abc import Hashable, Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

# What a module's `__call__` takes to tell evaluation from training, with the value
# that stands for evaluation; training is the opposite.
_EVALUATION_FLAGS = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


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
            value = np.atleast_1d(np.asarray(getattr(self, name), dtype=np.float64))
            if value.ndim != 1 or not np.all(np.isfinite(value)):
                msg = f"Preprocess.{name} must be finite, one number a channel; it is {value}."  # noqa: E501
                raise ValueError(msg)
            object.__setattr__(self, name, tuple(value.tolist()))
        if min(self.std) <= 0:
            msg = f"Preprocess.std must be positive in every channel; it is {self.std}."
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


class Network:
    """The static half of a classifier: how parameters and images become logits.

    Hashable; two networks made from equal modules are equal, so that functions compiled
    for one serve the other. Images are already preprocessed here.
    """

    def init(self, key: Array, image_shape: tuple[int, ...]) -> tuple[PyTree, PyTree]:
        """Fresh `(params, state)` for images of shape `image_shape` (h, w, c)."""
        raise NotImplementedError

    def apply(self, params: PyTree, state: PyTree, images: Array) -> Array:
        """Logits `[n, k]` in inference mode, deterministic."""
        raise NotImplementedError

    def apply_train(
        self, params: PyTree, state: PyTree, images: Array, key: Array
    ) -> tuple[Array, PyTree]:
        """Logits and the new state, dropout and batch statistics on."""
        raise NotImplementedError

    def thaw(self, params: PyTree, state: PyTree) -> Any:
        """The user's own format again."""
        raise NotImplementedError


class _Module:
    """A linen module compared by its fields, or by identity if those have no hash."""

    def __init__(self, module: nn.Module):
        self.module = module
        try:
            hash(module)
            self._key: Hashable = module
        except TypeError:
            self._key = id(module)

    def __eq__(self, other):
        return (
            type(other) is _Module
            and type(self.module) is type(other.module)
            and self._key == other._key
        )

    def __hash__(self):
        return hash((type(self.module), self._key))


@dataclasses.dataclass(frozen=True)
class LinenNetwork(Network):
    """A linen module. `boxed` is the structure of the user's own variables."""

    module: _Module
    evaluation: tuple[tuple[str, Hashable], ...]
    training: tuple[tuple[str, Hashable], ...]
    boxed: Any

    def init(self, key, image_shape):
        """See `Network.init`."""
        keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
        images = jnp.zeros((1, *image_shape))
        variables = self.module.module.init(keys, images, **dict(self.evaluation))
        return _split_variables(variables)

    def apply(self, params, state, images):
        """See `Network.apply`."""
        variables = {"params": params, **state}
        return self.module.module.apply(variables, images, **dict(self.evaluation))

    def apply_train(self, params, state, images, key):
        """See `Network.apply_train`."""
        keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
        logits, changed = self.module.module.apply(
            {"params": params, **state},
            images,
            **dict(self.training),
            rngs=keys,
            mutable=list(state),
        )
        return logits, {**state, **nn.meta.unbox(flax.core.unfreeze(changed))}

    def thaw(self, params, state):
        """See `Network.thaw`."""
        leaves = jax.tree.leaves({"params": params, **state})
        # Plain dictionaries are flattened by their sorted keys, an OrderedDict is not.
        numbered = jax.tree.unflatten(self.boxed, range(len(leaves)))
        places = jax.tree.leaves(flax.core.unfreeze(numbered))
        ordered = [leaves[i] for i in np.argsort(places)]
        return jax.tree.unflatten(self.boxed, ordered)


@dataclasses.dataclass(frozen=True)
class NNXNetwork(Network):
    """An NNX module: its graph as the user made it, in evaluation and in training."""

    original: Any
    evaluation: Any
    training: Any
    params_structure: Any
    state_structure: Any
    evaluation_options: tuple[tuple[str, Hashable], ...]
    training_options: tuple[tuple[str, Hashable], ...]

    def init(self, key, image_shape):
        """Refused: NNX modules are built by their own constructors."""
        msg = (
            "An NNX network cannot draw fresh parameters: build a new module with its "
            "own constructor and new nnx.Rngs, and freeze that one."
        )
        raise TypeError(msg)

    def _merge(self, graph, params, state):
        return nnx.merge(
            graph,
            jax.tree.unflatten(self.params_structure, jax.tree.leaves(params)),
            jax.tree.unflatten(self.state_structure, jax.tree.leaves(state)),
        )

    def apply(self, params, state, images):
        """See `Network.apply`."""
        module = self._merge(self.evaluation, params, state)
        return module(images, **dict(self.evaluation_options))

    def apply_train(self, params, state, images, key):
        """See `Network.apply_train`."""
        streams = jax.tree.unflatten(self.state_structure, jax.tree.leaves(state))
        reseeded = jax.tree.map(
            lambda v: (
                v.replace(jax.random.fold_in(key, jax.random.bits(v.get_value())))
                if isinstance(v, nnx.RngKey)
                else v
            ),
            streams,
            is_leaf=lambda v: isinstance(v, nnx.Variable),
        )
        module = self._merge(self.training, params, reseeded)
        logits = module(images, **dict(self.training_options))
        return logits, nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[2])

    def thaw(self, params, state):
        """See `Network.thaw`."""
        return self._merge(self.original, params, state)


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

    def __call__(self, images: Array | np.ndarray) -> Float[Array, "n k"]:
        """Logits, through `preprocess`.

        Args:
          images: `[n, h, w, c]`. With a `Preprocess`: uint8, or floats that are pixels
            in [0, 1]. Without one: floats in whatever range the network expects.

        Raises:
          TypeError: images are integers and there is no `Preprocess`, or complex.
          ValueError: images are not `[n, h, w, c]`, or there is not one row of logits
            for each.
        """
        images = self.prepare(images)
        logits = self.network.apply(self.params, self.state, images)
        if jnp.ndim(logits) != 2 or logits.shape[0] != images.shape[0]:
            msg = (
                f"The network must return logits of shape [n, classes]; for "
                f"{images.shape[0]} images it returned {jnp.shape(logits)}."
            )
            raise ValueError(msg)
        return logits

    def prepare(self, images: Array | np.ndarray) -> Float[Array, "n h w c"]:
        """Images as the network expects them: checked and standardised."""
        check_images(images, self.preprocess)
        if self.preprocess is not None:
            return self.preprocess(images)
        return jnp.asarray(images)

    def replace(self, **fields) -> "Classifier":
        """A copy with these fields replaced."""
        return dataclasses.replace(self, **fields)


jax.tree_util.register_dataclass(
    Classifier, data_fields=["params", "state"], meta_fields=["preprocess", "network"]
)


def check_images(images: Array | np.ndarray, preprocess: Preprocess | None) -> None:
    """Refuse images of the wrong rank, type or number of channels, in a sentence."""
    shape, dtype = jnp.shape(images), jnp.result_type(images)
    if len(shape) != 4:
        msg = f"images must be [n, h, w, c]; their shape is {shape}. A single image needs a leading axis: images[None]."  # noqa: E501
        raise ValueError(msg)
    if dtype == jnp.uint8 and preprocess is None:
        msg = (
            "images are uint8, and this classifier has no Preprocess to turn them into "
            "floats: freeze(..., preprocess=Preprocess(mean, std)), or pass floats in "
            "the range that the network was trained on."
        )
        raise TypeError(msg)
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        msg = f"images must be uint8 (with a Preprocess) or floating point; they are {dtype}."  # noqa: E501
        raise TypeError(msg)
    if preprocess is not None and len(preprocess.mean) not in (1, shape[-1]):
        msg = (
            f"Preprocess has {len(preprocess.mean)} channels and the images have "
            f"{shape[-1]}: their shape is {shape}."
        )
        raise ValueError(msg)


def freeze(
    model: nn.Module | nnx.Module,
    variables: Mapping[str, Any] | None = None,
    *,
    preprocess: Preprocess | None = None,
    **call_options: Hashable,
) -> Classifier:
    """Turn a trained Flax module into a `Classifier`.

    Args:
      model: a linen module, or an NNX module (which is copied, never changed).
      variables: linen only: what `model.init` returned or training made of it;
        `nn.Partitioned` boxes are opened, and closed again by `thaw`.
      preprocess: from pixels to what the network expects.
      **call_options: passed to the module's `__call__`. `train=False`,
        `deterministic=True` and their kin are passed anyway where it takes them.

    Raises:
      TypeError: `model` is no Flax module, an option is unknown to its `__call__`, or
        `variables` are given for NNX or missing for linen.
      ValueError: `variables` hold no `params`.

    >>> model = nn.Dense(3)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> freeze(model, variables).params["kernel"].shape
    (4, 3)
    """
    if not isinstance(model, nn.Module | nnx.Module):
        msg = (
            f"model must be a Flax linen or NNX module; it is a {type(model).__name__}."  # noqa: E501
        )
        raise TypeError(msg)
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        msg = f"preprocess must be a Preprocess or None; it is a {type(preprocess).__name__}."  # noqa: E501
        raise TypeError(msg)
    evaluation, training = _call_options(model, call_options)
    if isinstance(model, nnx.Module):
        return _freeze_nnx(model, variables, preprocess, evaluation, training)
    if not isinstance(variables, Mapping):
        msg = (
            "A linen module needs its variables: freeze(model, variables), with "
            f"variables as model.init returns them; got {type(variables).__name__}."
        )
        raise TypeError(msg)
    if "params" not in variables:
        msg = (
            f"variables must hold a 'params' collection; they hold {sorted(variables)}."  # noqa: E501
        )
        raise ValueError(msg)
    network = LinenNetwork(
        _Module(model), evaluation, training, jax.tree.structure(variables)
    )
    params, state = _split_variables(variables)
    return Classifier(params, state, preprocess, network)


def thaw(classifier: Classifier) -> Any:
    """The way back: linen variables, or a new NNX module of the user's class.

    >>> model = nn.Dense(3)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> bool((thaw(freeze(model, variables))["params"]["bias"] == 0).all())
    True
    """
    return classifier.network.thaw(classifier.params, classifier.state)


def _freeze_nnx(model, variables, preprocess, evaluation, training) -> Classifier:
    if variables is not None:
        msg = "An NNX module holds its own variables: freeze(model) without a second argument."  # noqa: E501
        raise TypeError(msg)
    original, params, state = nnx.split(model, nnx.Param, ...)
    # eval() and train() set flags in place, hence the copy.
    copy = nnx.merge(original, params, state)
    copy.eval()
    evaluation_graph = nnx.graphdef(copy)
    copy.train()
    network = NNXNetwork(
        original,
        evaluation_graph,
        nnx.graphdef(copy),
        jax.tree.structure(params),
        jax.tree.structure(state),
        evaluation,
        training,
    )
    return Classifier(
        nnx.to_pure_dict(params), nnx.to_pure_dict(state), preprocess, network
    )


def _split_variables(variables) -> tuple[PyTree, PyTree]:
    variables = nn.meta.unbox(flax.core.unfreeze(variables))
    state = {name: tree for name, tree in variables.items() if name != "params"}
    return variables["params"], state


def _call_options(model, options):
    """The arguments of `__call__` in evaluation and in training, sorted by name."""
    parameters = inspect.signature(type(model).__call__).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in options:
        if name not in parameters and not open_ended:
            msg = (
                f"{type(model).__name__}.__call__ takes no argument {name!r}; it takes "
                f"{[p for p in parameters if p != 'self']}."
            )
            raise TypeError(msg)
    flags = {k: v for k, v in _EVALUATION_FLAGS.items() if k in parameters}
    evaluation = {**flags, **options}
    training = {**options, **{name: not value for name, value in flags.items()}}
    return tuple(sorted(evaluation.items())), tuple(sorted(training.items()))
