"""What plans say, against the programs themselves."""

import dataclasses
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.capture.grams import layer_sums
from jaxunlearn.classifier.classifier import Classifier, Preprocess, freeze
from jaxunlearn.nullspace.rank_rules import RankRule
from jaxunlearn.planning import Workload, abstract_classifier, plan


class Small(nn.Module):
    """A convolution, a strided one, and a head."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(8, (3, 3), name="first")(images))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="second")(x))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


SHAPE = (12, 12, 3)
# Multiplications and additions of the forward pass of one image, borders included.
FORWARD = 2 * (144 * 27 * 8 + 36 * 72 * 16 + 16 * 5)


@pytest.fixture(scope="module")
def network():
    module = freeze(Small(), {"params": {}}).network
    return abstract_classifier(module, SHAPE, Preprocess(0.5, 0.5))


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def stages_of(network, workload, **options):
    stages = plan(network, SHAPE, workload, **options).stages
    return {stage.name: stage for stage in stages}


WORKLOAD = Workload(
    images=90,
    batch_size=16,
    sets=3,
    inverted=40,
    inversion_steps=7,
    inversion_batch_size=16,
    steps=11,
    step_batch_size=16,
)


def test_layers_are_those_of_the_network(network):
    layers = plan(network, SHAPE, Workload(images=100)).layers
    rows = {layer.path: layer for layer in layers}
    assert list(rows) == ["first/kernel", "head/kernel", "second/kernel"]
    second = rows["second/kernel"]
    assert (second.kind, second.g, second.d, second.out) == ("conv", 1, 72, 16)
    assert (second.rows, second.rank) == (36, None)
    assert second.moment_bytes == 4 * 72**2
    assert second.moment_flops == 2 * 36 * 72**2
    half = Workload(images=100, rule=RankRule("protected_fraction", 0.5))
    assert [layer.rank for layer in plan(network, SHAPE, half).layers] == [14, 8, 36]


def test_stages_are_counted_by_their_runs(network):
    stages = stages_of(network, WORKLOAD)
    assert list(stages) == ["inversion", "statistics", "subspaces", "steps"]
    runs = {name: stage.runs for name, stage in stages.items()}
    assert runs == {"inversion": 21, "statistics": 6, "subspaces": 3, "steps": 11}
    assert all(stage.seconds is None for stage in stages.values())
    assert stages_of(network, Workload(images=0, steps=0)) == {}


@pytest.mark.core
def test_operations_are_those_of_forward_and_backward_passes(network):
    stages = stages_of(network, WORKLOAD)
    # XLA leaves products with padding out, and counts activations.
    images = jax.jit(Classifier.__call__).lower(network, shape(1, *SHAPE))
    cost = images.cost_analysis()
    forward = (cost if isinstance(cost, dict) else cost[0])["flops"]
    assert 0.8 * FORWARD < forward < 1.1 * FORWARD
    # Backwards to the weights and to all inputs but the images, or to the inputs.
    step, image = (
        stages[name].flops / (runs * 16)
        for name, runs in (("steps", 11), ("inversion", 21))
    )
    assert 2 * forward < step < 3.5 * forward
    assert 1.5 * forward < image < 2.5 * forward
    moments = 2 * (144 * 27**2 + 36 * 72**2 + 16**2)
    each = stages["statistics"].flops / 90
    assert each == pytest.approx(forward + moments, rel=0.05)


def test_memory_grows_with_the_batch_and_not_with_the_images(network):
    few = stages_of(network, WORKLOAD)["statistics"].bytes
    more = stages_of(network, Workload(images=180, batch_size=16, sets=3))
    larger = stages_of(network, Workload(images=90, batch_size=30, sets=3))
    assert more["statistics"].bytes == few < larger["statistics"].bytes


def test_memory_from_shapes_is_within_a_factor_of_what_xla_asks_for(network):
    estimated = stages_of(network, WORKLOAD)
    compiled = stages_of(network, WORKLOAD, compile=True)
    for name, stage in compiled.items():
        assert stage.seconds is None
        assert 0.4 < estimated[name].bytes / stage.bytes < 2.5, name


def test_compiling_says_what_xla_asks_for(network):
    workload = Workload(images=16, batch_size=16, steps=0)
    request = plan(network, SHAPE, workload, compile=True)
    batch, masks = shape(16, *SHAPE, dtype=np.uint8), shape(16)
    program = jax.jit(layer_sums).lower(network, batch, masks).compile()
    memory = program.memory_analysis()
    asked = (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
    )
    sums = 2 * memory.output_size_in_bytes
    assert request.stages[0].bytes == pytest.approx(asked + sums, abs=1000)


def test_every_stage_is_timed_when_asked(network):
    stages = stages_of(network, WORKLOAD, measure=True)
    assert len(stages) == 4
    for stage in stages.values():
        assert 0 < stage.seconds < 60
    once = Workload(images=0, steps=1, step_batch_size=16)
    assert stages_of(network, once, measure=True)["steps"].seconds < 60


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("compile", [False, True])
def test_a_stage_that_does_not_fit_names_the_batch_that_would(network, compile):
    whole = plan(network, SHAPE, WORKLOAD, compile=compile)
    assert all(stage.fitting_batch is None for stage in whole.stages)
    sizes = {stage.name: stage.bytes for stage in whole.stages}
    for name in ("inversion", "statistics", "steps"):
        limit = {"compile": compile, "free_bytes": sizes[name] - 1}
        stages = stages_of(network, WORKLOAD, **limit)
        fitting = stages[name].fitting_batch
        assert 0 < fitting < 16, name
        counts = ("inversion_batch_size", "batch_size", "step_batch_size")
        smaller = dataclasses.replace(WORKLOAD, **dict.fromkeys(counts, fitting))
        if not compile:
            assert stages_of(network, smaller, **limit)[name].fitting_batch is None


@pytest.mark.long
def test_nothing_fits_into_nothing_and_nothing_is_timed(network):
    stages = stages_of(network, WORKLOAD, measure=True, free_bytes=10)
    assert {stage.fitting_batch for stage in stages.values()} == {0}
    assert {stage.seconds for stage in stages.values()} == {None}


@pytest.mark.long
def test_parameters_may_be_there(network):
    model = Small()
    variables = model.init(jax.random.key(0), jnp.ones((1, *SHAPE)))
    real = freeze(model, variables, preprocess=Preprocess(0.5, 0.5))
    workload = Workload(images=16, steps=3)
    plans = [plan(c, SHAPE, workload, free_bytes=2**30) for c in (real, network)]
    assert plans[0] == plans[1]


def test_images_of_any_size_are_planned_for_without_taking_memory(network):
    workload = Workload(images=1, batch_size=1, steps=0)
    stages = plan(network, (20_000, 20_000, 3), workload, free_bytes=2**30).stages
    assert stages[0].fitting_batch == 0


@pytest.mark.parametrize(
    ("shape", "error", "sentence"),
    [
        ((8, 8), ValueError, r"image_shape must be \(h, w, c\); it is \(8, 8\)"),
        ((8, 8, 0), ValueError, "a side of image_shape must be at least 1; it is 0"),
        ((10**6, 10**6, 3), ValueError, "has 3,000,000,000,000 numbers"),
        ((8, 8, 2.5), TypeError, "a side of image_shape must be an integer"),
    ],
)
def test_other_shapes_are_refused(network, shape, error, sentence):
    with pytest.raises(error, match=sentence):
        inspect.unwrap(plan)(network, shape, Workload(images=1))


def test_counts_are_checked():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Workload(images=1, batch_size=0)
    with pytest.raises(ValueError, match="images must be at least 1"):
        Workload(images=-1)
