"""What plans say, against the programs themselves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spectra import classifier as drawn

from jaxunlearn.capture.inputs import layer_grams
from jaxunlearn.classifier.classifier import Preprocess, freeze
from jaxunlearn.nullspace.rank_rules import Rule
from jaxunlearn.planning import (
    Request,
    abstract_classifier,
    calibration,
    plan,
    prediction,
)
from jaxunlearn.planning.calibration import Rates, measure
from jaxunlearn.planning.costs import product_flops, program_cost


class Small(nn.Module):
    """A convolution, a strided one, and a head."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(8, (3, 3), name="first")(images))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="second")(x))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


SHAPE = (12, 12, 3)


@pytest.fixture(scope="module")
def network():
    module = freeze(Small(), {"params": {}}).network
    return abstract_classifier(module, SHAPE, Preprocess(0.5, 0.5))


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


# Operations.


def gradient(kernel, images):
    def loss(kernel):
        return jnp.sum(
            jax.lax.conv_general_dilated(
                images,
                kernel,
                (2, 2),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            ** 2
        )

    return jax.grad(loss)(kernel)


@pytest.mark.parametrize(
    ("function", "arguments", "flops"),
    [
        (jnp.matmul, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (lambda a, b: jnp.einsum("gnd,gne->gde", a, b), [(2, 9, 4), (2, 9, 3)], 432),
        (nn.Conv(6, (3, 3)).apply, None, 2 * 2 * 64 * 9 * 4 * 6),
        # The forward pass and the gradient, equally dear.
        (gradient, [(3, 3, 4, 6), (2, 8, 8, 4)], 2 * 2 * 2 * 16 * 9 * 4 * 6),
        (
            lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0],
            [(4, 4)],
            5 * 128,
        ),
        (
            lambda x: jax.lax.cond(
                x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x
            ),
            [(4, 4)],
            256,
        ),
    ],
)
def test_products_are_counted(function, arguments, flops):
    if arguments is None:
        params = {"params": {"kernel": shape(3, 3, 4, 6), "bias": shape(6)}}
        given = [params, shape(2, 8, 8, 4)]
    else:
        given = [shape(*sizes) for sizes in arguments]
    assert program_cost(function, *given).flops == flops


def test_a_product_that_nobody_reads_costs_nothing():
    def function(x):
        x @ x
        return x + 1

    cost = program_cost(function, shape(8, 8))
    assert cost.flops == cost.held == 0


def test_groups_are_counted_once():
    layer = nn.Conv(8, (3, 3), feature_group_count=4, use_bias=False)
    params = {"params": {"kernel": shape(3, 3, 2, 8)}}
    cost = program_cost(layer.apply, params, shape(1, 6, 6, 8))
    assert cost.flops == 2 * 36 * 9 * 2 * 8


# Memory.


def test_what_is_held_is_what_lives_at_once():
    def chain(x):
        return jnp.sum((x @ x) @ x @ x)

    # Two products at a time, however long the chain is.
    assert program_cost(chain, shape(16, 16)).held == 2 * 4 * 256

    def kept(x):
        parts = [x @ x * n for n in range(2, 6)]
        return jnp.sum(jnp.concatenate([p @ x for p in parts]))

    assert program_cost(kept, shape(16, 16)).held > 4 * 4 * 256


def test_what_is_called_through_jit_counts_as_if_it_stood_there():
    def program(activation):
        def gradient(x):
            return jax.grad(lambda x: jnp.sum(activation(x @ x) @ x))(x)

        return program_cost(gradient, shape(16, 16))

    plain = program(lambda x: jnp.maximum(x, 0) * 2)
    called = program(jax.jit(lambda x: jnp.maximum(x, 0) * 2))
    assert (plain.held, plain.moved) == (called.held, called.moved)
    assert plain.held > 0


def test_held_memory_is_within_a_factor_of_what_xla_asks_for():
    images = jnp.ones((64, 16, 16, 3))
    real = drawn(Small(), images)

    def step(params, images):
        def loss(params):
            return jnp.sum(real.replace(params=params)(images) ** 2)

        return jax.grad(loss)(params)

    held = program_cost(step, real.params, images).held
    compiled = jax.jit(step).lower(real.params, images).compile()
    asked = compiled.memory_analysis().temp_size_in_bytes
    assert 0.6 < held / asked < 1.7


# Plans.


def test_layers_are_those_of_the_network(network):
    found = plan(network, SHAPE, Request(images=100), calibrate=False).layers
    rows = {layer.path: layer for layer in found}
    assert list(rows) == ["first/kernel", "head/kernel", "second/kernel"]
    second = rows["second/kernel"]
    assert (second.kind, second.g, second.d, second.out) == ("conv", 1, 72, 16)
    assert (second.rows, second.rank) == (36, None)
    assert second.moment_bytes == 4 * 72**2
    assert second.patch_flops == 2 * 36 * 72**2
    half = Request(images=100, rule=Rule("protected_fraction", 0.5))
    assert [r.rank for r in plan(network, SHAPE, half, calibrate=False).layers] == [
        14,
        8,
        36,
    ]


def test_stages_are_counted_by_their_runs(network):
    request = Request(
        images=90,
        batch_size=16,
        sets=3,
        inverted=40,
        inversion_steps=7,
        inversion_batch_size=16,
        steps=11,
        step_batch_size=16,
    )
    found = plan(network, SHAPE, request, calibrate=False)
    stages = {stage.name: stage for stage in found.stages}
    assert list(stages) == ["inversion", "statistics", "subspaces", "steps"]
    runs = {name: stage.runs for name, stage in stages.items()}
    assert runs == {"inversion": 21, "statistics": 6, "subspaces": 3, "steps": 11}
    assert all(stage.seconds is None for stage in found.stages)
    batch, masks = shape(16, *SHAPE, dtype=np.uint8), shape(16)
    one = program_cost(layer_grams, network, batch, masks)
    assert stages["statistics"].flops == 6 * one.flops > 0
    # Twice as many images in a batch take more memory; twice the batches do not.
    twice = plan(
        network, SHAPE, Request(images=180, batch_size=16, sets=3), calibrate=False
    )
    larger = plan(
        network, SHAPE, Request(images=90, batch_size=30, sets=3), calibrate=False
    )
    assert twice.stages[0].bytes == stages["statistics"].bytes < larger.stages[0].bytes
    nothing = Request(images=0, steps=0)
    assert plan(network, SHAPE, nothing, calibrate=False).stages == ()


def test_compiling_says_what_xla_asks_for(network):
    request = Request(images=16, batch_size=16, steps=0)
    found = plan(network, SHAPE, request, calibrate=False, compiled=True)
    batch, masks = shape(16, *SHAPE, dtype=np.uint8), shape(16)
    memory = (
        jax.jit(layer_grams).lower(network, batch, masks).compile().memory_analysis()
    )
    asked = (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
    )
    sums = 2 * sum(layer.moment_bytes for layer in found.layers)
    assert found.stages[0].bytes == pytest.approx(asked + sums, abs=1000)


def test_counts_are_checked():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Request(images=1, batch_size=0)
    with pytest.raises(ValueError, match="images must be at least 1"):
        Request(images=-1)


# Calibration.


def test_every_different_product_is_measured_once(monkeypatch):
    def function(x, kernel, images):
        return x @ x @ x, (x @ x.T).sum(), gradient(kernel, images)

    arguments = shape(64, 64), shape(3, 3, 4, 6), shape(2, 8, 8, 4)
    cost = program_cost(function, *arguments)
    monkeypatch.setattr(calibration, "_DECOMPOSITIONS", (8, 16))
    rates = measure([cost, cost])
    assert set(rates.products) == {p.signature for p in cost.products}
    assert len(rates.products) < len(cost.products)
    assert all(rate > 0 for rate in rates.products.values())
    known = sum(p.flops * rates.products[p.signature] for p in cost.products)
    assert rates.seconds(cost) == pytest.approx(known + cost.moved / rates.bandwidth)


def test_large_products_are_cut_along_rows_or_images():
    for function, arguments in (
        (jnp.matmul, [(512, 64), (64, 64)]),
        (gradient, [(3, 3, 4, 6), (512, 8, 8, 4)]),
    ):
        cost = program_cost(function, *(shape(*sizes) for sizes in arguments))
        for product in cost.products:
            shapes = calibration._cut(product.equation, 8)
            assert sorted(map(max, shapes))[-1] == 64
            flops = product_flops(product.equation, *shapes)
            assert flops == product.flops / 8


def test_times_of_decompositions_follow_a_power():
    rates = Rates({}, 1.0, {10: 1.0, 20: 4.0, 40: 64.0})
    assert rates.decomposition(20) == 4.0
    assert rates.decomposition(30) == pytest.approx(4 * 1.5**4)
    assert rates.decomposition(5) == pytest.approx(0.25)
    # No faster than the operations grow.
    assert rates.decomposition(80) == pytest.approx(512)


def test_a_calibrated_plan_predicts_every_stage(network, monkeypatch):
    monkeypatch.setattr(
        prediction,
        "measure",
        lambda costs: Rates(
            {p.signature: 1e-9 for cost in costs for p in cost.products},
            1e9,
            {64: 1.0, 128: 8.0},
        ),
    )
    found = plan(network, SHAPE, Request(images=32, batch_size=16))
    stages = {stage.name: stage for stage in found.stages}
    assert stages["statistics"].seconds >= stages["statistics"].flops * 1e-9
    sizes = [layer.d for layer in found.layers]
    expected = sum((d / 64) ** 3 for d in sizes)
    assert stages["subspaces"].seconds == pytest.approx(expected)
