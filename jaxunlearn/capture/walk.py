"""The walk over a classifier's program that finds where each weight meets its input.

The inference function is traced for one image. Wherever a parameter leaf, seen through
steps that lose nothing, is an operand of a contraction (`contractions.CONTRACTIONS`)
and the other operand depends on the image, that operand is the weight's input. Any
other live use of a leaf freezes it, with the reason. The walk evaluates the program
while it looks, so that what it captures can be differentiated, vmapped, jitted and
sharded.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float

from jaxunlearn.capture.batch_norm import (
    Normalisation,
    Statistic,
    follow_statistic,
    scan_kinds,
)
from jaxunlearn.capture.contractions import CONTRACTIONS, Contraction
from jaxunlearn.capture.jaxprs import (
    bind,
    inner_jaxpr,
    open_jaxpr,
    reached_by_images,
    scan_split,
)
from jaxunlearn.capture.layout import View
from jaxunlearn.capture.tracking import (
    INLINED,
    PASSED_ON,
    Leaf,
    Value,
    follow_leaf,
    refusal,
    sliced,
)


@dataclasses.dataclass(frozen=True)
class Use:
    """One contraction of a leaf with an input."""

    leaf: int
    product: Contraction
    view: View  # how it sees the leaf
    # For each surrounding scan, outermost first: "groups" where it slices the leaf,
    # "rows" where it repeats it.
    scans: tuple[str, ...]
    # Of one image's product, the scans' axes leading.
    output: jax.ShapeDtypeStruct


# Also while people debug: without jit a scan would be unrolled, its leaves in slices.
@jax.disable_jit(False)
def capture(classifier, images: Float[Array, "n h w c"]) -> "Capture":
    """Run a classifier on images as it prepares them, and see every weight's input."""
    walk = Capture()
    per_image = walk_of(classifier, images[0])
    walk.logits, walk.operands = jax.vmap(functools.partial(per_image, walk))(images)
    return walk


def walk_of(classifier, image: Float[Array, "h w c"]) -> Callable[..., tuple[Any, Any]]:
    """`(walk, image) -> (logits, operands by key)` for images like this one.

    The walk gathers what is static; it may be run again and differentiated.
    """
    params, params_structure = jax.tree.flatten(classifier.params)
    state, state_structure = jax.tree.flatten(classifier.state)

    def one(params, state, image):
        params = jax.tree.unflatten(params_structure, params)
        state = jax.tree.unflatten(state_structure, state)
        network = classifier.replace(params=params, state=state)
        return network.logits(image[None])[0]

    closed = jax.make_jaxpr(one)(params, state, image)
    jaxpr, consts = open_jaxpr(closed)
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    used = {v for eqn in jaxpr.eqns for v in eqn.invars if not hasattr(v, "val")}
    places = jaxpr.invars[len(params) : len(params) + len(state)]

    def per_image(walk, image):
        values = [
            *(Value(p, leaf=Leaf(i, View(jnp.shape(p)))) for i, p in enumerate(params)),
            *(
                Value(s, statistic=Statistic("leaf", i, tuple(range(jnp.ndim(s)))))
                for i, s in enumerate(state)
            ),
            Value(image, image=True),
        ]
        (logits,), operands = walk.run(jaxpr, consts, values, "", 0)
        walk.consume(logits, "it is returned as the logits")
        walk.live_state = {i for i, place in enumerate(places) if place in used}
        for index in range(len(params)):
            if not any(use.leaf == index for use in walk.uses.values()):
                walk.reasons.setdefault(index, "no live equation uses it")
        return logits.array, operands

    return per_image


