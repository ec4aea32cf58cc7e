"""What an unlearning request will take, before any of it runs: shapes are enough."""

import dataclasses
import functools
import math
import timeit
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn.capture.grams import gram_shapes, layer_sums
from jaxunlearn.capture.layers import layer_table
from jaxunlearn.checks import check_count
from jaxunlearn.classifier.classifier import Classifier, Preprocess
from jaxunlearn.classifier.network import Network
from jaxunlearn.descent.cpu_convolution import in_pieces
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.inversion import ImagePrior, inversion_terms
from jaxunlearn.nullspace import linalg
from jaxunlearn.nullspace.memory import tree_bytes
from jaxunlearn.nullspace.projector import Projector, project
from jaxunlearn.nullspace.rank_rules import RankRule

# Operations of a symmetric eigenvalue problem with all vectors, in units of d^3, and
# the d^2 float64 numbers that it holds: the gram, its vectors, their workspace.
_EIGH_FLOPS, _EIGH_MATRICES = 9, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
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
    rule: RankRule = RankRule("energy", 0.99)
    inverted: int = 0
    inversion_steps: int = 500
    inversion_batch_size: int = 256
    steps: int = 100
    step_batch_size: int = 256

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name in ("images", "inverted", "steps")
            if field.name != "rule" and not (may_be_zero and value == 0):
                check_count(field.name, value)


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """A weight whose inputs are protected, with the sizes of its `LayerRecord`.

    `rank` is None where the data decide how many directions will be protected. Bytes
    are those of the second moment of one set of images. FLOPs are `2 g rows d^2` for
    each image, whose rows are written out and multiplied; a convolution takes less.
    """

    path: str
    kind: str
    g: int
    d: int
    out: int
    rows: int
    rank: int | None
    moment_bytes: int
    moment_flops: float


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage: "inversion", "statistics", "subspaces" or "steps".

    FLOPs and seconds are those of all runs of its program, without compilation; None
    where nothing was measured. Bytes are arguments, results and what lies between.
    """

    name: str
    runs: int
    flops: float
    bytes: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class RequestPlan:
    """The layers and the stages of a request."""

    layers: tuple[LayerPlan, ...]
    stages: tuple[StagePlan, ...]


def abstract_classifier(
    network: Network, image_shape: tuple[int, ...], preprocess: Preprocess | None
) -> Classifier:
    """A classifier of shapes alone: no parameter is drawn."""
    draw = functools.partial(network.init, image_shape=image_shape)
    params, state = jax.eval_shape(draw, jax.random.key(0))
    return Classifier(params, state, preprocess, network)


def plan(
    classifier: Classifier,
    image_shape: tuple[int, ...],
    workload: Workload,
    *,
    compile: bool = False,
    measure: bool = False,
) -> RequestPlan:
    """Layers, operations, memory and time of a request; leaves may be shapes.

    Operations of steps and of the inversion are those that XLA counts, which takes a
    loop in the network for one turn of it; of moments and subspaces they are closed
    forms. Memory is a sum of shapes: arguments, results, the outputs of all weights
    with their gradients, or the largest layer's rows; attention holds up to four times
    as much. With `compile` it is what the compiled programs ask for. Ranks that the
    data decide are taken for `d / 2`, where a projection is dearest. With `measure`
    three runs of each compiled program on zeros are timed, and one decomposition of
    each size of a layer.
    """
    classifier = jax.eval_shape(lambda classifier: classifier, classifier)
    dtype = jnp.float32 if classifier.preprocess is None else jnp.uint8
    image = np.zeros((1, *image_shape), dtype)
    planner = _Planner(classifier, image, workload, compile, measure)
    stages = [
        (planner.inversion, workload.inverted),
        (planner.statistics, workload.images),
        (planner.subspaces, workload.images),
        (planner.steps, workload.steps),
    ]
    done = tuple(stage() for stage, count in stages if count)
    return RequestPlan(planner.layers, done)


@dataclasses.dataclass(frozen=True)
class _Planner:
    """One method for each stage."""

    classifier: Classifier
    image: np.ndarray
    workload: Workload
    compile: bool
    measure: bool

    @functools.cached_property
    def layers(self) -> tuple[LayerPlan, ...]:
        rule = self.workload.rule
        ruled = rule.name in ("rank", "protected_fraction")
        moments = filter(None, gram_shapes(self.classifier, self.image))
        layers = []
        for record in layer_table(self.classifier, self.image):
            if record.reason is not None:
                continue
            g, d, out = record.g or 1, record.d or 1, record.out or 1
            rank = rule.upper_bound(d) if ruled else None
            sizes = (g, d, out, record.rows, rank, tree_bytes(next(moments).gram))
            flops = 2.0 * g * record.rows * d * d
            layers.append(LayerPlan(record.path, str(record.kind), *sizes, flops))
        return tuple(layers)

    def inversion(self) -> StagePlan:
        work = self.workload
        size = min(work.inversion_batch_size, work.inverted)
        runs = math.ceil(work.inverted / size) * work.inversion_steps
        images, labels = self._batch(size)
        images = jax.ShapeDtypeStruct(images.shape, jnp.float32)
        arguments = (self.classifier, images, labels)
        # Its two averages, and the images that come out.
        adam = 3 * tree_bytes(images)
        outputs = self._outputs(size)
        return self._stage("inversion", runs, _image_gradient, arguments, adam, outputs)

    def statistics(self) -> StagePlan:
        work = self.workload
        share = math.ceil(work.images / work.sets)
        size = min(work.batch_size, share)
        masks = jax.ShapeDtypeStruct((size,), jnp.float32)
        arguments = (self.classifier, self._batch(size)[0], masks)
        runs = work.sets * math.ceil(share / size)
        # Carried from batch to batch: sums, and what compensates them.
        sums = 2 * work.sets * tree_bytes(jax.eval_shape(layer_sums, *arguments))
        widths = (r.g * r.rows * (r.d + r.out) for r in self.layers)
        rows = 4 * size * max(widths, default=0)
        stage = self._stage("statistics", runs, layer_sums, arguments, sums, rows)
        forward = _flops(jax.jit(Classifier.__call__).lower(*arguments[:2])) / size
        each = forward + sum(layer.moment_flops for layer in self.layers)
        return dataclasses.replace(stage, flops=work.images * each)

    def subspaces(self) -> StagePlan:
        sets, seconds = self.workload.sets, None
        flops = _EIGH_FLOPS * sum(r.g * r.d**3 for r in self.layers)
        moments = sum(r.moment_bytes for r in self.layers)
        ranks = [(r, r.d // 2 if r.rank is None else r.rank) for r in self.layers]
        bases = sum(r.moment_bytes * rank // r.d for r, rank in ranks)
        # Bases as they come, and the records made of them.
        held = sets * (moments + 2 * bases)
        held += _EIGH_MATRICES * 8 * max((r.d**2 for r in self.layers), default=0)
        if self.measure:
            times = {d: _eigh_seconds(d) for d in {r.d for r in self.layers}}
            seconds = sets * sum(r.g * times[r.d] for r in self.layers)
        return StagePlan("subspaces", sets, float(sets * flops), held, seconds)

    def steps(self) -> StagePlan:
        size = self.workload.step_batch_size
        moments = gram_shapes(self.classifier, self.image)
        rule = self.workload.rule
        projectors = [moment and _projector(moment, rule) for moment in moments]
        arguments = (self.classifier, projectors, *self._batch(size))
        between = self._outputs(size) + tree_bytes(self.classifier.params)
        runs = self.workload.steps
        return self._stage("steps", runs, _step, arguments, 0, between)

    def _stage(self, name, runs, function, arguments, held, between) -> StagePlan:
        """Of a program; `held` beside it, and `between` its arguments and results."""
        seconds = None
        lowered = jax.jit(function).lower(*arguments)
        if self.compile or self.measure:
            program = lowered.compile()
            memory = program.memory_analysis()
            # Not every backend tells.
            between = between if memory is None else memory.temp_size_in_bytes
            if self.measure:
                zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), arguments)
                seconds = runs * _seconds(3, program, *zeros)
        results = jax.eval_shape(function, *arguments)
        needed = tree_bytes((arguments, results)) + held + int(between)
        return StagePlan(name, runs, runs * _flops(lowered), needed, seconds)

    def _batch(self, size):
        """Images and labels."""
        images = jax.ShapeDtypeStruct((size, *self.image.shape[1:]), self.image.dtype)
        return images, jax.ShapeDtypeStruct((size,), jnp.int32)

    def _outputs(self, size: int) -> int:
        """Bytes of what all weights give, and of its gradients."""
        return 8 * size * sum(r.g * r.rows * r.out for r in self.layers)


def _flops(lowered: jax.stages.Lowered) -> float:
    """As XLA counts them, without compiling."""
    cost = lowered.cost_analysis() or {}
    # Some versions of JAX have an entry for each device.
    cost = cost if isinstance(cost, dict) else cost[0]
    return float(cost.get("flops", math.nan))


def _seconds(repeats: int, function: Callable[..., Any], *arguments: Any) -> float:
    """Of the fastest of several runs after a first one."""

    def run() -> None:
        jax.block_until_ready(function(*arguments))

    run()
    return min(timeit.repeat(run, repeat=repeats, number=1))


def _eigh_seconds(d: int) -> float:
    rows = np.random.default_rng(0).normal(size=(d, d))
    return _seconds(1, linalg.eigenpairs, rows.T @ rows)


def _image_gradient(classifier: Classifier, images: Any, labels: Any) -> Any:
    def total(images):
        return inversion_terms(classifier, images, labels, ImagePrior())["total"]

    return jax.grad(total)(images)


def _step(classifier: Classifier, projectors: PyTree, images: Any, labels: Any) -> Any:
    """One projected step of SGD."""

    def loss(params):
        logits_of = in_pieces(Classifier.__call__)
        logits = logits_of(classifier.replace(params=params), images)
        return cross_entropy(logits, labels).mean()

    leaves, structure = jax.tree.flatten(classifier.params)
    updates = jax.tree.leaves(jax.grad(loss)(classifier.params))
    moved = [
        leaf if projector is None else leaf - project(projector, update)
        for leaf, projector, update in zip(leaves, projectors, updates, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def _projector(gram: Any, rule: RankRule) -> Projector:
    """As shapes."""
    g, d = gram.layout.groups, gram.layout.fan_in
    rank = rule.upper_bound(d)
    # No more than half: the complement takes over.
    width = min(rank, d - rank) if rank < d else d // 2
    matrix = jax.ShapeDtypeStruct((g, d, width), gram.gram.dtype)
    return Projector(matrix, jax.ShapeDtypeStruct((g,), jnp.bool_), gram.layout)
