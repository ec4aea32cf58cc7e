"""Flax modules as pure functions of parameters, state and images."""

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
from jaxtyping import PyTree

from jaxunlearn.classifier.network import Network, Static

# What a module's `__call__` takes to tell evaluation from training, with the value
# that stands for evaluation; training is the opposite.
_EVALUATION_FLAGS = {
    "train": False,
    "training": False,
    "is_training": False,
    "is_train": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
    "eval": True,
    "is_eval": True,
    "test": True,
}
# Those that are attributes of a module at times, and no methods of `nnx.Module`.
_ATTRIBUTES = {name: _EVALUATION_FLAGS[name] for name in ("training", "is_training")}
_ATTRIBUTES |= {name: _EVALUATION_FLAGS[name] for name in ("is_train", "inference")}
# Of a `mode`, the values that stand for evaluation.
_EVALUATION_MODES = ("eval", "evaluation", "test", "inference", "infer", "predict")


@dataclasses.dataclass(frozen=True)
class LinenNetwork(Network):
    """A linen module. `boxed` is the structure of the user's own variables."""

    module: Static
    evaluation: tuple[tuple[str, Hashable], ...]
    training: tuple[tuple[str, Hashable], ...]
    boxed: Any

    def init(self, key, image_shape):
        """See `Network.init`."""
        keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
        images = jnp.zeros((1, *image_shape))
        variables = self.module.value.init(keys, images, **dict(self.evaluation))
        return _split_variables(variables)

    def apply(self, params, state, images):
        """See `Network.apply`."""
        variables = {"params": params, **state}
        return self.module.value.apply(variables, images, **dict(self.evaluation))

    def apply_train(self, params, state, images, key):
        """See `Network.apply_train`."""
        keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
        logits, changed = self.module.value.apply(
            {"params": params, **state},
            images,
            **dict(self.training),
            rngs=keys,
            mutable=list(state),
        )
        changed = nn.meta.unbox(flax.core.unfreeze(changed))
        structure = jax.tree.structure
        # What `sow` gathers grows with every call: it is no state.
        kept = {k for k in changed if structure(changed[k]) == structure(state[k])}
        return logits, {k: changed[k] if k in kept else v for k, v in state.items()}

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
        return logits, nnx.to_pure_dict(_split_module(module)[2])

    def thaw(self, params, state):
        """See `Network.thaw`."""
        return self._merge(self.original, params, state)


def of_linen(
    model: nn.Module,
    variables: Mapping[str, Any] | None,
    call_options: Mapping[str, Hashable],
) -> tuple[Network, PyTree, PyTree]:
    """Network, params and state of a linen module; see `classifier.freeze`."""
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
    boxed = jax.tree.structure(variables)
    network = LinenNetwork(Static(model), *_options(model, call_options), boxed)
    return network, *_split_variables(variables)


def of_nnx(
    model: nnx.Module,
    variables: Mapping[str, Any] | None,
    call_options: Mapping[str, Hashable],
) -> tuple[Network, PyTree, PyTree]:
    """Network, params and state of an NNX module; see `classifier.freeze`."""
    if variables is not None:
        msg = "An NNX module holds its own variables: freeze(model) without a second argument."  # noqa: E501
        raise TypeError(msg)
    # eval() and train() set flags in place, and pop() takes away, hence the copy.
    copy = nnx.clone(model)
    original, params, state = _split_module(copy)
    copy.eval(**_ATTRIBUTES)
    evaluation_graph = nnx.graphdef(copy)
    copy.train(**{name: not value for name, value in _ATTRIBUTES.items()})
    network = NNXNetwork(
        original,
        evaluation_graph,
        nnx.graphdef(copy),
        jax.tree.structure(params),
        jax.tree.structure(state),
        *_options(model, call_options),
    )
    return network, nnx.to_pure_dict(params), nnx.to_pure_dict(state)


def _split_variables(variables) -> tuple[PyTree, PyTree]:
    variables = nn.meta.unbox(flax.core.unfreeze(variables))
    state = {name: tree for name, tree in variables.items() if name != "params"}
    return variables["params"], state


def _split_module(module):
    """Graph, parameters and state of an NNX module, without what `sow` has gathered."""
    nnx.pop(module, nnx.Intermediate)
    return nnx.split(module, nnx.Param, ...)


def _options(model, options):
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
    for name, parameter in list(parameters.items())[2:]:
        _check_known(type(model).__name__, parameter, {name} & {*flags, *options})
    evaluation = {**flags, **options}
    training = {**options, **{name: not value for name, value in flags.items()}}
    return tuple(sorted(evaluation.items())), tuple(sorted(training.items()))


def _check_known(module, parameter, known) -> None:
    """Ask for an argument that evaluation needs and nobody has given."""
    name, default = parameter.name, parameter.default
    if known or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return
    if default is parameter.empty:
        wrong = "has no default"
    elif name == "mode" and default not in _EVALUATION_MODES:
        wrong = f"is {default!r} by default"
    else:
        return
    msg = (
        f"{module}.__call__ takes {name}, which {wrong}, and what stands for inference "
        f"is not known: say it, as in freeze(model, variables, {name}=...)."
    )
    raise TypeError(msg)
