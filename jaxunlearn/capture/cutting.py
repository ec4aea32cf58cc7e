"""A network in two parts, cut at an activation that every path from the images passes.

What is below the cut is computed once and kept; what is above it can be trained alone.
The place is found in the program itself, in inference and in training mode alike: of
all values through which alone the images reach the logits, the last one above which the
wanted weights are still used, and below which no parameter of theirs is. So a residual
network is cut before a block, never inside one, and dropout right below the wanted
weights stays above the cut.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import Array, Float, PyTree

from jaxunlearn.capture.jaxprs import bind, evaluate, open_jaxpr
from jaxunlearn.capture.layout import path_name
from jaxunlearn.checks import check_choice
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.network import main_output

# Images in the traces that look for the place: a prime that is no size of a layer.
_COUNT = 1009

# The number of an equation, and of one of its results; of the images themselves:
Place = tuple[int, int]
_IMAGES = (-1, 0)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where a network is cut. Static: no arrays.

    Attributes:
      above: paths of the parameter leaves that are used above, and only there.
      inference, training: which value is handed on in each mode's program.
      equations: how many each program has, for any number of images but one.
      shape, dtype: of an image as `prepare` returns it.
    """

    above: frozenset[str]
    inference: Place
    training: Place
    equations: tuple[int, int]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def at_images(self) -> bool:
        """Whether the whole network is above."""
        return self.inference == _IMAGES

    def below(
        self, classifier: Classifier, images: Float[Array, "n h w c"]
    ) -> Float[Array, "n ..."]:
        """The activation, in inference mode, of images as `prepare` returns them."""
        if self.at_images:
            return images
        # Of a single image the program may be another: it broadcasts less.
        given = jnp.concatenate([images, images]) if len(images) == 1 else images
        program = self._checked(_inference(classifier, _shape(given)), 0)
        inputs = jax.tree.leaves((classifier.params, classifier.state, given))
        value = program.result_of(self.inference)
        return program.run(inputs, {}, [value])[0][: len(images)]

    def logits(
        self, classifier: Classifier, activation: Float[Array, "n ..."]
    ) -> Float[Array, "n k"]:
        """Logits in inference mode, from the activation on."""
        if self.at_images:
            return classifier.logits(activation)
        n = len(activation)
        given = jnp.concatenate([activation, activation]) if n == 1 else activation
        program = self._checked(_inference(classifier, self._images(len(given))), 0)
        inputs = [*jax.tree.leaves((classifier.params, classifier.state)), None]
        known = {program.result_of(self.inference): given}
        return program.run(inputs, known, program.outputs)[0][:n]

    def logits_in_training(
        self, classifier: Classifier, activation: Float[Array, "n ..."], key: Array
    ) -> tuple[Float[Array, "n k"], PyTree]:
        """Logits and the new state in training mode, of two images or more.

        State that images reach otherwise than through the cut stays as it is.
        """
        if self.at_images:
            outputs, state = classifier.network.apply_train(
                classifier.params, classifier.state, activation, key
            )
            return main_output(outputs), state
        images = self._images(len(activation))
        program = self._checked(_training(classifier, images), 1)
        leaves, structure = jax.tree.flatten(classifier.state)
        given = [*jax.tree.leaves(classifier.params), *leaves, None, key]
        cut = program.result_of(self.training)
        logits, *state = program.outputs
        below = program.reached(cut)
        moved = [
            i for i, v in enumerate(state) if isinstance(v, Literal) or v not in below
        ]
        wanted = [logits, *(state[i] for i in moved)]
        outputs, *new = program.run(given, {cut: activation}, wanted)
        for i, value in zip(moved, new, strict=True):
            leaves[i] = value
        return outputs, jax.tree.unflatten(structure, leaves)

    def _images(self, n: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((n, *self.shape), self.dtype)

    def _checked(self, program: "_Program", mode: int) -> "_Program":
        if len(program.eqns) != self.equations[mode]:
            msg = (
                f"The network's program has {len(program.eqns)} equations here and had "
                f"{self.equations[mode]} where it was cut: it must be the same for "
                "every number of images."
            )
            raise ValueError(msg)
        return program


def find_cut(
    classifier: Classifier, images: Float[Array, "n h w c"] | Any, weights: list[str]
) -> Cut:
    """The last place above which all these weights are used; the images at worst.

    Args:
      classifier: of any network that has `apply_train`.
      images: as `prepare` returns them; only the shape of one and the dtype matter.
      weights: paths of parameter leaves, as `layer_table` writes them.

    Raises:
      TypeError: the network has no training mode.
      ValueError: there is no such leaf.
    """
    paths = jax.tree_util.tree_leaves_with_path(classifier.params)
    names = [path_name(path) for path, _ in paths]
    for weight in weights:
        check_choice("weights", weight, names)
    wanted = {names.index(weight) for weight in weights}
    shape, dtype = tuple(images.shape[1:]), np.dtype(images.dtype)
    given = classifier, jax.ShapeDtypeStruct((_COUNT, *shape), dtype)
    inference, training = _inference(*given), _training(*given)
    places = frozenset(range(len(names))), _IMAGES, _IMAGES
    groups, twins = inference.cuts(), training.cuts()
    # The first group's places have no parameters below.
    for above, found in reversed([*groups.items()][1:]):
        # As far as both modes do the same: what only training does is above.
        alike = list(
            itertools.takewhile(
                lambda pair: inference.says(pair[0]) == training.says(pair[1]),
                zip(found, twins.get(above, ()), strict=False),
            )
        )
        if wanted <= above and alike:
            places = above, *alike[-1]
            break
    above, *both = places
    sizes = len(inference.eqns), len(training.eqns)
    return Cut(frozenset(names[i] for i in above), *both, sizes, shape, dtype)


class _Program:
    """A flat list of equations, calls through `jit` opened."""

    def __init__(self, function, params, state, images, *further):
        given = params, state, images, *further
        self._params = len(jax.tree.leaves(params))
        images = self._params + len(jax.tree.leaves(state))
        leaves, structure = jax.tree.flatten(given)
        flat = lambda *x: jax.tree.leaves(function(*jax.tree.unflatten(structure, x)))  # noqa: E731
        jaxpr, consts = open_jaxpr(jax.make_jaxpr(flat)(*leaves))
        opened = jax.make_jaxpr(
            lambda *x: evaluate(jaxpr, consts, x, lambda equation: None)
        )(*leaves)
        self._jaxpr, self._consts = open_jaxpr(opened)
        self._images = self._jaxpr.invars[images]
        self.eqns, self.outputs = self._jaxpr.eqns, self._jaxpr.outvars

    def result_of(self, place: Place):
        """The value at a place."""
        number, output = place
        return self._images if place == _IMAGES else self.eqns[number].outvars[output]

    def says(self, place: Place) -> tuple[Any, ...]:
        """What tells one place's equation from another's."""
        aval = self.result_of(place).aval
        if place == _IMAGES:
            return aval.shape, aval.dtype
        eqn = self.eqns[place[0]]
        numbers = [str(v.val) for v in eqn.invars if isinstance(v, Literal)]
        return aval.shape, aval.dtype, eqn.primitive.name, place[1], *numbers

    def reached(self, cut=None) -> set[Any]:
        """What the images reach, otherwise than through `cut`."""
        reached = {self._images} - {cut}
        for eqn in self.eqns:
            if any(v in reached for v in _variables(eqn)):
                reached.update(v for v in eqn.outvars if v is not cut)
        return reached

    def needed(self, outputs, known=()) -> list[int]:
        """Numbers of the equations behind `outputs`, down to what is known."""
        wanted, numbers = {v for v in outputs if not isinstance(v, Literal)}, []
        wanted -= set(known)
        for number in range(len(self.eqns) - 1, -1, -1):
            eqn = self.eqns[number]
            if any(v in wanted for v in eqn.outvars):
                numbers.append(number)
                wanted.update(v for v in _variables(eqn) if v not in known)
        return numbers[::-1]

    def cuts(self) -> dict[frozenset[int], list[Place]]:
        """The places through which alone the images reach the logits, in order.

        By the parameters that are used above; places below which one of these is used
        too are left out. In the program's order: at such a place a single value that
        the images reach is still to be used.
        """
        logits, reached = self.outputs[:1], self.reached()
        needed = self.needed(logits)
        last = {v: number for number in needed for v in _variables(self.eqns[number])}
        open_values, values = {self._images}, {}
        for number in [-1, *needed]:
            if number >= 0:
                outputs = (v for v in self.eqns[number].outvars if v in reached)
                open_values.update(outputs)
                open_values = {v for v in open_values if last.get(v, -1) > number}
            if len(open_values) == 1:
                values.update(dict.fromkeys(open_values))
        index = {v: i for i, v in enumerate(self._jaxpr.invars[: self._params])}
        where = {
            v: (number, output)
            for number, eqn in enumerate(self.eqns)
            for output, v in enumerate(eqn.outvars)
        }

        def used(numbers):
            variables = (v for n in numbers for v in _variables(self.eqns[n]))
            return frozenset(index[v] for v in variables if v in index)

        found: dict[frozenset[int], list[Place]] = {}
        for value in values:
            if value.aval.shape[:1] == (_COUNT,):
                above = used(self.needed(logits, {value}))
                if not above & used(self.needed([value])):
                    found.setdefault(above, []).append(where.get(value, _IMAGES))
        return found

    def run(self, given, known, outputs) -> list[Array]:
        """The outputs, from inputs and values that are known."""
        values = dict(zip(self._jaxpr.invars, given, strict=True))
        values |= dict(zip(self._jaxpr.constvars, self._consts, strict=True)) | known

        def value(v):
            return v.val if isinstance(v, Literal) else values[v]

        for number in self.needed(outputs, known):
            eqn = self.eqns[number]
            results = bind(eqn, [value(v) for v in eqn.invars])
            values |= zip(eqn.outvars, results, strict=True)
        return [value(v) for v in outputs]


def _variables(eqn):
    return [v for v in eqn.invars if not isinstance(v, Literal)]


def _inference(classifier, images) -> _Program:
    def logits(params, state, images):
        return classifier.replace(params=params, state=state).logits(images)

    return _Program(logits, classifier.params, classifier.state, images)


def _training(classifier, images) -> _Program:
    def logits(params, state, images, key):
        given = params, state, images, key
        outputs, state = classifier.network.apply_train(*given)
        return main_output(outputs), state

    key = jax.eval_shape(functools.partial(jax.random.key, 0))
    return _Program(logits, classifier.params, classifier.state, images, key)


def _shape(images):
    return jax.ShapeDtypeStruct(images.shape, images.dtype)
