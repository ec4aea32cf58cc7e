"""Flax modules as pure functions of parameters, state and images."""

import contextlib
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from jaxunlearn.classifier.network import Network, Static

# What a module's `__call__` takes to tell evaluation from training, and the values that
# stand for the two.
_FLAGS: dict[str, tuple[Hashable, Hashable]] = {
    "train": (False, True),
    "training": (False, True),
    "is_train": (False, True),
    "is_training": (False, True),
    "deterministic": (True, False),
    "use_running_average": (True, False),
    "mode": ("eval", "train"),
}
# A mode that says something else, such as "same" or "max", is no such flag.
_MODES = ("train", "training", "eval", "evaluate", "test", "val", "infer", "inference")


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
        # As for training, which may need more: auxiliary heads.
        variables = self.module.value.init(keys, images, **dict(self.training))
        variables.pop("intermediates", None)  # sown, and no state
        return _split_variables(variables)

    def apply(self, params, state, images):
        """See `Network.apply`."""
        variables = {"params": params, **state}
        return self.module.value.apply(variables, images, **dict(self.evaluation))

    def apply_train(self, params, state, images, key):
        """See `Network.apply_train`."""
        keys = None
        if key is not None:
            keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))

        def call():
            return self.module.value.apply(
                {"params": params, **state},
                images,
                **dict(self.training),
                rngs=keys,
                mutable=list(state),
            )

        passing = nn.intercept_methods(_without_dropout)
        with contextlib.nullcontext() if keys else passing:
            logits, changed = _with_axes(call)
        return logits, _kept(state, nn.meta.unbox(flax.core.unfreeze(changed)))

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
    undropped: Any  # in training, but for dropout
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
        graph = self.undropped if key is None else self.training
        reseeded = state if key is None else self._reseeded(state, key)

        def call():
            module = self._merge(graph, params, reseeded)
            logits = module(images, **dict(self.training_options))
            return logits, nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[2])

        logits, changed = _with_axes(call)
        return logits, _kept(state, changed)

    def _reseeded(self, state, key):
        """The state with random streams that depend on the key."""
        streams = jax.tree.unflatten(self.state_structure, jax.tree.leaves(state))
        return jax.tree.map(
            lambda v: (
                v.replace(jax.random.fold_in(key, jax.random.bits(v.get_value())))
                if isinstance(v, nnx.RngKey)
                else v
            ),
            streams,
            is_leaf=lambda v: isinstance(v, nnx.Variable),
        )

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
    options = _options(model, call_options)
    _check_known(model, dict(options[0]))
    network = LinenNetwork(Static(model), *options, boxed)
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
    options = _options(model, call_options)
    _check_known(model, dict(options[0]))
    # eval() and train() set flags in place, pop() takes away what `sow` has gathered,
    # which grows with every call and is no state: hence the copy.
    copy = nnx.clone(model)
    nnx.pop(copy, nnx.Intermediate)
    original, params, state = nnx.split(copy, nnx.Param, ...)
    copy.eval(**_ATTRIBUTES)
    evaluation_graph = nnx.graphdef(copy)
    copy.train(**{name: not value for name, value in _ATTRIBUTES.items()})
    training_graph = nnx.graphdef(copy)
    copy.set_attributes(deterministic=True, raise_if_not_found=False)
    network = NNXNetwork(
        original,
        evaluation_graph,
        training_graph,
        nnx.graphdef(copy),
        jax.tree.structure(params),
        jax.tree.structure(state),
        *options,
    )
    return network, nnx.to_pure_dict(params), nnx.to_pure_dict(state)


# Attributes that tell the two apart, beside those that `eval()` knows.
_ATTRIBUTES = {
    "training": False,
    "is_training": False,
    "is_train": False,
    "inference": True,
}


def _check_known(model, known) -> None:
    """Ask for what evaluation needs, nobody has given and has no default."""
    parameters = list(inspect.signature(type(model).__call__).parameters.values())
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in parameters[2:]:  # After `self` and the images.
        required = parameter.default is parameter.empty
        if required and parameter.kind not in variadic and parameter.name not in known:
            name = parameter.name
            msg = (
                f"{type(model).__name__}.__call__ needs {name}, and what it is for "
                f"inference is not known: say it, as freeze(..., {name}=...) or, in "
                f"training, fit(..., {name}=...)."
            )
            raise TypeError(msg)


def _split_variables(variables) -> tuple[PyTree, PyTree]:
    variables = nn.meta.unbox(flax.core.unfreeze(variables))
    state = {name: tree for name, tree in variables.items() if name != "params"}
    return variables["params"], state


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
    flags = {n: v for n, v in _FLAGS.items() if n in parameters}
    if "mode" in flags:
        default = parameters["mode"].default
        if default in _MODES:
            flags["mode"] = (default, "train")
            if default in _MODES[:2]:
                flags["mode"] = ("eval", default)
        elif default is not inspect.Parameter.empty:
            del flags["mode"]
    evaluation = {name: value for name, (value, _) in flags.items()} | options
    training = {**options, **{name: value for name, (_, value) in flags.items()}}
    return tuple(sorted(evaluation.items())), tuple(sorted(training.items()))


def _without_dropout(call, given, options, context):
    """Of linen's dropout what it was given; of everything else what it computes."""
    dropout = isinstance(context.module, nn.Dropout)
    passing = dropout and context.method_name == "__call__"
    return given[0] if passing else call(*given, **options)


def _kept(state, changed):
    """What a call has left in the places of the state; what it sows beside is none."""
    left = dict(jax.tree_util.tree_leaves_with_path(changed))

    def new(path, leaf):
        found = left.get(path, leaf)
        return found if jnp.shape(found) == jnp.shape(leaf) else leaf

    return jax.tree_util.tree_map_with_path(new, state)


def _with_axes(call: Callable[[], Any]) -> Any:
    """The result of a call in which a network may name the axis that devices share.

    As in `BatchNorm(axis_name="batch")`, for `pmap`. Here one program sees the whole
    minibatch, so that each such axis has a length of one.
    """
    bound: list[str] = []
    while True:
        within = call
        for name in bound:
            within = functools.partial(_over_one, within, name)
        try:
            return within()
        except NameError as error:  # JAX's, which holds the name in its words alone
            unbound = re.search(r"unbound axis name: (\w+)", str(error))
            if unbound is None or unbound[1] in bound:
                raise
            bound.append(unbound[1])


def _over_one(call, name):
    one = jax.vmap(lambda _: call(), axis_name=name, out_axes=None)
    return one(jnp.zeros(1))
