"""What an unlearning request will take, before any of it runs: shapes are enough."""

import dataclasses
import functools
import math
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.grams import gram_shapes, layer_sums, layouts
from jaxunlearn.capture.layers import layer_table
from jaxunlearn.checks import LARGEST, check_count, check_type, short
from jaxunlearn.classifier.classifier import Classifier, Preprocess, check_classifier
from jaxunlearn.classifier.network import Network
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.descent.step import update_params
from jaxunlearn.inversion import ImagePrior, inversion_terms
from jaxunlearn.nullspace import linalg
from jaxunlearn.nullspace.memory import tree_bytes
from jaxunlearn.nullspace.projection import project_to_null_space
from jaxunlearn.nullspace.rank_rules import RankRule
from jaxunlearn.nullspace.subspace import Subspace

# Operations of a symmetric eigenvalue problem with all vectors, in units of d^3, and
# the d^2 float64 numbers that it holds: the gram, its vectors, their workspace.
_EIGH_FLOPS, _EIGH_MATRICES = 9, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much is done, and how much of it at once.

    Attributes:
      batch_size: images of a batch of moments.
      inversion_steps: steps of the inversion of each batch.
      inversion_batch_size: images optimised together.
      steps: unlearning steps.
      step_batch_size: images of each.
    """

    batch_size: int = 256
    inversion_steps: int = 500
    inversion_batch_size: int = 256
    steps: int = 100
    step_batch_size: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload(Amounts):
    """How much there is to do; a count of zero leaves its stage out.

    Attributes:
      images: that second moments are taken of.
      sets: how many sets of images have moments and subspaces of their own, as the
        retained classes in UNSC.
      rule: how many directions are protected.
      inverted: images that are inverted.
    """

    images: int
    sets: int = 1
    rule: RankRule = RankRule("energy", 0.99)
    inverted: int = 0

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
    Where they are more than what is free, `fitting_batch` is how many images of a batch
    would fit, 0 if not even one would; otherwise it is None.
    """

    name: str
    runs: int
    flops: float
    bytes: int
    seconds: float | None
    fitting_batch: int | None = None


@dataclasses.dataclass(frozen=True)
class RequestPlan:
    """The layers and the stages of a request, and the bytes that are free for it."""

    layers: tuple[LayerPlan, ...]
    stages: tuple[StagePlan, ...]
    free_bytes: int


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
    free_bytes: int | None = None,
) -> RequestPlan:
    """Layers, operations, memory and time of a request; leaves may be shapes.

    Operations of steps and of the inversion are those that XLA counts, which takes a
    loop in the network for one turn of it; of moments and subspaces they are closed
    forms. Memory is a sum of shapes: arguments, results, the outputs of all weights
    with their gradients, or the largest layer's rows; attention holds up to four times
    as much. With `compile` it is what the compiled programs ask for. Ranks that the
    data decide are taken for `d / 2`, where a projection is dearest. With `measure`
    three runs of each compiled program on zeros are timed, and one decomposition of
    each size of a layer, of stages that fit into `free_bytes`: by default what is free
    on this machine's device.
    """
    check_classifier(classifier)
    check_type("workload", workload, Workload)
    sizes = [check_count("a side of image_shape", side) for side in image_shape]
    if len(sizes) != 3:
        msg = f"image_shape must be (h, w, c); it is {short(image_shape)}."
        raise ValueError(msg)
    if math.prod(sizes) > LARGEST:
        msg = f"An image of image_shape {short(image_shape)} has {math.prod(sizes):,} numbers; at most {LARGEST:,} can be counted."  # noqa: E501
        raise ValueError(msg)
    classifier = jax.eval_shape(lambda classifier: classifier, classifier)
    dtype = jnp.float32 if classifier.preprocess is None else jnp.uint8
    # Of any size without taking memory.
    image = np.broadcast_to(np.zeros((), dtype), (1, *sizes))
    free = parallel.free_memory() if free_bytes is None else free_bytes
    planner = _Planner(classifier, image, workload, compile, measure, free)
    return RequestPlan(planner.layers, tuple(planner.stages()), free)


