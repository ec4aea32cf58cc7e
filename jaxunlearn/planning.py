"""What an unlearning request will take, before any of it runs: shapes are enough."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn.calibration import Rates, measure
from jaxunlearn.checks import check_count
from jaxunlearn.classifier import Classifier, Preprocess
from jaxunlearn.costs import Cost, program_cost
from jaxunlearn.inputs import LayerRecord, gram_shapes, layer_sums, layer_table
from jaxunlearn.inversion import ImagePrior, inversion_terms
from jaxunlearn.network import Network
from jaxunlearn.objective import cross_entropy
from jaxunlearn.partial_eigen import FULL_UP_TO, LARGEST_RANK
from jaxunlearn.projector import Projector, project
from jaxunlearn.ranks import Rule

# Of a symmetric eigenvalue problem with all vectors, in units of d^3; nominal, as the
# time is not taken from it.
_FULL_EIGH = 9
# Matrices of d^2 float64 numbers that it holds: the gram, its vectors, their workspace.
_EIGH_MATRICES = 5


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """A weight whose inputs are protected.

    Attributes:
      path: of the leaf.
      kind: "dense", "conv" or "einsum".
      g, d, out: groups, fan-in and fan-out.
      rows: rows that one image brings to each group.
      rank: how many directions will be protected, or None where the data decide.
      moment_bytes: of the second moment of one set of images.
      patch_flops: `2 g rows d^2`: operations for each image, if its rows were written
        out and multiplied.
    """

    path: str
    kind: str
    g: int
    d: int
    out: int
    rows: int
    rank: int | None
    moment_bytes: int
    patch_flops: float


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage of a request.

    Attributes:
      name: "inversion", "statistics", "subspaces" or "steps".
      runs: how often its program runs.
      flops: floating-point operations of products, over all runs.
      bytes: memory while it runs: arguments, results and what lies between.
      seconds: predicted, compilation left out, or None without calibration.
    """

    name: str
    runs: int
    flops: float
    bytes: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """All of a request, as plain values."""

    layers: tuple[LayerPlan, ...]
    stages: tuple[StagePlan, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """How much there is to do; a count of zero leaves its stage out.

    Attributes:
      images: that second moments are taken of.
      batch_size: images of a batch of moments.
      sets: how many sets of images have moments and subspaces of their own, as the
        retained classes in UNSC.
      rule: how many directions are protected.
      inverted: images that are inverted.
      inversion_steps: for each batch of them.
      inversion_batch_size: images optimised together.
      steps: unlearning steps.
      step_batch_size: images of each.
    """

    images: int
    batch_size: int = 256
    sets: int = 1
    rule: Rule = Rule("energy", 0.99)
    inverted: int = 0
    inversion_steps: int = 500
    inversion_batch_size: int = 256
    steps: int = 100
    step_batch_size: int = 256

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("images", "inverted", "steps") and value == 0:
                continue
            if field.name != "rule":
                check_count(field.name, value)


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A stage whose program has not been timed yet."""

    name: str
    runs: int
    cost: Cost
    bytes: int


def abstract_classifier(
    network: Network, image_shape: tuple[int, ...], preprocess: Preprocess | None
) -> Classifier:
    """A classifier of shapes alone: no parameter is drawn.

    >>> import flax.linen as nn
    >>> from jaxunlearn.classifier import freeze
    >>> model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(10)])
    >>> network = freeze(model, {"params": {}}).network
    >>> found = abstract_classifier(network, (224, 224, 3), None)
    >>> found.params["layers_1"]["kernel"].shape
    (150528, 10)
    """
    draw = functools.partial(network.init, image_shape=image_shape)
    params, state = jax.eval_shape(draw, jax.random.key(0))
    return Classifier(params, state, preprocess, network)


def plan(
    classifier: Classifier,
    image_shape: tuple[int, ...],
    request: Request,
    *,
    calibrate: bool = True,
    compiled: bool = False,
) -> Plan:
    """Predict a request's layers, operations, memory and time.

    Operations are those of the products in the traced programs. Time is, product by
    product, operations over the rate at which this machine was seen to compute this
    very product, and for all else bytes over its bandwidth; compilation comes on top.
    Memory is a guess at what XLA holds at once, unless the programs are compiled.

    Ranks that the data decide are taken for `d / 2`, where a projection is dearest.

    Args:
      classifier: its leaves may be shapes, as from `abstract_classifier`.
      image_shape: (h, w, c).
      request: how much there is to do.
      calibrate: whether to measure rates, for seconds to minutes, and predict times.
      compiled: whether to compile the programs, for the memory that they ask for.

    Raises:
      ValueError: what `layer_table` refuses.

    >>> import flax.linen as nn
    >>> from jaxunlearn.classifier import freeze
    >>> model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(10)])
    >>> network = freeze(model, {"params": {}}).network
    >>> classifier = abstract_classifier(network, (8, 8, 1), None)
    >>> found = plan(classifier, (8, 8, 1), Request(images=100), calibrate=False)
    >>> [(layer.path, layer.d, layer.moment_bytes) for layer in found.layers]
    [('layers_1/kernel', 64, 16384)]
    >>> [stage.name for stage in found.stages]
    ['statistics', 'subspaces', 'steps']
    """
    classifier = jax.tree.map(_shape, classifier)
    dtype = jnp.float32 if classifier.preprocess is None else jnp.uint8
    image = np.zeros((1, *image_shape), dtype)
    table = [r for r in layer_table(classifier, image) if r.reason is None]
    grams = [gram for gram in gram_shapes(classifier, image) if gram is not None]
    layers = tuple(
        _layer(record, gram, request.rule)
        for record, gram in zip(table, grams, strict=True)
    )
    stages = _programs(classifier, image, request, compiled)
    costs = [stage.cost for stage in stages]
    rates = measure(costs) if calibrate else None
    found = [_timed(stage, rates) for stage in stages]
    if request.images:
        names = [stage.name for stage in found]
        place = names.index("statistics") + 1
        found.insert(place, _subspaces(layers, request, rates))
    return Plan(layers, tuple(found))


def _layer(record: LayerRecord, gram: Any, rule: Rule) -> LayerPlan:
    g, d = record.g or 1, record.d or 1
    bound = rule.upper_bound(d)
    rank = bound if rule.name in ("rank", "protected_fraction") else None
    size = math.prod(gram.gram.shape) * gram.gram.dtype.itemsize
    return LayerPlan(
        record.path,
        str(record.kind),
        g,
        d,
        record.out or 1,
        record.rows,
        rank,
        size,
        2.0 * g * record.rows * d * d,
    )


def _programs(classifier, image, request: Request, compiled: bool) -> list[_Stage]:
    def batch(size, dtype=image.dtype):
        return jax.ShapeDtypeStruct((size, *image.shape[1:]), dtype)

    def labels(size):
        return jax.ShapeDtypeStruct((size,), jnp.int32)

    found = []
    if request.inverted:
        size = min(request.inversion_batch_size, request.inverted)
        runs = math.ceil(request.inverted / size) * request.inversion_steps
        arguments = (classifier, batch(size, jnp.float32), labels(size))
        stage = _stage("inversion", runs, _image_gradient, arguments, compiled)
        # Adam's two averages, and the images that come out.
        adam = 3 * _size(arguments[1])
        found.append(dataclasses.replace(stage, bytes=stage.bytes + adam))
    if request.images:
        # As many batches for each set as it needs.
        share = math.ceil(request.images / request.sets)
        size = min(request.batch_size, share)
        masks = jax.ShapeDtypeStruct((size,), jnp.float32)
        arguments = (classifier, batch(size), masks)
        runs = request.sets * math.ceil(share / size)
        found.append(_stage("statistics", runs, layer_sums, arguments, compiled))
        # What is carried from batch to batch: sums, and their compensation.
        sums = 2 * request.sets * _size(jax.eval_shape(layer_sums, *arguments))
        found[-1] = dataclasses.replace(found[-1], bytes=found[-1].bytes + sums)
    if request.steps:
        size = request.step_batch_size
        projectors = _projectors(classifier, image, request.rule)
        arguments = (classifier, projectors, batch(size), labels(size))
        found.append(_stage("steps", request.steps, _step, arguments, compiled))
    return found


def _stage(
    name: str, runs: int, function: Callable[..., Any], arguments: Any, compiled: bool
) -> _Stage:
    cost = program_cost(function, *arguments)
    held = cost.held
    if compiled:
        program = jax.jit(function).lower(*arguments).compile()
        memory = program.memory_analysis()
        # Not every backend tells.
        held = cost.held if memory is None else memory.temp_size_in_bytes
    results = _size(jax.eval_shape(function, *arguments))
    return _Stage(name, runs, cost, int(held + _size(arguments) + results))


def _timed(stage: _Stage, rates: Rates | None) -> StagePlan:
    seconds = None if rates is None else stage.runs * rates.seconds(stage.cost)
    flops = stage.runs * stage.cost.flops
    return StagePlan(stage.name, stage.runs, flops, stage.bytes, seconds)


def _subspaces(
    layers: tuple[LayerPlan, ...], request: Request, rates: Rates | None
) -> StagePlan:
    """The decompositions of all moments; merging several sets is not counted."""
    flops = seconds = 0.0
    for layer in layers:
        full = _FULL_EIGH * layer.d**3
        flops += layer.g * _decomposition_flops(layer)
        if rates is not None:
            share = _decomposition_flops(layer) / full
            seconds += layer.g * share * rates.decomposition(layer.d)
    held = _EIGH_MATRICES * 8 * max((layer.d**2 for layer in layers), default=0)
    moments = sum(layer.moment_bytes for layer in layers)
    kept = sum(
        layer.moment_bytes
        * (layer.d // 2 if layer.rank is None else layer.rank)
        // max(layer.d, 1)
        for layer in layers
    )
    return StagePlan(
        "subspaces",
        request.sets,
        request.sets * flops,
        request.sets * (moments + kept) + held,
        None if rates is None else request.sets * seconds,
    )


def _decomposition_flops(layer: LayerPlan) -> float:
    """Full, or partial where the rank is known to be small in a large layer."""
    d, rank = layer.d, layer.rank
    if d <= FULL_UP_TO or rank is None or rank > LARGEST_RANK * d:
        return _FULL_EIGH * d**3
    columns = 3 * rank
    return 2 * d**2 * columns + 6 * d * columns**2 + 2 * _FULL_EIGH * columns**3


def _image_gradient(classifier: Classifier, images: Any, labels: Any) -> Any:
    def total(images):
        return inversion_terms(classifier, images, labels, ImagePrior()).total

    return jax.grad(total)(images)


def _step(classifier: Classifier, projectors: PyTree, images: Any, labels: Any) -> Any:
    """One projected step of SGD."""

    def loss(params):
        return cross_entropy(classifier.replace(params=params)(images), labels).mean()

    leaves, structure = jax.tree.flatten(classifier.params)
    updates = jax.tree.leaves(jax.grad(loss)(classifier.params))
    moved = [
        leaf if projector is None else leaf - project(projector, update)
        for leaf, projector, update in zip(leaves, projectors, updates, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def _projectors(classifier, image, rule: Rule) -> list[Projector | None]:
    """Of each leaf, as shapes."""
    found: list[Projector | None] = []
    for gram in gram_shapes(classifier, image):
        if gram is None:
            found.append(None)
            continue
        g, d = gram.layout.groups, gram.layout.fan_in
        rank = rule.upper_bound(d)
        # No more than half: the complement takes over.
        width = min(rank, d - rank) if rank < d else d // 2
        matrix = jax.ShapeDtypeStruct((g, d, width), gram.gram.dtype)
        kept = jax.ShapeDtypeStruct((g,), jnp.bool_)
        found.append(Projector(matrix, kept, gram.layout))
    return found


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _size(tree: PyTree) -> int:
    """Bytes of all leaves."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
