"""The walk over a classifier's program that finds where each weight meets its input.

The inference function is traced for one image. Wherever a parameter leaf, seen through
steps that lose nothing, is an operand of `dot_general` or `conv_general_dilated` and
the other operand depends on the image, that operand is the weight's input. Any other
live use of a leaf freezes it, with the reason. The walk evaluates the program while it
looks, so that what it finds can be differentiated, vmapped, jitted and sharded.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float

from jaxunlearn.layout import View
from jaxunlearn.products import Convolution, DotProduct, Product

# Primitives that hand every element on as it is.
_SAME = {
    "copy",
    "copy_p",
    "device_put",
    "mesh_cast",
    "name",
    "optimization_barrier",
    "pcast",
    "pvary",
    "reduce_precision",
    "reshard",
    "sharding_constraint",
    "stop_gradient",
}
_INLINED = {
    "call",
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat",
    "remat2",
}
_REASONS = {
    "add": "it is added to its input, as a bias is",
    "sub": "it is subtracted",
    "mul": "it multiplies elementwise, as a scale does",
    "div": "it divides or is divided, as a re-parametrised weight is",
    "gather": "it is looked up, as an embedding is",
    "slice": "only a slice of it is used in a product",
    "dynamic_slice": "only a slice of it is used in a product",
    "split": "only a slice of it is used in a product",
    "concatenate": "it is joined with another array before its use",
    "while": "it is used inside a while loop",
}


class Leaf(NamedTuple):
    """A value that is a parameter leaf, still whole.

    Attributes:
      index: which leaf.
      view: how it is seen, or None once it was broadcast over a new axis.
      slices: the depths of the scans that slice it.
    """

    index: int
    view: View | None
    slices: tuple[int, ...] = ()


class Statistic(NamedTuple):
    """A value on the way from running statistics to a normalised input.

    Attributes:
      role: "leaf" (a state leaf), "shifted" (it plus epsilon), "scale" (the reciprocal
        root of that), "root", "centred" (an input less a leaf).
      index: which state leaf.
      axes: where the leaf's axes lie in the value.
      slices: the depths of the scans that slice it.
      key: of the captured input, for "centred".
    """

    role: str
    index: int
    axes: tuple[int, ...] = ()
    slices: tuple[int, ...] = ()
    key: str = ""


class Value(NamedTuple):
    """An array and what is known of it.

    Attributes:
      array: the value.
      image: whether the image reaches it.
      uses: keys of the products upstream.
      leaf, statistic: what it still is, or None.
    """

    array: Any
    image: bool = False
    uses: frozenset[str] = frozenset()
    leaf: Leaf | None = None
    statistic: Statistic | None = None


@dataclasses.dataclass(frozen=True)
class Use:
    """One product of a leaf with an input.

    Attributes:
      leaf: index of the leaf.
      product: which product, of which shapes.
      view: how the product sees the leaf.
      scans: for each surrounding scan, outermost first: "groups" where it slices the
        leaf, "rows" where it repeats it.
    """

    leaf: int
    product: Product
    view: View
    scans: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """An input normalised by running statistics (BatchNorm in inference mode).

    Attributes:
      mean, variance: indices of the state leaves.
      axes: of the input, where the leaves' axes lie.
      scans: as in `Use`.
    """

    mean: int
    variance: int
    axes: tuple[int, ...]
    scans: tuple[str, ...]


class Capture(NamedTuple):
    """What a walk saw.

    Attributes:
      logits: `[n, k]`.
      operands: by key, `(operand, weight)` with the image axis, then scan axes leading;
        `weight` is 0 where a branch was not taken (its operand is zero there).
      uses: by key.
      normalisations: by key.
      reasons: by leaf, why it has no input.
      one_sided: keys of products that only one side of an image-dependent select uses.
    """

    logits: Float[Array, "n k"]
    operands: dict[str, tuple[Array, Array]]
    uses: dict[str, Use]
    normalisations: dict[str, Normalisation]
    reasons: dict[int, str]
    one_sided: set[str]


def capture(classifier, images: Float[Array, "n h w c"]) -> Capture:
    """Run the classifier on prepared images and see every weight's input.

    Args:
      classifier: a `Classifier`.
      images: as `classifier.prepare` returns them.
    """
    params, state = (
        jax.tree.leaves(classifier.params),
        jax.tree.leaves(classifier.state),
    )
    structures = (
        jax.tree.structure(classifier.params),
        jax.tree.structure(classifier.state),
    )  # noqa: E501

    def one(params, state, image):
        params = jax.tree.unflatten(structures[0], params)
        state = jax.tree.unflatten(structures[1], state)
        return classifier.network.apply(params, state, image[None])[0]

    closed = jax.make_jaxpr(one)(params, state, images[0])
    jaxpr, consts = _open(closed)
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    walk = _Walk()

    def per_image(image):
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
        return logits.array, operands

    logits, operands = jax.vmap(per_image)(images)
    for index in range(len(params)):
        if not any(use.leaf == index for use in walk.uses.values()):
            walk.reasons.setdefault(index, "no live equation uses it")
    return Capture(
        logits, operands, walk.uses, walk.normalisations, walk.reasons, walk.one_sided
    )


class _Walk:
    """Evaluates a jaxpr equation by equation.

    What is static (uses, reasons) gathers here under keys that name the equation, so
    that tracing a body twice changes nothing. What is traced is returned.
    """

    def __init__(self):
        self.uses: dict[str, Use] = {}
        self.normalisations: dict[str, Normalisation] = {}
        self.reasons: dict[int, str] = {}
        self.one_sided: set[str] = set()

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
            outputs, found = self._equation(eqn, inputs, f"{path}{number}", depth)
            operands.update(found)
            values.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars], operands

    def consume(self, value: Value, reason: str) -> None:
        """A leaf's element-wise life ends here: it has no input."""
        if value.leaf is not None:
            self.reasons.setdefault(value.leaf.index, reason)

    def _equation(self, eqn, inputs, key, depth):
        name = eqn.primitive.name
        tagged = any(v.leaf is not None or v.statistic is not None for v in inputs)
        if tagged and name in _INLINED:
            inner, consts = _inner(eqn)
            return self.run(inner, consts, inputs, f"{key}/", depth)
        if tagged and name == "scan":
            return self._scan(eqn, inputs, key, depth)
        if name == "cond" and tagged:
            return self._cond(eqn, inputs, key, depth)
        arrays = _bind(eqn, [v.array for v in inputs])
        if name in _SAME and tagged:
            return [
                v._replace(array=a) for v, a in zip(inputs, arrays, strict=True)
            ], {}
        found = {}
        image = any(v.image for v in inputs)
        uses = frozenset().union(*(v.uses for v in inputs))
        if name == "select_n":
            self._select(inputs)
        leaf = statistic = None
        if tagged:
            leaf = self._leaf(eqn, inputs, key, depth, found)
            statistic = self._statistic(eqn, inputs, key, depth, found)
        # A capture that is a leaf's input belongs to the uses; others do not.
        uses = uses.union(k for k in found if k in self.uses)
        return [Value(a, image, uses, leaf, statistic) for a in arrays], found

    def _leaf(self, eqn, inputs, key, depth, found):
        """What a leaf becomes: a view, an operand that is captured, or frozen."""
        name, params = eqn.primitive.name, eqn.params
        if name == "select_n":
            # A choice between a leaf and itself: what vmap makes of a `cond`.
            cases = {value.leaf for value in inputs[1:]}
            if len(cases) == 1 and None not in cases:
                return cases.pop()
        first = inputs[0].leaf
        if first is not None:
            followed, view = _follow(eqn, name, params, first.view)
            if followed:
                return first._replace(view=view)
        for side, value in enumerate(inputs):
            if value.leaf is None:
                continue
            reason = _refusal(eqn, inputs, side)
            if reason:
                self.consume(value, reason)
                continue
            shapes = [jnp.shape(v.array) for v in inputs]
            if name == "dot_general":
                product = DotProduct.read(params["dimension_numbers"], side, shapes)
            else:
                product = Convolution.read(params, shapes)
            index, view, slices = value.leaf
            self.uses[key] = Use(index, product, view, _scans(slices, depth))
            found[key] = (inputs[1 - side].array, jnp.ones(()))
        return None

    def _statistic(self, eqn, inputs, key, depth, found):
        """Follow running statistics to the input that they normalise."""
        name = eqn.primitive.name
        at = {v.statistic.role: v for v in inputs if v.statistic is not None}
        if not at:
            return None
        if len(inputs) == 1:
            (value,) = inputs
            s = value.statistic
            if name == "rsqrt" and s.role == "shifted":
                return s._replace(role="scale")
            if name == "sqrt" and s.role == "shifted":
                return s._replace(role="root")
            axes = _follow_axes(eqn, jnp.shape(value.array), s.axes)
            return None if axes is None else s._replace(axes=axes)
        if len(inputs) != 2:
            return None
        left, right = inputs
        if name == "add" and "leaf" in at and not (left.image or right.image):
            return at["leaf"].statistic._replace(role="shifted")
        if name == "sub" and left.image and "leaf" in at and right is at["leaf"]:
            found[key] = (left.array, jnp.ones(()))
            return right.statistic._replace(role="centred", key=key)
        if name == "mul" and "scale" in at and "centred" not in at:
            other = right if left is at["scale"] else left
            return None if other.image else at["scale"].statistic
        if (name == "mul" and {"centred", "scale"} <= set(at)) or (
            name == "div" and {"centred", "root"} <= set(at) and left is at["centred"]
        ):
            centred = at["centred"].statistic
            other = at["scale" if name == "mul" else "root"].statistic
            if centred.key in self.normalisations:
                return None
            self.normalisations[centred.key] = Normalisation(
                centred.index, other.index, centred.axes, _scans(centred.slices, depth)
            )
        return None

    def _select(self, inputs):
        """Products that only one side of an image-dependent choice uses."""
        which, *cases = inputs
        if which.image and len(cases) > 1:
            shared = frozenset.intersection(*(case.uses for case in cases))
            either = frozenset.union(*(case.uses for case in cases))
            self.one_sided |= either - shared - which.uses

    def _scan(self, eqn, inputs, key, depth):
        params = eqn.params
        body, consts = _open(params["jaxpr"])
        first, second = _scan_split(params)
        fixed, carried, scanned = inputs[:first], inputs[first:second], inputs[second:]
        for value in carried:
            self.consume(value, "it is carried through a scan")
        uses = frozenset().union(*(v.uses for v in inputs))
        reached = _reached_by_images(body, [v.image for v in inputs], first, second)
        tags: list[list[Value]] = []

        def step(carry, xs):
            ins = [
                *fixed,
                *(Value(c, i, uses) for c, i in zip(carry, reached, strict=True)),
                *(_slice(v, x, depth) for v, x in zip(scanned, xs, strict=True)),
            ]
            outs, operands = self.run(body, consts, ins, f"{key}/", depth + 1)
            for out in outs:
                self.consume(out, "it is carried or collected by a scan")
            tags.append(outs)
            arrays = [out.array for out in outs]
            return arrays[: len(carry)], (arrays[len(carry) :], operands)

        carry, (ys, operands) = lax.scan(
            step,
            [v.array for v in carried],
            [v.array for v in scanned],
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        outs = tags[-1]
        uses = uses.union(*(out.uses for out in outs))
        return [
            Value(array, out.image, uses)
            for array, out in zip((*carry, *ys), outs, strict=True)
        ], operands

    def _cond(self, eqn, inputs, key, depth):
        index, *inputs = inputs
        arrays = [v.array for v in inputs]
        tags: dict[int, list[Value]] = {}

        def branch(number, jaxpr):
            inner, consts = _open(jaxpr)

            def evaluate(*arrays):
                ins = [v._replace(array=a) for v, a in zip(inputs, arrays, strict=True)]
                outs, found = self.run(inner, consts, ins, f"{key}/{number}/", depth)
                for out in outs:
                    self.consume(out, "it is handed through a branch")
                tags[number] = outs
                return [out.array for out in outs], found

            return evaluate

        branches = [branch(i, b) for i, b in enumerate(eqn.params["branches"])]
        shapes: dict[str, Any] = {}
        for evaluate in branches:
            shapes.update(jax.eval_shape(evaluate, *arrays)[1])

        def filled(evaluate):
            def complete(*arrays):
                outs, found = evaluate(*arrays)
                blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
                return outs, {**blank, **found}

            return complete

        outs, operands = lax.switch(index.array, [filled(b) for b in branches], *arrays)
        self._select(
            [
                index,
                *(
                    Value(None, uses=frozenset().union(*(o.uses for o in t)))
                    for t in tags.values()
                ),
            ]
        )  # noqa: E501
        image = index.image or any(v.image for v in inputs)
        uses = index.uses.union(*(o.uses for t in tags.values() for o in t))
        return [Value(a, image, uses) for a in outs], operands


def _refusal(eqn, inputs, side) -> str:
    """Why a leaf that ends in this equation has no input, or nothing if it has one."""
    name, value, shape = eqn.primitive.name, inputs[side], jnp.shape(inputs[side].array)
    if name not in ("dot_general", "conv_general_dilated"):
        return _REASONS.get(
            name, f"it is used by `{name}`, which is no product with an input"
        )  # noqa: E501
    other = inputs[1 - side]
    if other.leaf is not None:
        return "it is multiplied with another parameter, as in a merged product"
    if not other.image:
        return "it is multiplied with an operand that no image reaches"
    if value.leaf.view is None:
        return f"it is broadcast to {shape} before its product"
    if jnp.issubdtype(value.array.dtype, jnp.complexfloating):
        return "it is complex"
    if name == "conv_general_dilated" and (
        side == 0 or eqn.params["batch_group_count"] != 1
    ):
        return "it is convolved as an image or in batch groups, not as a kernel"
    return ""


def _follow(eqn, name, params, view):
    """Whether an equation keeps a leaf whole, and its view then."""
    if name == "convert_element_type":
        floating = jnp.issubdtype(params["new_dtype"], jnp.floating)
        return floating, view
    shape = eqn.outvars[0].aval.shape
    if name in ("reshape", "squeeze", "expand_dims"):
        # A reshape may transpose first.
        if view and name == "reshape" and params["dimensions"] is not None:
            view = view.then("transpose", tuple(params["dimensions"]))
        return True, view and view.then("reshape", shape)
    if name == "broadcast_in_dim":
        same = eqn.invars[0].aval.size == eqn.outvars[0].aval.size
        return True, view.then("reshape", shape) if view and same else None
    if name == "transpose":
        return True, view and view.then("transpose", tuple(params["permutation"]))
    if name == "rev":
        return True, view and view.then("rev", tuple(params["dimensions"]))
    return False, None


def _follow_axes(eqn, shape, axes):
    """Where a statistic's axes lie after a cast, reshape or broadcast; None if lost."""
    name, after = eqn.primitive.name, eqn.outvars[0].aval.shape
    if name == "convert_element_type":
        return axes
    if name == "broadcast_in_dim":
        return tuple(eqn.params["broadcast_dimensions"][axis] for axis in axes)
    if name in ("reshape", "squeeze", "expand_dims"):
        if name == "reshape" and eqn.params["dimensions"] is not None:
            return None
        before = [n for n in shape if n != 1]
        places = [i for i, n in enumerate(after) if n != 1]
        if before != [after[i] for i in places]:
            return None
        wide = [axis for axis in axes if shape[axis] != 1]
        return tuple(
            places[[i for i, n in enumerate(shape) if n != 1].index(a)] for a in wide
        )  # noqa: E501
    if name == "transpose":
        return tuple(eqn.params["permutation"].index(axis) for axis in axes)
    return None


def _reached_by_images(body, images, first, second) -> list[bool]:
    """Which entries of a scan's carry the image reaches, in some iteration."""
    images, carried = list(images), range(first, second)
    while True:
        reached = dict(zip(body.invars, images, strict=True))
        for eqn in body.eqns:
            image = any(reached.get(v) for v in eqn.invars if not hasattr(v, "val"))
            reached.update(dict.fromkeys(eqn.outvars, image))
        outs = [
            not hasattr(v, "val") and reached.get(v, False)
            for v in body.outvars[: len(carried)]
        ]
        after = [a or b for a, b in zip(images[first:second], outs, strict=True)]
        if after == images[first:second]:
            return after
        images[first:second] = after


def _scans(slices, depth: int) -> tuple[str, ...]:
    """For each surrounding scan, whether it slices a leaf or repeats it."""
    return tuple("groups" if d in slices else "rows" for d in range(depth))


def _slice(value: Value, array, depth) -> Value:
    """A scanned value as the body of the scan at this depth sees it."""
    leaf, statistic = value.leaf, None
    if leaf is not None:
        view = leaf.view and leaf.view.slice()
        leaf = leaf._replace(view=view, slices=(*leaf.slices, depth))
    if value.statistic is not None and value.statistic.role == "leaf":
        axes = tuple(axis - 1 for axis in value.statistic.axes if axis > 0)
        slices = (*value.statistic.slices, depth)
        statistic = value.statistic._replace(axes=axes, slices=slices)
    return Value(array, value.image, value.uses, leaf, statistic)


def _open(closed):
    """A jaxpr and its constants; jax 0.12 merged the closed form into the open one."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


def _inner(eqn):
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return _open(eqn.params[name])
    msg = f"`{eqn.primitive.name}` holds no program under a known name: {sorted(eqn.params)}."  # noqa: E501
    raise NotImplementedError(msg)


def _scan_split(params) -> tuple[int, int]:
    """Where a scan's operands turn from constants to carry, and from carry to inputs."""
    if "num_consts" in params:
        first = params["num_consts"]
        return first, first + params["num_carry"]
    # jax 0.12 keeps the three groups as flat trees.
    consts, carry, _ = (len(tuple(part)) for part in params["ft_in"].unpack())
    return consts, consts + carry


def _bind(eqn, arrays):
    """Evaluate one equation as it stands, custom derivatives included."""
    with eqn.ctx.manager:
        params = eqn.primitive.get_bind_params(eqn.params)
        functions, params = params if isinstance(params, tuple) else ((), params)
        outputs = eqn.primitive.bind(*functions, *arrays, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]