@dataclasses.dataclass(frozen=True)
class _Planner:
    classifier: Classifier
    image: np.ndarray
    workload: Workload
    compile: bool
    measure: bool
    free: int

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

    def stages(self) -> Iterator[StagePlan]:
        work = self.workload
        share = math.ceil(work.images / work.sets)
        inverted = min(work.inversion_batch_size, work.inverted)
        for stage_of, count, size in (
            (self.inversion, work.inverted, inverted),
            (self.statistics, work.images, min(work.batch_size, share)),
            (self.subspaces, work.images, 1),
            (self.steps, work.steps, work.step_batch_size),
        ):
            if count == 0:
                continue
            stage = stage_of(size)
            if stage.bytes > self.free:
                one = stage_of(1).bytes
                each = (stage.bytes - one) / max(1, size - 1)
                room = 1 + (self.free - one) / each if one <= self.free else 0
                stage = dataclasses.replace(stage, fitting_batch=int(room))
            yield stage

    def inversion(self, size: int) -> StagePlan:
        work = self.workload
        runs = math.ceil(work.inverted / size) * work.inversion_steps
        images, labels = self._batch(size)
        images = _shape(*images.shape)
        arguments = (self.classifier, images, labels)
        # Its two averages, and the images that come out.
        adam = 3 * tree_bytes(images)
        outputs = self._outputs(size)
        return self._stage("inversion", runs, _image_gradient, arguments, adam, outputs)

    def statistics(self, size: int) -> StagePlan:
        work = self.workload
        arguments = (self.classifier, self._batch(size)[0], _shape(size))
        runs = work.sets * math.ceil(math.ceil(work.images / work.sets) / size)
        # Carried from batch to batch: sums, and what compensates them.
        sums = 2 * work.sets * tree_bytes(jax.eval_shape(layer_sums, *arguments))
        widths = (r.g * r.rows * (r.d + r.out) for r in self.layers)
        rows = 4 * size * max(widths, default=0)
        stage = self._stage("statistics", runs, layer_sums, arguments, sums, rows)
        forward = _flops(jax.jit(Classifier.__call__).lower(*arguments[:2])) / size
        each = forward + sum(layer.moment_flops for layer in self.layers)
        return dataclasses.replace(stage, flops=work.images * each)

    def subspaces(self, size: int) -> StagePlan:
        del size
        sets, seconds = self.workload.sets, None
        flops = _EIGH_FLOPS * sum(r.g * r.d**3 for r in self.layers)
        moments = sum(r.moment_bytes for r in self.layers)
        ranks = [(r, r.d // 2 if r.rank is None else r.rank) for r in self.layers]
        bases = sum(r.moment_bytes * rank // r.d for r, rank in ranks)
        # Bases as they come, and the records made of them.
        held = sets * (moments + 2 * bases)
        held += _EIGH_MATRICES * 8 * max((r.d**2 for r in self.layers), default=0)
        if self.measure and held <= self.free:
            times = {d: _eigh_seconds(d) for d in {r.d for r in self.layers}}
            seconds = sets * sum(r.g * times[r.d] for r in self.layers)
        return StagePlan("subspaces", sets, float(sets * flops), held, seconds)

    def steps(self, size: int) -> StagePlan:
        def basis(layout):
            g, d = layout.groups, layout.fan_in
            rank = self.workload.rule.upper_bound(d)
            # No more than half: the complement takes over.
            width = min(rank, d - rank) if rank < d else d // 2
            return Subspace(_shape(g, d, width), _shape(g, d), layout)

        bases = jax.tree.map(basis, layouts(self.classifier, self.image))
        arguments = (self.classifier, bases, *self._batch(size))
        between = self._outputs(size) + tree_bytes(self.classifier.params)
        return self._stage("steps", self.workload.steps, _step, arguments, 0, between)

    def _stage(self, name, runs, function, arguments, held, between) -> StagePlan:
        """Of a program; `held` beside it, and `between` its arguments and results."""
        seconds = None
        lowered = jax.jit(function).lower(*arguments)
        held += tree_bytes((arguments, jax.eval_shape(function, *arguments)))
        if self.compile or self.measure:
            program = lowered.compile()
            memory = program.memory_analysis()
            # Not every backend tells.
            between = between if memory is None else memory.temp_size_in_bytes
            if self.measure and held + between <= self.free:
                zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), arguments)
                seconds = runs * _seconds(3, program, *zeros)
        return StagePlan(
            name, runs, runs * _flops(lowered), int(held + between), seconds
        )

    def _batch(self, size):
        """Images and labels."""
        images = _shape(size, *self.image.shape[1:], dtype=self.image.dtype)
        return images, _shape(size, dtype="int32")

    def _outputs(self, size: int) -> int:
        """Bytes of what all weights give, and of its gradients."""
        return 8 * size * sum(r.g * r.rows * r.out for r in self.layers)


def _shape(*sizes: int, dtype: Any = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


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


def _step(classifier: Classifier, bases: PyTree, images: Any, labels: Any) -> Any:
    """The parameters after one projected step of SGD."""
    optimizer = optax.chain(optax.sgd(0.1), project_to_null_space(bases))

    def loss(params):
        logits = classifier.replace(params=params)(images)
        return cross_entropy(logits, labels).mean(), None

    def update(gradients, state, params, value, value_fn):
        del value, value_fn
        return optimizer.update(gradients, state, params)

    params = classifier.params
    return update_params(loss, params, optimizer.init(params), update)[0][0]
