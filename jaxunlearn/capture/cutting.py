"""A network in two parts, cut at an activation that every path from the images passes.

What is below the cut is computed once and kept; what is above it can be trained alone.
The place is found in the program itself, in inference and in training mode alike: of
all values through which alone the images reach the logits, the last one above which the
wanted weights are still used. So a residual network is cut before a block, never inside
one.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float, PyTree

from jaxunlearn.capture.jaxprs import bind, evaluate, open_jaxpr
from jaxunlearn.capture.layout import path_name
from jaxunlearn.checks import check_choice
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.network import main_output

# Images in the traces that look for the place: no size of a layer, as likely as not.
_COUNT = 7


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where a network is cut. Static: no arrays.

    Attributes:
      inference, training: numbers of the equations, in each mode's program, whose
        result is handed on; -1 is the images themselves.
      above: paths of the parameter leaves that are used above.
    """

    inference: int
    training: int
    above: frozenset[str]

    def below(
        self, classifier: Classifier, images: Float[Array, "n h w c"]
    ) -> Float[Array, "n ..."]:
        """The activation, in inference mode, of images as `prepare` returns them."""
        if self.inference < 0:
            return images
        program = _inference(classifier, images)
        given = jax.tree.leaves((classifier.params, classifier.state, images))
        return program.run(given, {}, [program.result_of(self.inference)])[0]

    def logits(
        self, classifier: Classifier, activation: Float[Array, "n ..."], image_shape
    ) -> Float[Array, "n k"]:
        """Logits in inference mode, from the activation on."""
        images = jax.ShapeDtypeStruct((len(activation), *image_shape), jnp.float32)
        if self.inference < 0:
            return classifier.logits(activation)
        program = _inference(classifier, images)
        given = jax.tree.leaves((classifier.params, classifier.state))
        known = {program.result_of(self.inference): activation}
        return program.run([*given, None], known, program.outputs)[0]

    def logits_in_training(
        self,
        classifier: Classifier,
        activation: Float[Array, "n ..."],
        key: Array,
        image_shape: tuple[int, ...],
    ) -> tuple[Float[Array, "n k"], PyTree]:
        """Logits and the new state in training mode; state below stays as it is."""
        if self.training < 0:
            outputs, state = classifier.network.apply_train(
                classifier.params, classifier.state, activation, key
            )
            return main_output(outputs), state
        images = jax.ShapeDtypeStruct((len(activation), *image_shape), jnp.float32)
        program = _training(classifier, images)
        leaves, structure = jax.tree.flatten(classifier.state)
        given = [*jax.tree.leaves(classifier.params), *leaves, None, key]
        cut = program.result_of(self.training)
        logits, *state = program.outputs
        # What depends on the images otherwise than through the cut.
        below = program.reached(cut)
        moved = [
            i for i, v in enumerate(state) if isinstance(v, Literal) or v not in below
        ]
        wanted = [logits, *(state[i] for i in moved)]
        outputs, *new = program.run(given, {cut: activation}, wanted)
        for i, value in zip(moved, new, strict=True):
            leaves[i] = value
        return outputs, jax.tree.unflatten(structure, leaves)


