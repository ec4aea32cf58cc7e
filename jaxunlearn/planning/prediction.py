"""What an unlearning request will take, before any of it runs: shapes are enough."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.capture.inputs import LayerRecord, gram_shapes, layer_table
from jaxunlearn.classifier.classifier import Classifier, Preprocess
from jaxunlearn.classifier.flax_network import Network
from jaxunlearn.nullspace.partial_eigen import FULL_UP_TO, LARGEST_RANK
from jaxunlearn.nullspace.rank_rules import Rule
from jaxunlearn.planning.calibration import Rates, measure
from jaxunlearn.planning.programs import Stage, stage_programs
from jaxunlearn.planning.records import LayerPlan, Plan, Request, StagePlan

# Of a symmetric eigenvalue problem with all vectors, in units of d^3; nominal, as the
# time is not taken from it.
_FULL_EIGH = 9
# Matrices of d^2 float64 numbers that it holds: the gram, its vectors, their workspace.
_EIGH_MATRICES = 5


def abstract_classifier(
    network: Network, image_shape: tuple[int, ...], preprocess: Preprocess | None
) -> Classifier:
    """A classifier of shapes alone: no parameter is drawn.

    >>> import flax.linen as nn
    >>> from jaxunlearn.classifier.classifier import freeze
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
    >>> from jaxunlearn.classifier.classifier import freeze
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
    stages = stage_programs(classifier, image, request, compiled)
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


def _timed(stage: Stage, rates: Rates | None) -> StagePlan:
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
        # Bases as they were found, and the records made of them.
        request.sets * (moments + 2 * kept) + held,
        None if rates is None else request.sets * seconds,
    )


def _decomposition_flops(layer: LayerPlan) -> float:
    """Full, or partial where the rank is known to be small in a large layer."""
    d, rank = layer.d, layer.rank
    if d <= FULL_UP_TO or rank is None or rank > LARGEST_RANK * d:
        return _FULL_EIGH * d**3
    columns = 3 * rank
    return 2 * d**2 * columns + 6 * d * columns**2 + 2 * _FULL_EIGH * columns**3


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