class Capture:
    """Evaluates a jaxpr equation by equation, and holds what it has seen.

    What is static gathers under keys that name the equation, so that tracing a body
    twice changes nothing. What is traced is returned, and stored at the end.
    """

    logits: Array
    # `(operand, weight)` with the image axis, then scan axes leading; the weight is 0
    # where a branch was not taken (the operand is zero there).
    operands: dict[str, tuple[Array, Array]]

    def __init__(self):
        self.uses: dict[str, Use] = {}
        self.normalisations: dict[str, Normalisation] = {}
        # By leaf, why it has no input.
        self.reasons: dict[int, str] = {}
        # State leaves, by index, that the logits depend on.
        self.live_state: set[int] = set()
        # Uses on only one side of a select that depends on the image.
        self.one_sided: set[str] = set()
        # By key, what is added to a use's product (here, of one iteration of each
        # surrounding scan): gradients with respect to zeros are those at the outputs.
        self.added: dict[str, Array] = {}
        # Of the surrounding scans.
        self._lengths: tuple[int, ...] = ()

    def run(self, jaxpr, consts, inputs, path, depth):
        """The values of the outputs, and the operands captured by key."""
        values: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        values.update(zip(jaxpr.constvars, map(Value, consts), strict=True))
        operands: dict[str, tuple[Array, Array]] = {}

        def read(atom):
            # Literals carry their value; variables do not.
            return Value(atom.val) if hasattr(atom, "val") else values[atom]

        for number, eqn in enumerate(jaxpr.eqns):
            inputs = [read(atom) for atom in eqn.invars]
            outputs, captured = self._equation(eqn, inputs, f"{path}{number}", depth)
            operands.update(captured)
            values.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars], operands

    def consume(self, value: Value, reason: str) -> None:
        """A leaf ends here without an input."""
        if value.leaf is not None:
            self.reasons.setdefault(value.leaf.index, reason)

    def _equation(self, eqn, inputs, key, depth):
        """The values of its outputs, and the operands captured in it by key."""
        name = eqn.primitive.name
        tracked = any(v.leaf is not None or v.statistic is not None for v in inputs)
        if tracked and name in _ENTERED:
            return _ENTERED[name](self, eqn, inputs, key, depth)
        arrays = bind(eqn, [v.array for v in inputs])
        if tracked and name in PASSED_ON:
            pairs = zip(inputs, arrays, strict=True)
            return [v._replace(array=array) for v, array in pairs], {}
        if name == "select_n":
            self._select(inputs)
        captured: dict[str, tuple[Array, Array]] = {}
        leaf = statistic = None
        if tracked:
            leaf = self._leaf(eqn, inputs, arrays, key, depth, captured)
            statistic = follow_statistic(eqn, inputs, key)
        if statistic is not None and statistic.key == key:
            (seen,) = (v.array for v in inputs if v.image)
            seen = jnp.broadcast_to(seen, eqn.outvars[0].aval.shape)
            captured[key] = (seen, jnp.ones(()))
        if statistic is not None and statistic.role == "normalised":
            _, mean, axes, slices, centred, variance = statistic
            kinds = scan_kinds(slices, depth)
            layer = Normalisation(mean, variance, axes, kinds)
            self.normalisations[centred] = layer
        if key in self.added:
            arrays[0] += self.added[key]
        image = any(v.image for v in inputs)
        uses = frozenset().union(*(v.uses for v in inputs))
        # What is captured of a leaf belongs to the uses; of a statistic it does not.
        uses = uses.union(k for k in captured if k in self.uses)
        return [Value(a, image, uses, leaf, statistic) for a in arrays], captured

    def _leaf(self, eqn, inputs, arrays, key, depth, captured):
        """The leaf that comes out; one that does not ends in a use or is frozen."""
        if eqn.primitive.name == "select_n":
            # A choice between a leaf and itself: what vmap makes of a `cond`.
            cases = {value.leaf for value in inputs[1:]}
            if len(cases) == 1 and None not in cases:
                return cases.pop()
        if inputs[0].leaf is not None:
            leaf = follow_leaf(eqn, inputs[0].leaf)
            if leaf is not None:
                return leaf
        for side, value in enumerate(inputs):
            if value.leaf is None:
                continue
            reason = refusal(eqn, inputs, side)
            if reason:
                self.consume(value, reason)
                continue
            shapes = [jnp.shape(v.array) for v in inputs]
            product = CONTRACTIONS[eqn.primitive.name].read(eqn.params, side, shapes)
            index, view, slices = value.leaf
            shape = (*self._lengths, *arrays[0].shape)
            output = jax.ShapeDtypeStruct(shape, arrays[0].dtype)
            scans = scan_kinds(slices, depth)
            self.uses[key] = Use(index, product, view, scans, output)
            captured[key] = (inputs[1 - side].array, jnp.ones(()))
        return None

    def _call(self, eqn, inputs, key, depth):
        inner, consts = inner_jaxpr(eqn)
        return self.run(inner, consts, inputs, f"{key}/", depth)

    def _select(self, inputs):
        """Uses on only one side of an image-dependent choice."""
        which, *cases = inputs
        if which.image and len(cases) > 1:
            shared = frozenset.intersection(*(case.uses for case in cases))
            either = frozenset.union(*(case.uses for case in cases))
            self.one_sided |= either - shared - which.uses

    def _scan(self, eqn, inputs, key, depth):
        params = eqn.params
        body, consts = open_jaxpr(params["jaxpr"])
        first, second = scan_split(params)
        fixed, carried, scanned = inputs[:first], inputs[first:second], inputs[second:]
        for value in carried:
            self.consume(value, "it is carried through a scan")
        uses = frozenset().union(*(v.uses for v in inputs))
        reached = reached_by_images(body, [v.image for v in inputs], first, second)
        ends: list[list[Value]] = []
        added = {k: x for k, x in self.added.items() if k.startswith(f"{key}/")}
        around = self.added, self._lengths

        def step(carry, xs):
            xs, added = xs
            self.added = {**around[0], **added}
            self._lengths = (*around[1], params["length"])
            ins = [
                *fixed,
                *(Value(c, i, uses) for c, i in zip(carry, reached, strict=True)),
                *(sliced(v, x, depth) for v, x in zip(scanned, xs, strict=True)),
            ]
            outs, operands = self.run(body, consts, ins, f"{key}/", depth + 1)
            self.added, self._lengths = around
            for out in outs:
                self.consume(out, "it is carried or collected by a scan")
            ends.append(outs)
            arrays = [out.array for out in outs]
            return arrays[: len(carry)], (arrays[len(carry) :], operands)

        carry, (ys, operands) = lax.scan(
            step,
            [v.array for v in carried],
            ([v.array for v in scanned], added),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        outs = ends[-1]
        uses = uses.union(*(out.uses for out in outs))
        return [
            Value(array, out.image, uses)
            for array, out in zip((*carry, *ys), outs, strict=True)
        ], operands

    def _cond(self, eqn, inputs, key, depth):
        index, *inputs = inputs
        arrays = [v.array for v in inputs]
        ends: dict[int, list[Value]] = {}

        def branch(number, jaxpr):
            inner, consts = open_jaxpr(jaxpr)

            def evaluate(*arrays):
                ins = [v._replace(array=a) for v, a in zip(inputs, arrays, strict=True)]
                outs, captured = self.run(inner, consts, ins, f"{key}/{number}/", depth)
                for out in outs:
                    self.consume(out, "it is handed through a branch")
                ends[number] = outs
                return [out.array for out in outs], captured

            return evaluate

        branches = [branch(i, b) for i, b in enumerate(eqn.params["branches"])]
        shapes: dict[str, Any] = {}
        for evaluate in branches:
            shapes.update(jax.eval_shape(evaluate, *arrays)[1])

        def filled(evaluate):
            def complete(*arrays):
                outs, captured = evaluate(*arrays)
                blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
                return outs, {**blank, **captured}

            return complete

        outs, operands = lax.switch(index.array, [filled(b) for b in branches], *arrays)
        own = [frozenset().union(*(v.uses for v in end)) for end in ends.values()]
        self._select([index, *(Value(None, uses=uses) for uses in own)])
        image = index.image or any(v.image for v in inputs)
        uses = index.uses.union(*own)
        return [Value(a, image, uses) for a in outs], operands


# Calls, loops and branches are walked too, if a leaf or a statistic is handed to them.
_ENTERED = {
    **dict.fromkeys(INLINED, Capture._call),
    "cond": Capture._cond,
    "scan": Capture._scan,
}