def find_cut(
    classifier: Classifier, image_shape: tuple[int, ...], weights: list[str]
) -> Cut:
    """The last place above which all these weights are used.

    Args:
      classifier: of any network that has `apply_train`.
      image_shape: (h, w, c).
      weights: paths of parameter leaves, as `layer_table` writes them.

    Raises:
      ValueError: there is no such leaf.
    """
    paths = jax.tree_util.tree_leaves_with_path(classifier.params)
    names = [path_name(path) for path, _ in paths]
    for weight in weights:
        check_choice("weights", weight, names)
    wanted = {names.index(weight) for weight in weights}
    images = jax.ShapeDtypeStruct((_COUNT, *image_shape), jnp.float32)
    inference, training = (f(classifier, images) for f in (_inference, _training))
    others = list(training.cuts())
    for place, above in inference.cuts():
        if wanted <= above:
            shape = inference.result_of(place).aval.shape
            for twin, also in others:
                if also == above and training.result_of(twin).aval.shape == shape:
                    return Cut(place, twin, frozenset(names[i] for i in above))
    return Cut(-1, -1, frozenset(names))


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
        self.outputs = self._jaxpr.outvars

    def result_of(self, place: int):
        """The value that an equation leaves; of -1, the images."""
        return self._images if place < 0 else self._jaxpr.eqns[place].outvars[0]

    def reached(self, cut=None) -> set[Any]:
        """What the images reach, otherwise than through `cut`."""
        reached = {self._images} - {cut}
        for eqn in self._jaxpr.eqns:
            if any(v in reached for v in _variables(eqn)):
                reached.update(v for v in eqn.outvars if v is not cut)
        return reached

    def needed(self, outputs, known=()) -> list[int]:
        """Numbers of the equations behind `outputs`, down to what is known."""
        wanted, numbers = {v for v in outputs if not isinstance(v, Literal)}, []
        wanted -= set(known)
        for number in range(len(self._jaxpr.eqns) - 1, -1, -1):
            eqn = self._jaxpr.eqns[number]
            if any(v in wanted for v in eqn.outvars):
                numbers.append(number)
                wanted.update(v for v in _variables(eqn) if v not in known)
        return numbers[::-1]

    def cuts(self) -> Iterator[tuple[int, set[int]]]:
        """Every place through which alone the images reach the logits, the last first.

        Each with the parameters that are used above it. In the program's order: at such
        a place a single value that the images reach is still to be used.
        """
        logits, eqns = self.outputs[:1], self._jaxpr.eqns
        reached, needed = self.reached(), self.needed(logits)
        last = {v: number for number in needed for v in _variables(eqns[number])}
        open_values, places = {self._images}, []
        for number in [-1, *needed]:
            if number >= 0:
                open_values.update(v for v in eqns[number].outvars if v in reached)
                open_values = {v for v in open_values if last.get(v, -1) > number}
            if len(open_values) == 1:
                (value,) = open_values
                places.append((number, value))
        index = {v: i for i, v in enumerate(self._jaxpr.invars[: self._params])}
        numbers = {v: n for n, eqn in enumerate(eqns) for v in eqn.outvars}
        for _, value in reversed(places):
            if value.aval.shape[:1] == (_COUNT,):
                above = self.needed(logits, {value})
                used = {v for n in above for v in _variables(eqns[n])}
                yield numbers.get(value, -1), {index[v] for v in index if v in used}

    def run(self, given, known, outputs) -> list[Array]:
        """The outputs, from inputs and values that are known."""
        values = dict(zip(self._jaxpr.invars, given, strict=True))
        values |= dict(zip(self._jaxpr.constvars, self._consts, strict=True)) | known

        def value(v):
            return v.val if isinstance(v, Literal) else values[v]

        for number in self.needed(outputs, known):
            eqn = self._jaxpr.eqns[number]
            results = bind(eqn, [value(v) for v in eqn.invars])
            values |= zip(eqn.outvars, results, strict=True)
        return [value(v) for v in outputs]


def _variables(eqn):
    return [v for v in eqn.invars if not isinstance(v, Literal)]


def _inference(classifier, images) -> _Program:
    def logits(params, state, images):
        return classifier.replace(params=params, state=state).logits(images)

    return _Program(logits, classifier.params, classifier.state, _shape(images))


def _training(classifier, images) -> _Program:
    def logits(params, state, images, key):
        given = params, state, images, key
        outputs, state = classifier.network.apply_train(*given)
        return main_output(outputs), state

    key = jax.eval_shape(functools.partial(jax.random.key, 0))
    given = classifier.params, classifier.state, _shape(images), key
    return _Program(logits, *given)


def _shape(images):
    return jax.ShapeDtypeStruct(images.shape, images.dtype)
