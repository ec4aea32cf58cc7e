"""The projection against a dense twin, in every chain, and what it left."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra import (
    LAYOUTS,
    array,
    classifier,
    dense,
    leaf,
    matrix,
    moment,
    normal,
    projectors,
    subspace,
)

from jaxunlearn.capture.layout import View
from jaxunlearn.nullspace.projection import (
    NullSpaceState,
    drift,
    leakage,
    project_to_null_space,
    shrink_to_null_space,
)
from jaxunlearn.nullspace.projector import Projector
from jaxunlearn.nullspace.streaming_qr import row_subspaces

pytestmark = pytest.mark.core

CONV = View((3, 3, 2, 4)).layout("conv", (), (0, 1, 2), (3,))
DENSE = View((12, 5)).layout("dense", (), (0,), (1,))
# One weight through the thin form, one through the complement, one frozen.
SUBSPACES = {
    "conv": subspace(7, CONV, seed=1),
    "dense": subspace(9, DENSE, seed=2),
    "bias": None,
}
PARAMS = {"conv": normal((3, 3, 2, 4)), "dense": normal((12, 5)), "bias": normal((5,))}
TARGETS = {name: normal(x.shape, seed=9) for name, x in PARAMS.items()}


def loss(params):
    errors = jax.tree.map(lambda x, t: jnp.sum((x - t) ** 2 + x**4), params, TARGETS)
    return 0.01 * sum(jax.tree.leaves(errors))


def apply(record, update, transform=project_to_null_space):
    return UPDATE(update, transform(record).init(update))[0]


# Both are the same function for every transform, and compile once for every shape.
UPDATE = jax.jit(project_to_null_space(SUBSPACES).update)
leakages = jax.jit(leakage)


def twin(record, update):
    """`(I - U UT) D`, dense, in float64."""
    projector = np.eye(record.layout.fan_in) - projectors(record.basis)
    return leaf(record.layout, projector @ matrix(record.layout, update))


def worst(shares):
    return max(float(share) for share in jax.tree.leaves(shares))


# The linear algebra.


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, np.float64) for name in LAYOUTS), ("conv", np.float32)]
)
def test_every_layout_agrees_with_the_dense_twin(name, dtype):
    layout = LAYOUTS[name]
    d, update = layout.fan_in, normal(layout.shape, dtype=dtype)
    for rank in (1, d // 2 + 1):
        record = subspace(rank, layout, dtype=dtype, seed=rank)
        with jax.enable_x64(dtype == np.float64):
            result = apply(record, update)
        tolerance = 10 * np.finfo(dtype).eps
        np.testing.assert_allclose(result, twin(record, update), atol=tolerance)
        assert result.dtype == update.dtype
        assert result.shape == layout.shape


@pytest.mark.parametrize("padding", [0, 2])
def test_groups_of_different_rank_keep_their_own_projections(padding):
    layout = LAYOUTS["batched einsum"]
    record = subspace([0, 1, 4], layout, padding=padding)
    update = normal(layout.shape)
    result = apply(record, update)
    np.testing.assert_allclose(result, twin(record, update), atol=1e-6)
    np.testing.assert_array_equal(result[0], update[0])
    np.testing.assert_array_equal(result[2], 0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_moves_at_full_rank_and_everything_at_none(name):
    layout = LAYOUTS[name]
    update = normal(layout.shape)
    np.testing.assert_array_equal(apply(subspace(layout.fan_in, layout), update), 0)
    np.testing.assert_array_equal(apply(subspace(0, layout), update), update)


@given(st.sampled_from([1, 2, 5]), st.integers(0, 5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_projection_is_linear_idempotent_and_shrinks(d, rank, seed):
    layout, o = dense(d, 2), 2
    record = subspace(min(rank, d), layout, seed=seed, dtype=np.float64)
    with jax.enable_x64(True):
        one, other = (normal((d, o), seed + i, np.float64) for i in (1, 2))
        project = functools.partial(apply, record)
        result = project(one)
        np.testing.assert_allclose(project(result), result, atol=1e-13)
        np.testing.assert_allclose(
            project(one + 2 * other), result + 2 * project(other), atol=1e-13
        )
        assert np.linalg.norm(result) <= np.linalg.norm(one) * (1 + 1e-13)
        assert worst(leakages(result, record, relative_to=one)) < 1e-14


@pytest.mark.parametrize("rank", [3, 15])
def test_low_precision_updates_keep_their_dtype_and_full_precision_products(rank):
    record = subspace(rank, CONV)
    update = PARAMS["conv"].astype(jnp.bfloat16)
    result = apply(record, update)
    assert result.dtype == jnp.bfloat16
    exact = twin(record, update.astype(jnp.float32))
    error = np.abs(np.asarray(result, np.float64) - exact)
    # The last rounding alone: half a unit in the eighth bit.
    assert np.all(error <= 2.0**-8 * np.abs(exact) + 1e-6)


def test_low_precision_bases_are_computed_with_in_float32():
    record = subspace(3, CONV)
    record = dataclasses.replace(record, basis=record.basis.astype(jnp.bfloat16))
    assert project_to_null_space(record).init(PARAMS["conv"])[0].matrix.dtype == "f4"
    assert apply(record, PARAMS["conv"]).dtype == jnp.float32


def test_bases_of_rank_r_are_stored_in_buckets_of_an_eighth():
    layout = dense(15)
    widths = []
    for rank in range(16):
        record = subspace(rank, layout)
        state = project_to_null_space(record).init(jnp.ones((15, 3)))
        widths.append(state.projectors.matrix.shape[-1])
        assert bool(state.projectors.kept.all()) == (rank > 7)
    assert widths == [0, 2, 2, 4, 4, 6, 6, 8, 8, 6, 6, 4, 4, 2, 2, 0]


def test_leaves_without_a_subspace_get_exact_zeros():
    result = apply(SUBSPACES, PARAMS)
    np.testing.assert_array_equal(result["bias"], np.zeros(5, np.float32))
    assert result["bias"].dtype == jnp.float32


# Errors.


def test_trees_that_do_not_match_are_refused_by_path():
    tx = project_to_null_space(SUBSPACES)
    with pytest.raises(ValueError, match="only params has head"):
        tx.init({**PARAMS, "head": jnp.ones(2)})
    with pytest.raises(ValueError, match="only subspaces has bias"):
        tx.init({name: x for name, x in PARAMS.items() if name != "bias"})
    with pytest.raises(ValueError, match="containers differ"):
        project_to_null_space([SUBSPACES["conv"]]).init((PARAMS["conv"],))
    with pytest.raises(ValueError, match=r"params at dense are of shape \(5, 12\)"):
        tx.init({**PARAMS, "dense": jnp.ones((5, 12))})
    with pytest.raises(
        ValueError, match=r"updates at conv are of shape \(2, 3, 3, 4\)"
    ):
        tx.update({**PARAMS, "conv": jnp.ones((2, 3, 3, 4))}, tx.init(PARAMS))


def test_other_leaves_than_subspaces_are_refused_at_once():
    with pytest.raises(TypeError, match="a Subspace or None at conv/gram"):
        project_to_null_space({**SUBSPACES, "conv": moment(np.ones(18), CONV)})
    with pytest.raises(ValueError, match="at least one Subspace"):
        project_to_null_space({"a": None})


def test_columns_that_are_not_orthonormal_are_refused():
    record = SUBSPACES["conv"]
    scaled = dataclasses.replace(record, basis=record.basis * 1.1)
    tx = project_to_null_space({"conv": scaled})
    with pytest.raises(ValueError, match=r"conv: .* orthonormal or zero; .* by 0.21"):
        tx.init({"conv": PARAMS["conv"]})
    infinite = dataclasses.replace(record, basis=record.basis * np.nan)
    with pytest.raises(ValueError, match="orthonormal"):
        project_to_null_space(infinite).init(PARAMS["conv"])


def test_a_basis_of_another_shape_than_its_layout_is_refused():
    wrong = dataclasses.replace(SUBSPACES["conv"], layout=DENSE)
    with pytest.raises(ValueError, match=r"conv: .* end in \(1, 12, rank\)"):
        project_to_null_space({"conv": wrong}).init({"conv": jnp.ones((12, 5))})


# Optimisers before it.

OPTIMISERS = {
    "adafactor": lambda: optax.adafactor(0.01, weight_decay_rate=0.01),
    "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
    "adan": lambda: optax.adan(0.01, weight_decay=0.1),
    "lamb": lambda: optax.lamb(0.01, weight_decay=0.1),
    "lars": lambda: optax.lars(0.1, weight_decay=0.1),
    "lion": lambda: optax.lion(0.01, weight_decay=0.1),
    "novograd": lambda: optax.novograd(0.01, weight_decay=0.1),
    "adabelief": lambda: optax.adabelief(0.01),
    "adam": lambda: optax.adam(0.01),
    "adamax": lambda: optax.adamax(0.01),
    "amsgrad": lambda: optax.amsgrad(0.01),
    "fromage": lambda: optax.fromage(0.01),
    "nadam": lambda: optax.nadamw(0.01, weight_decay=0.1),
    "noisy sgd": lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
    "optimistic adam": lambda: optax.optimistic_adam_v2(0.01),
    "radam": lambda: optax.radam(0.01),
    "rmsprop": lambda: optax.rmsprop(0.01, momentum=0.9, centered=True),
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "sm3": lambda: optax.sm3(0.1),
    "yogi": lambda: optax.yogi(0.01),
    "clipping": lambda: optax.chain(
        optax.clip(0.01), optax.clip_by_global_norm(0.01), optax.sgd(0.1)
    ),
    "decay, ema, schedule": lambda: optax.chain(
        optax.add_decayed_weights(0.1),
        optax.ema(0.9),
        optax.scale_by_learning_rate(optax.linear_schedule(0.1, 0.0, 9)),
    ),
    "contrib ademamix": lambda: optax.contrib.ademamix(0.01),
    "contrib muon": lambda: optax.contrib.muon(0.01),
    "contrib prodigy": lambda: optax.contrib.prodigy(1.0),
}


@functools.partial(jax.jit, static_argnums=0)
def chained(optimiser, params, state):
    """One step of a chain: its update before and after the projection."""
    tx = optax.chain(optimiser, project_to_null_space(SUBSPACES))
    grads = jax.grad(loss)(params)
    raw, _ = optimiser.update(grads, state[0], params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, raw, updates


# The others are long: 23 compilations say little more than seven.
FIRST = {"adafactor", "adam", "adamw", "adan", "clipping", "lion", "sgd"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FIRST else pytest.mark.long)
        for name in OPTIMISERS
    ],
)
def test_no_optimiser_before_it_leaks(name):
    optimiser = OPTIMISERS[name]()
    projection = project_to_null_space(SUBSPACES).init(PARAMS)
    params, state = PARAMS, (jax.jit(optimiser.init)(PARAMS), projection)
    for _ in range(3):
        params, state, raw, updates = chained(optimiser, params, state)
        assert worst(leakages(updates, SUBSPACES, relative_to=raw)) <= 1e-5
        np.testing.assert_array_equal(updates["bias"], 0)
    assert worst(leakages(raw, SUBSPACES)) > 0.05
    total = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), params, PARAMS)
    # A sum of parameters and updates is rounded to the size of the parameters.
    assert worst(leakages(total, SUBSPACES, relative_to=PARAMS)) <= 1e-6
    assert np.any(total["conv"])
    assert np.any(total["dense"])


@pytest.mark.long
@pytest.mark.parametrize("name", ["lbfgs", "polyak sgd", "momo"])
def test_optimisers_that_ask_for_the_loss_work_before_it(name):
    optimiser = {
        "lbfgs": lambda: optax.lbfgs(),
        "polyak sgd": lambda: optax.polyak_sgd(0.5),
        "momo": lambda: optax.contrib.momo(0.5),
    }[name]()
    tx = optax.chain(optimiser, project_to_null_space(SUBSPACES))

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(params, updates), state, updates

    params, state = PARAMS, jax.jit(tx.init)(PARAMS)
    for _ in range(3):
        params, state, updates = step(params, state)
        assert worst(leakage(updates, SUBSPACES)) <= 1e-5
    assert loss(params) < loss(PARAMS)


@pytest.mark.long
def test_before_adam_it_leaks():
    tx = optax.chain(project_to_null_space(SUBSPACES), optax.adam(0.01))
    state = tx.init(PARAMS)
    for seed in range(3):
        grads = jax.tree.map(lambda x, s=seed: normal(x.shape, s), PARAMS)
        updates, state = tx.update(grads, state, PARAMS)
    shares = leakage(updates, SUBSPACES)
    assert min(float(shares["conv"]), float(shares["dense"])) > 0.05


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "leaks"),
    [
        ("scale", False),
        ("schedule", False),
        ("momentum", False),
        ("ema", False),
        ("apply every", False),
        ("global norm", False),
        ("clip", True),
        ("sign", True),
        ("decay", True),
        ("non-negative", True),
    ],
)
def test_only_linear_leaf_wise_steps_may_follow(name, leaks):
    follower = {
        "scale": optax.scale(-0.1),
        "schedule": optax.scale_by_schedule(optax.linear_schedule(0.1, 0.2, 5)),
        "momentum": optax.trace(0.9, nesterov=True),
        "ema": optax.ema(0.9),
        "apply every": optax.apply_every(3),
        "global norm": optax.clip_by_global_norm(0.01),
        "clip": optax.clip(0.3),
        "sign": optax.scale_by_sign(),
        "decay": optax.add_decayed_weights(0.5),
        "non-negative": optax.keep_params_nonnegative(),
    }[name]
    tx = optax.chain(project_to_null_space(SUBSPACES), follower)
    state = tx.init(PARAMS)
    for seed in range(3):
        grads = jax.tree.map(lambda x, s=seed: normal(x.shape, s), PARAMS)
        updates, state = tx.update(grads, state, PARAMS)
    share = worst(leakage(updates, SUBSPACES))
    assert share > 0.05 if leaks else share <= 1e-5
    assert worst(jax.tree.map(lambda u: jnp.abs(u).max(), updates["conv"])) > 0


@pytest.mark.long
@pytest.mark.parametrize("inside", [True, False])
def test_schedule_free_needs_the_projection_inside(inside):
    projection = project_to_null_space(SUBSPACES)
    if inside:
        base = optax.chain(optax.sgd(0.5), projection)
        tx = optax.contrib.schedule_free(base, 0.5)
    else:
        tx = optax.chain(optax.contrib.schedule_free(optax.sgd(0.5), 0.5), projection)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    averaged = optax.contrib.schedule_free_eval_params(
        state if inside else state[0], params
    )
    moved = jax.tree.map(jnp.subtract, averaged, PARAMS)
    share = worst(leakage(moved, SUBSPACES))
    assert share <= 1e-5 if inside else share > 0.05


def test_lookahead_takes_it_inside():
    fast = optax.chain(optax.adam(0.01), project_to_null_space(SUBSPACES))
    tx = optax.lookahead(fast, sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(params.fast), state, params)
        params = optax.apply_updates(params, updates)
    moved = jax.tree.map(jnp.subtract, params.slow, PARAMS)
    assert worst(leakage(moved, SUBSPACES)) <= 1e-5


# Wrappers around it.


def test_masked_leaves_pass_through():
    tx = optax.masked(
        project_to_null_space(SUBSPACES), {"conv": True, "dense": False, "bias": True}
    )
    state = tx.init(PARAMS)
    assert state.inner_state.projectors["dense"] is None
    updates, _ = jax.jit(tx.update)(PARAMS, state)
    np.testing.assert_array_equal(updates["dense"], PARAMS["dense"])
    np.testing.assert_array_equal(updates["bias"], 0)
    assert float(leakage(updates, SUBSPACES)["conv"]) < 1e-6
    hidden = {**PARAMS, "dense": optax.MaskedNode()}
    assert leakage(hidden, SUBSPACES)["dense"] is None


def test_partition_projects_some_and_stops_others():
    projected = optax.chain(optax.adam(0.1), project_to_null_space(SUBSPACES))
    tx = optax.partition(
        {"project": projected, "stop": optax.set_to_zero()},
        {"conv": "stop", "dense": "project", "bias": "project"},
    )
    updates, _ = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["conv"], 0)
    assert float(leakage(updates, SUBSPACES)["dense"]) < 1e-5
    assert float(jnp.abs(updates["dense"]).max()) > 0.01


def test_multi_steps_and_apply_if_finite_go_around_it():
    inner = optax.chain(optax.adam(0.1), project_to_null_space(SUBSPACES))
    for tx in (
        optax.MultiSteps(inner, 2).gradient_transformation(),
        optax.apply_if_finite(inner, 2),
    ):
        state = tx.init(PARAMS)
        for _ in range(2):
            updates, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
        assert worst(leakage(updates, SUBSPACES)) < 1e-5
        assert float(jnp.abs(updates["conv"]).max()) > 0.01


def test_inject_hyperparams_goes_around_it_and_prepares_once(monkeypatch):
    from jaxunlearn.nullspace import linalg

    complement = linalg.complement
    calls = []
    monkeypatch.setattr(
        linalg, "complement", lambda x: calls.append(1) or complement(x)
    )
    tx = optax.inject_hyperparams(
        lambda learning_rate: optax.chain(
            optax.sgd(learning_rate), project_to_null_space(SUBSPACES)
        )
    )(learning_rate=0.1)
    state = tx.init(PARAMS)
    for rate in (0.1, 0.2):
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        updates, state = jax.jit(tx.update)(PARAMS, state)
        expected = twin(SUBSPACES["dense"], PARAMS["dense"])
        np.testing.assert_allclose(updates["dense"], -rate * expected, atol=1e-6)
    assert len(calls) == 1


# Traces, batches and devices.


def test_close_ranks_share_one_trace_and_bases_are_arguments():
    params = {"kernel": jnp.ones((64, 3))}

    def transform(rank):
        record = {"kernel": subspace(rank, dense(64), seed=rank)}
        return project_to_null_space(record), record

    update = transform(1)[0].update
    assert transform(60)[0].update is update
    counted = jax.jit(chex.assert_max_traces(update, 2))
    updates = {"kernel": normal((64, 3))}
    # 17 to 24 columns of the basis or of the complement, then 1 to 8.
    for rank in (17, 24, 41, 46, 3, 8, 62):
        tx, record = transform(rank)
        result, _ = counted(updates, tx.init(params))
        expected = twin(record["kernel"], updates["kernel"])
        np.testing.assert_allclose(result["kernel"], expected, atol=1e-5)


def test_bases_are_not_constants_of_the_program():
    tx = project_to_null_space(SUBSPACES)
    jaxpr = jax.make_jaxpr(tx.update)(PARAMS, tx.init(PARAMS))
    assert sum(np.size(constant) for constant in jaxpr.consts) == 0


def test_a_chain_compiles_once_for_many_steps():
    tx = optax.chain(optax.adam(0.1), project_to_null_space(SUBSPACES))
    step = jax.jit(chex.assert_max_traces(tx.update, 1))
    state = tx.init(PARAMS)
    for seed in range(3):
        grads = jax.tree.map(lambda x, s=seed: normal(x.shape, s), PARAMS)
        _, state = step(grads, state, PARAMS)


@pytest.mark.parametrize("rank", [0, 2, 12])
def test_init_may_run_inside_jit(rank):
    record = subspace(rank, DENSE)
    tx = project_to_null_space(record)
    update = normal((12, 5))
    state = jax.jit(tx.init)(update)
    result, _ = jax.jit(tx.update)(update, state)
    np.testing.assert_allclose(result, twin(record, update), atol=1e-6)
    shapes = jax.eval_shape(tx.init, update)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)


@pytest.mark.parametrize("rank", [0, 2, 11, 12])
def test_traced_bases_take_the_thin_form(rank):
    record, update = subspace(rank, DENSE), normal((12, 5))
    result = jax.jit(apply)(record, update)
    np.testing.assert_allclose(result, twin(record, update), atol=1e-6)
    mapped = jax.vmap(apply)(
        *jax.tree.map(lambda x: jnp.stack([x] * 2), (record, update))
    )
    np.testing.assert_allclose(mapped[1], twin(record, update), atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("ranks", [(17, 41), (0, 0), (64, 64)])
def test_states_stack_and_vmap(shared, ranks):
    layout = dense(64)
    records = [subspace(rank, layout, seed=rank) for rank in ranks]
    updates = normal((2, 64, 3))
    states = [project_to_null_space(r).init(updates[0]) for r in records]
    state = jax.tree.map(lambda *x: jnp.stack(x), *states)
    update = project_to_null_space(records[0]).update
    axes = (None, 0) if shared else (0, 0)
    given = updates[0] if shared else updates
    result, _ = jax.jit(jax.vmap(update, in_axes=axes))(given, state)
    for index, record in enumerate(records):
        expected = twin(record, updates[0 if shared else index])
        np.testing.assert_allclose(result[index], expected, atol=1e-5)
    result, _ = jax.vmap(update, in_axes=(0, None))(updates, states[0])
    np.testing.assert_allclose(result[1], twin(records[0], updates[1]), atol=1e-5)


def test_stacked_subspaces_make_a_stacked_state():
    layout = LAYOUTS["scanned"]
    records = [
        subspace(rank, layout, seed=rank, padding=4 - rank) for rank in (1, 3, 4)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *records)
    updates = normal((3, *layout.shape))
    tx = project_to_null_space({"k": stacked})
    state = tx.init({"k": updates})
    together, _ = tx.update({"k": updates}, state)
    one_by_one, _ = jax.vmap(tx.update)({"k": updates}, tx.init({"k": updates[0]}))
    for result in (together["k"], one_by_one["k"]):
        for index, record in enumerate(records):
            expected = twin(record, updates[index])
            np.testing.assert_allclose(result[index], expected, atol=1e-6)
    shares = leakage(together, {"k": stacked}, relative_to={"k": updates})["k"]
    assert shares.shape == (3,)
    assert float(shares.max()) < 1e-6
    with pytest.raises(ValueError, match=r"updates at k are of shape \(2, 4, 3\)"):
        tx.update({"k": updates[0]}, state)


def test_shard_map_and_sharded_updates_agree_with_one_device():
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec
    tx = optax.chain(optax.sgd(1.0), project_to_null_space(SUBSPACES))
    state = tx.init(PARAMS)
    expected, _ = tx.update(PARAMS, state)

    def mean_of_shards(updates, state):
        # One shard holds the gradients, the other none.
        here = jax.lax.axis_index("d").astype(jnp.float32)
        updates = jax.tree.map(lambda x: jax.lax.psum(here * x, "d"), updates)
        return tx.update(updates, state)[0]

    place = functools.partial(
        jax.device_put, device=jax.sharding.NamedSharding(mesh, spec())
    )
    mapped = jax.shard_map(
        mean_of_shards, mesh=mesh, in_specs=(spec(), spec()), out_specs=spec()
    )
    result = jax.jit(mapped)(place(PARAMS), place(state))
    chex.assert_trees_all_close(result, expected, atol=1e-6)

    requests = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), PARAMS)
    split = jax.sharding.NamedSharding(mesh, spec("d"))
    mapped = jax.shard_map(
        jax.vmap(lambda u, s: tx.update(u, s)[0], in_axes=(0, None)),
        mesh=mesh,
        in_specs=(spec("d"), spec()),
        out_specs=spec("d"),
    )
    result = jax.jit(mapped)(jax.device_put(requests, split), place(state))
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: np.asarray(x)[1], result),
        jax.tree.map(lambda x: 2 * x, expected),
        atol=1e-5,
    )


# The state.


def test_the_state_is_a_tree_of_arrays_that_checkpoints(tmp_path):
    import orbax.checkpoint as ocp

    tx = project_to_null_space(SUBSPACES)
    state = tx.init(PARAMS)
    assert isinstance(state, NullSpaceState)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(
            tmp_path / "state", jax.eval_shape(tx.init, PARAMS)
        )
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal(
        tx.update(PARAMS, restored)[0], tx.update(PARAMS, state)[0]
    )


def test_records_in_the_state_survive_what_jax_puts_into_them():
    state = project_to_null_space(SUBSPACES).init(PARAMS)
    shapes = jax.eval_shape(lambda s: s, state)
    assert isinstance(shapes.projectors["conv"], Projector)
    assert jax.tree.map(lambda _: None, state).projectors["dense"].matrix is None


def test_optax_tells_the_bases_from_parameters():
    tx = optax.chain(optax.trace(0.9), project_to_null_space(SUBSPACES))
    trace, projection = optax.tree.map_params(
        tx, lambda x: 0, tx.init(PARAMS), transform_non_params=lambda x: 1
    )
    assert set(jax.tree.leaves(trace)) == {0}
    assert set(jax.tree.leaves(projection)) == {1}


@pytest.mark.parametrize("rank", [3, 9])
def test_float64_bases_serve_a_float32_program(rank):
    record, update = subspace(rank, DENSE, dtype=np.float64), normal((12, 5))
    state = project_to_null_space(record).init(update)
    assert state.projectors.matrix.dtype == jnp.float32
    np.testing.assert_allclose(apply(record, update), twin(record, update), atol=1e-6)
    assert float(leakage(apply(record, update), record, relative_to=update)) < 1e-6


# The ridge.


def ridge_twin(record, damping, update):
    gram = np.asarray(record.gram, np.float64)
    trace = np.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    d = record.layout.fan_in
    share = gram / np.where(trace > 0, trace, 1)
    kept = damping * np.linalg.inv(share + damping * np.eye(d))
    return leaf(record.layout, kept @ matrix(record.layout, update))


def test_the_ridge_of_the_worked_example():
    record = moment([1, 1])
    record = dataclasses.replace(record, gram=jnp.asarray([[[2.0, 1.0], [1.0, 1.0]]]))
    shrink = functools.partial(shrink_to_null_space, damping=0.1)
    columns = [apply(record, jnp.eye(2, 3, k), shrink) for k in (0, -1)]
    kept = np.stack([np.asarray(column[:, 0], np.float64) for column in columns], 1)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(kept), [0.102809, 0.439905], atol=1e-6
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("damping", [1e-4, 0.1, 10])
@pytest.mark.parametrize("rank", [1, None])
def test_the_ridge_agrees_with_a_dense_inverse(name, damping, rank):
    layout = LAYOUTS[name]
    spectrum = 3.0 ** -np.arange(layout.fan_in)
    if rank:
        spectrum[rank:] = 0
    # Rotation would leave rounding where the zeros are.
    record = moment(7 * spectrum, layout, rotate=rank is None)
    shrink = functools.partial(shrink_to_null_space, damping=damping)
    update = normal(layout.shape)
    tx = shrink(record)
    assert tx.init(update).projectors.dense == (rank is None)
    np.testing.assert_allclose(
        apply(record, update, shrink), ridge_twin(record, damping, update), atol=2e-6
    )


def test_a_ridge_of_no_damping_is_the_projection():
    record = moment([4, 2, 1, 0, 0, 0, 0, 0], rotate=False)
    exact = dataclasses.replace(subspace(3, dense(8)), basis=jnp.eye(8, 3)[None])
    update = normal((8, 3))
    shrink = functools.partial(shrink_to_null_space, damping=1e-7)
    np.testing.assert_allclose(
        apply(record, update, shrink), apply(exact, update), atol=2e-6
    )


def test_groups_and_classes_of_a_ridge_are_normalised_apart():
    layout = LAYOUTS["batched einsum"]
    spectra = np.array([[8, 4, 2, 1], [0, 0, 0, 0], [4e-6, 2e-6, 1e-6, 0]])
    record = moment(spectra, layout)
    shrink = functools.partial(shrink_to_null_space, damping=0.01)
    update = normal(layout.shape)
    result = apply(record, update, shrink)
    np.testing.assert_allclose(result, ridge_twin(record, 0.01, update), atol=1e-5)
    np.testing.assert_array_equal(result[1], update[1])
    classes = moment(np.stack([spectra, spectra[::-1]]), layout)
    stacked = apply(classes, jnp.stack([update, update]), shrink)
    np.testing.assert_allclose(
        stacked[1],
        ridge_twin(jax.tree.map(lambda a: a[1], classes), 0.01, update),
        atol=1e-5,
    )


def test_both_transforms_share_one_update():
    shrink = shrink_to_null_space(moment([2, 1]), damping=0.1)
    assert shrink.update is project_to_null_space(SUBSPACES).update
    tree = {"k": moment([2, 1]), "b": None}
    result = apply(
        tree,
        {"k": jnp.ones((2, 3)), "b": jnp.ones(3)},
        functools.partial(shrink_to_null_space, damping=0.1),
    )
    np.testing.assert_array_equal(result["b"], 0)


@pytest.mark.parametrize(
    ("damping", "error", "words"),
    [
        (0.0, ValueError, "damping must be positive and finite; it is 0.0"),
        (-1.0, ValueError, "positive and finite"),
        (np.inf, ValueError, "positive and finite"),
        (np.nan, ValueError, "positive and finite"),
        (True, TypeError, "damping must be a number; it is a bool"),
    ],
)
def test_damping_is_checked(damping, error, words):
    with pytest.raises(error, match=words):
        shrink_to_null_space(moment([2, 1]), damping=damping)


def test_moments_of_a_ridge_are_checked():
    with pytest.raises(TypeError, match="a Moment or None at k/basis"):
        shrink_to_null_space({"k": subspace(1, dense(3))}, damping=0.1)
    with pytest.raises(TypeError, match="k is traced"):
        jax.jit(lambda m: shrink_to_null_space({"k": m}, damping=0.1).init(m))(
            moment([2, 1])
        )
    bad = dataclasses.replace(moment([2, 1]), gram=jnp.full((1, 2, 2), jnp.nan))
    with pytest.raises(ValueError, match="k: its second moment is not finite"):
        shrink_to_null_space({"k": bad}, damping=0.1).init({"k": jnp.ones((2, 3))})


# What is left.


@pytest.mark.parametrize("name", LAYOUTS)
def test_leakage_is_a_ratio_of_frobenius_norms(name):
    layout = LAYOUTS[name]
    record = subspace(2, layout)
    update, raw = normal(layout.shape), normal(layout.shape, 3)
    inside = np.swapaxes(np.asarray(record.basis, np.float64), 1, 2) @ matrix(
        layout, update
    )
    for other, reference in ((None, update), (raw, raw)):
        result = leakages(update, record, relative_to=other)
        expected = np.linalg.norm(inside) / np.linalg.norm(reference)
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_leakage_of_nothing_is_zero_and_of_a_tiny_update_is_not():
    record, update = subspace(2, DENSE), normal((12, 5))
    assert float(leakage(jnp.zeros((12, 5)), record)) == 0
    assert float(leakage(update, record, relative_to=jnp.zeros((12, 5)))) == 0
    assert float(leakage(update, subspace(0, DENSE))) == 0
    np.testing.assert_allclose(
        leakage(update * 1e-30, record), leakage(update, record), rtol=1e-5
    )


def test_what_is_left_of_nan_is_nan():
    record, update = subspace(2, DENSE), np.full((12, 5), np.nan, np.float32)
    inputs, params = moment(np.ones(12), DENSE), normal((12, 5))
    assert np.isnan(leakage(update, record))
    assert np.isnan(drift(inputs, params, update))
    assert np.isnan(drift(inputs, update, update))


def test_leakage_checks_its_trees():
    with pytest.raises(ValueError, match="updates and subspaces .* only updates has b"):
        leakage({"a": PARAMS["conv"], "b": 0}, {"a": SUBSPACES["conv"]})
    with pytest.raises(ValueError, match="relative_to and subspaces"):
        leakage(PARAMS, SUBSPACES, relative_to={})
    with pytest.raises(ValueError, match="relative_to at conv are of shape"):
        leakage(PARAMS, SUBSPACES, relative_to={**PARAMS, "conv": jnp.ones(3)})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drift_is_the_change_of_the_outputs_on_the_rows(dtype):
    rng = np.random.default_rng(0)
    for name in ("conv", "grouped conv", "scanned"):
        layout = LAYOUTS[name]
        rows = rng.normal(size=(layout.groups, 30, layout.fan_in))
        gram = np.swapaxes(rows, 1, 2) @ rows
        record = moment(np.ones(layout.fan_in), layout)
        record = dataclasses.replace(record, gram=array(gram, dtype))
        before, after = (normal(layout.shape, seed, dtype) for seed in (1, 2))
        outputs = [rows @ matrix(layout, x) for x in (before, after)]
        expected = np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0])
        with jax.enable_x64(dtype == np.float64):
            result = jax.jit(drift)({"k": record}, {"k": before}, {"k": after})["k"]
        np.testing.assert_allclose(result, expected, rtol=20 * np.finfo(dtype).eps)
        assert result.dtype == dtype


def test_drift_has_one_number_a_class():
    spectra = np.array([[[2.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
    layout = dense(2, 1)
    record = moment(spectra, layout, rotate=False)
    before, after = jnp.asarray([[1.0], [1.0]]), jnp.asarray([[1.0], [2.0]])
    result = drift(
        {"k": record, "b": None}, {"k": before, "b": 1}, {"k": after, "b": 2}
    )
    np.testing.assert_allclose(result["k"], [0, np.sqrt(0.5), 0], atol=1e-7)
    assert result["b"] is None
    assert float(drift(moment([1, 1], layout), 0 * before, after)) == np.inf


def test_drift_checks_its_trees():
    record = moment([1, 1])
    with pytest.raises(ValueError, match="after and moments must be trees of one"):
        drift({"k": record}, {"k": jnp.ones((2, 3))}, {})
    with pytest.raises(ValueError, match=r"before at k are of shape \(3, 2\)"):
        drift({"k": record}, {"k": jnp.ones((3, 2))}, {"k": jnp.ones((2, 3))})
    with pytest.raises(TypeError, match="a Moment or None at k/basis"):
        drift({"k": SUBSPACES["conv"]}, {"k": 1}, {"k": 1})


# The theorem.


class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(5, (3, 3), strides=2, param_dtype=np.float64)(images)
        return nn.Dense(3, param_dtype=np.float64)(nn.relu(x).reshape(len(x), -1))


def test_logits_of_protected_images_do_not_change():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        retained, forgotten = (jnp.asarray(rng.normal(size=(1, 5, 5, 3))) for _ in "12")
        network = classifier(Network(), retained)
        subspaces = row_subspaces(network, retained, rtol=1e-12)
        tx = optax.chain(
            optax.adamw(0.05, weight_decay=0.1), project_to_null_space(subspaces)
        )

        def forget(params):
            logits = network.replace(params=params)(forgotten)
            return optax.softmax_cross_entropy(logits, np.eye(3)[:1]).sum()

        @jax.jit
        def step(params, state):
            updates, state = tx.update(jax.grad(forget)(params), state, params)
            return optax.apply_updates(params, updates), state

        @jax.jit
        def logits(params):
            images = jnp.concatenate([retained, forgotten])
            return network.replace(params=params)(images)

        params, state = network.params, tx.init(network.params)
        before = np.asarray(logits(params))
        for _ in range(50):
            params, state = step(params, state)
        change = np.abs(np.asarray(logits(params)) - before).max(axis=1)
        assert change[0] <= 1e-10 * np.abs(before[0]).max()
        assert change[1] > 0.1
