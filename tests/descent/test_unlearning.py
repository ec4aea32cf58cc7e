"""The unlearning loop against loops by hand, and what it refuses."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import compilations
from flax import nnx

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.checks import check_count
from jaxunlearn.descent import loop, unlearning
from jaxunlearn.descent.loop import CHUNK, minibatches
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.descent.unlearning import Result, Trace, unlearn

KEY = jax.random.key(7)
TRACES = []


class Net(nn.Module):
    """A convolution, BatchNorm in use, and a head; counts its traces."""

    @nn.compact
    def __call__(self, x, train=False):
        TRACES.append(x.shape)
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Dense(nn.Module):
    """A hidden layer and a head: quick to compile."""

    @nn.compact
    def __call__(self, x):
        TRACES.append(x.shape)
        x = nn.Dense(4, name="hidden")(x.reshape(x.shape[0], -1))
        return nn.Dense(3, name="head")(jnp.tanh(x))


def drawn(seed, dtype, **shapes):
    """Parameters by NumPy: initialisers would be most of the time of these tests."""
    rng = np.random.default_rng(seed)
    return {
        layer: {
            name: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, dtype)
            for name, shape in leaves.items()
        }
        for layer, leaves in shapes.items()
    }


def make(seed=0, preprocess=None, dtype=jnp.float32):
    params = drawn(
        seed,
        dtype,
        Conv_0={"kernel": (3, 3, 2, 4), "bias": (4,)},
        BatchNorm_0={"scale": (4,), "bias": (4,)},
        Dense_0={"kernel": (16, 3), "bias": (3,)},
    )
    statistics = drawn(1, dtype, BatchNorm_0={"mean": (4,), "var": (4,)})
    state = jax.tree.map(jnp.abs, statistics)
    variables = {"params": params, "batch_stats": state}
    return ju.freeze(Net(), variables, preprocess=preprocess)


def make_dense(seed=0, preprocess=None, dtype=jnp.float32):
    params = drawn(
        seed,
        dtype,
        head={"kernel": (4, 3), "bias": (3,)},
        hidden={"kernel": (32, 4), "bias": (4,)},
    )
    return ju.freeze(Dense(), {"params": params}, preprocess=preprocess)


def data(n=12, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, 4, 4, 2)).astype(np.float32)
    return images, rng.integers(0, 3, size=n)


def pixels(n=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 2), dtype=np.uint8)


def assert_trees_close(one, other, **tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def sgd(rate):
    """With the rate in its state, so that most tests share a few programs."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


@jax.jit
def loss_and_gradient(classifier, images, targets):
    def loss(params):
        logits = classifier.replace(params=params)(images)
        if targets.ndim == 1:
            values = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        else:
            values = optax.softmax_cross_entropy(logits, targets)
        return values.mean()

    return jax.value_and_grad(loss)(classifier.params)


def by_hand(classifier, images, targets, optimizer, steps, batch_size):
    """The same loop with nothing in it: optax's own example."""
    order = minibatches(jax.random.split(KEY)[0], len(images), batch_size)
    params, state = classifier.params, optimizer.init(classifier.params)
    losses = []
    for index in range(steps):
        rows = order(index, index + 1)[0]
        current = classifier.replace(params=params)
        loss, grads = loss_and_gradient(current, images[rows], targets[rows])
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return params, losses


@pytest.fixture(params=["steps", "loop"])
def path(request, monkeypatch):
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: request.param == "steps")


# What it computes


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize(("batch_size", "soft"), [(5, False), (12, True)])
def test_it_is_the_loop_that_one_writes_by_hand(path, batch_size, soft):
    classifier, (images, targets) = make_dense() if soft else make(), data()
    if soft:
        targets = np.asarray(jax.nn.softmax(np.eye(3)[targets] * 2), np.float32)
    optimizer = optax.adam(0.02)
    result = unlearn(
        classifier, images, targets, optimizer, steps=30, key=KEY, batch_size=batch_size
    )
    params, losses = by_hand(classifier, images, targets, optimizer, 30, batch_size)
    np.testing.assert_allclose(result.trace.losses, losses, rtol=2e-4)
    assert_trees_close(result.classifier.params, params, atol=1e-4)
    assert result.trace.losses[-1] < result.trace.losses[0]
    assert result.trace.samples_read == {"forget": 30 * batch_size, "retain": 0}


@pytest.mark.core
def test_a_step_of_sgd_is_the_gradient_of_the_mean():
    """In NumPy: a softmax regression."""
    rng = np.random.default_rng(0)
    model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    kernel, bias = rng.normal(size=(4, 3)), rng.normal(size=3)
    dense = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    classifier = ju.freeze(model, {"params": {"layers_1": dense}})
    images, labels = rng.normal(size=(5, 2, 2, 1)), np.array([0, 1, 2, 2, 1])
    for _ in range(3):
        x = images.reshape(5, 4)
        logits = x @ kernel + bias
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        slope = (p - np.eye(3)[labels]) / 5
        kernel, bias = kernel - 0.5 * x.T @ slope, bias - 0.5 * slope.sum(0)
    result = unlearn(classifier, images, labels, sgd(0.5), steps=3, key=KEY)
    dense = result.classifier.params["layers_1"]
    np.testing.assert_allclose(dense["kernel"], kernel, atol=1e-5)
    np.testing.assert_allclose(dense["bias"], bias, atol=1e-5)


def test_only_parameters_change():
    classifier, (images, targets) = make(), data()
    before = jax.tree.map(np.array, classifier)
    result = unlearn(classifier, images, targets, sgd(0.1), steps=3, key=KEY)
    assert_trees_close(classifier, before, rtol=0)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(classifier))
    assert_trees_close(result.classifier.state, before.state, rtol=0)
    assert result.classifier.network is classifier.network
    changed = jax.tree.map(
        lambda x, y: bool((x != y).any()), result.classifier.params, before.params
    )
    # The mean that BatchNorm subtracts makes the bias before it useless, in training
    # alone: in use it moves like any other.
    assert all(jax.tree.leaves(changed))


def test_an_optimizer_state_that_holds_the_callers_arrays_leaves_them_alone():
    classifier, (images, targets) = make_dense(), data()
    bases = jnp.ones(5)
    transform = optax.GradientTransformation(
        lambda params: bases, lambda updates, state, params=None: (updates, state)
    )
    chain = optax.chain(sgd(0.1), transform)
    unlearn(classifier, images, targets, chain, steps=3, key=KEY)
    assert not bases.is_deleted()


@pytest.mark.core
def test_the_key_decides_everything():
    classifier, (images, targets) = make_dense(), data()

    def run(key):
        options = {"steps": 7, "batch_size": 5, "augment": shifted, "key": key}
        return unlearn(classifier, images, targets, sgd(0.1), **options)

    one, same, other = run(KEY), run(KEY), run(jax.random.key(8))
    assert one.trace.losses.tolist() == same.trace.losses.tolist()
    assert_trees_close(one.classifier.params, same.classifier.params, rtol=0)
    assert one.trace.losses.tolist() != other.trace.losses.tolist()


def shifted(key, images):
    return images + 0.1 * jax.random.normal(key, images.shape)


def test_both_kinds_of_labels_agree():
    classifier, (images, targets) = make_dense(), data()
    rows = np.eye(3, dtype=np.float32)[targets]
    hard, soft = (
        unlearn(classifier, images, t, sgd(0.1), steps=5, key=KEY)
        for t in (targets, rows)
    )
    np.testing.assert_allclose(hard.trace.losses, soft.trace.losses, rtol=1e-5)


@pytest.mark.parametrize("n", [200, 300])
def test_the_default_batch_is_the_whole_set_up_to_256(n):
    images, targets = data(n)
    result = unlearn(make_dense(), images, targets, sgd(0.1), steps=1, key=KEY)
    assert result.trace.samples_read["forget"] == min(n, 256)


def test_a_batch_larger_than_the_set_is_the_set():
    classifier, (images, targets) = make_dense(), data()
    options = {"steps": 2, "key": KEY}
    one = unlearn(classifier, images, targets, sgd(0.1), batch_size=100, **options)
    other = unlearn(classifier, images, targets, sgd(0.1), **options)
    assert one.trace.losses.tolist() == other.trace.losses.tolist()
    assert one.trace.samples_read["forget"] == 24


def test_parameters_may_lie_on_several_devices(path):
    classifier, (images, targets) = make_dense(), data()
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    one, other = (
        unlearn(c, images, targets, sgd(0.1), steps=2, key=KEY)
        for c in (classifier, jax.device_put(classifier, whole))
    )
    np.testing.assert_allclose(one.trace.losses, other.trace.losses, rtol=1e-6)
    kernel = other.classifier.params["head"]["kernel"]
    assert len(kernel.sharding.device_set) == 8


def test_nnx_and_frozen_leaves():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(32, 3, rngs=rngs)

        def __call__(self, x):
            return self.dense(x.reshape(x.shape[0], -1))

    classifier, (images, targets) = ju.freeze(Model(nnx.Rngs(0))), data()
    labels = {"dense": {"kernel": "move", "bias": "stay"}}
    transforms = {"move": optax.adam(0.1), "stay": optax.set_to_zero()}
    chain = optax.partition(transforms, labels)
    result = unlearn(classifier, images, targets, chain, steps=20, key=KEY)
    after = result.classifier.params["dense"]
    np.testing.assert_array_equal(after["bias"], classifier.params["dense"]["bias"])
    assert result.trace.losses[-1] < result.trace.losses[0]


# Losses, augmentation, callbacks


def test_a_loss_of_ones_own():
    classifier, (images, targets) = make_dense(), data()

    def margin(logits, targets):
        return logits.max(axis=1) - logits[:, 0] + 0 * targets

    result = unlearn(
        classifier, images, targets, sgd(0.01), steps=2, key=KEY, loss=margin
    )
    logits = classifier(images)
    first = (logits.max(axis=1) - logits[:, 0]).mean()
    np.testing.assert_allclose(result.trace.losses[0], first, rtol=1e-5)


def test_cross_entropy_is_optax_s():
    logits = jax.random.normal(KEY, (4, 3))
    labels, rows = jnp.array([0, 1, 2, 2]), jax.nn.softmax(logits[::-1])
    np.testing.assert_allclose(
        cross_entropy(logits, labels),
        optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        cross_entropy(logits, rows),
        optax.softmax_cross_entropy(logits, rows),
        rtol=1e-6,
    )
    assert cross_entropy(logits.astype(jnp.bfloat16), labels).dtype == jnp.float32


def test_cross_entropy_with_a_class_ruled_out():
    logits, rows = jnp.array([[0.0, 0.0, -jnp.inf]]), jnp.array([[0.5, 0.5, 0.0]])
    value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, rows).sum())(logits)
    assert value == pytest.approx(np.log(2))
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("floats", [False, True])
def test_augmentation_works_on_pixels(floats):
    """It sees [0, 1] whatever the images' type, and the network its result."""
    preprocess = ju.Preprocess(mean=(0.5, 0.4), std=(0.25, 0.2))
    classifier, images, targets = make_dense(preprocess=preprocess), pixels(), data()[1]
    seen = []

    def fade(key, images):
        jax.debug.callback(lambda x: seen.append((x.min(), x.max())), images)
        return images / 2

    given = (images / 255).astype(np.float32) if floats else images
    result = unlearn(
        classifier, given, targets, sgd(0.0), steps=2, key=KEY, augment=fade
    )
    jax.effects_barrier()
    for low, high in seen:
        assert 0 <= low < 0.1
        assert 0.9 < high <= 1
    assert len(seen) == 2
    faded = classifier((images / 510).astype(np.float32))
    expected = cross_entropy(faded, jnp.asarray(targets)).mean()
    np.testing.assert_allclose(result.trace.losses, [expected] * 2, rtol=1e-5)


def test_augmentation_draws_anew_in_every_step():
    classifier, (images, targets) = make_dense(), data()
    result = unlearn(
        classifier, images, targets, sgd(0.0), steps=5, key=KEY, augment=shifted
    )
    assert len(set(result.trace.losses.tolist())) == 5


@pytest.mark.core
def test_bytes_and_floats_are_the_same_images():
    classifier = make_dense(preprocess=ju.Preprocess(mean=0.5, std=0.25))
    images, targets = pixels(), data()[1]
    results = [
        unlearn(classifier, x, targets, sgd(0.1), steps=3, key=KEY)
        for x in (images, (images / 255).astype(np.float32), jnp.asarray(images))
    ]
    losses = [r.trace.losses for r in results]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[2].tolist() == losses[0].tolist()


def test_the_callback_gets_every_step_in_order(path):
    classifier, (images, targets) = make_dense(), data()
    calls, steps = [], 2 * CHUNK + 3
    result = unlearn(
        classifier,
        images,
        targets,
        sgd(0.1),
        steps=steps,
        key=KEY,
        callback=lambda step, loss: calls.append((step, loss)),
    )
    assert [step for step, _ in calls] == list(range(steps))
    assert [loss for _, loss in calls] == result.trace.losses.tolist()
    assert {type(loss) for _, loss in calls} == {float}


def test_a_callback_may_interrupt():
    classifier, (images, targets) = make_dense(), data()

    def stop(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(
            classifier,
            images,
            targets,
            sgd(0.1),
            steps=99,
            key=KEY,
            callback=stop,
        )
    assert jnp.isfinite(classifier(images)).all()


def test_large_images_come_in_smaller_chunks(monkeypatch):
    calls, advance = [], unlearning.run_steps
    monkeypatch.setattr(
        unlearning,
        "run_steps",
        lambda *a, **k: calls.append(k["chunk"]) or advance(*a, **k),
    )
    classifier, (images, targets) = make_dense(), data()
    for limit in (2**28, 3 * images.nbytes, 1):
        monkeypatch.setattr(loop, "CHUNK_BYTES", limit)
        unlearn(classifier, images, targets, sgd(0.1), steps=4, key=KEY)
    assert calls == [CHUNK, 3, 1]


# Optimizers


OPTIMIZERS = {
    "lbfgs": optax.lbfgs(memory_size=2),
    "polyak": optax.polyak_sgd(max_learning_rate=0.1),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01)),
    "schedule free": optax.contrib.schedule_free_sgd(0.1),
    "masked": optax.chain(
        optax.masked(
            optax.trace(0.5), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        ),
        optax.sgd(0.1),
    ),
    "multi": optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "slow"),
    [*((name, True) for name in OPTIMIZERS), ("multi", False)],
)
def test_optimizers_of_every_kind_run(monkeypatch, name, slow):
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: slow)
    classifier, (images, targets) = make_dense(), data()
    optimizer = OPTIMIZERS[name]
    result = unlearn(classifier, images, targets, optimizer, steps=8, key=KEY)
    assert result.trace.losses[-1] < result.trace.losses[0]


@pytest.mark.long
def test_polyak_gets_the_loss():
    classifier, (images, targets) = make_dense(), data()
    optimizer = optax.polyak_sgd(max_learning_rate=10.0, f_min=0.1)
    result = unlearn(classifier, images, targets, optimizer, steps=1, key=KEY)

    value, grads = loss_and_gradient(classifier, images, targets)
    rate = (value - 0.1) / optax.tree.norm(grads, squared=True)
    assert rate < 10
    expected = jax.tree.map(lambda p, g: p - rate * g, classifier.params, grads)
    assert_trees_close(result.classifier.params, expected, atol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.01),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    ],
    ids=["adam", "injected"],
)
def test_parameters_keep_their_types(optimizer):
    classifier, (images, targets) = make_dense(dtype=jnp.bfloat16), data()
    head = jax.tree.map(lambda x: x.astype(jnp.float32), classifier.params["head"])
    classifier = classifier.replace(params={**classifier.params, "head": head})
    result = unlearn(classifier, images, targets, optimizer, steps=4, key=KEY)
    types = lambda c: jax.tree.map(lambda x: x.dtype, c.params)  # noqa: E731
    assert types(result.classifier) == types(classifier)
    assert len(set(jax.tree.leaves(types(classifier)))) == 2


def test_float64_all_the_way(path):
    with jax.enable_x64(True):
        classifier, (images, targets) = make_dense(dtype=jnp.float64), data()
        images = images.astype(np.float64)
        result = unlearn(classifier, images, targets, sgd(0.1), steps=3, key=KEY)
        assert result.trace.losses.dtype == np.float64
        leaves = jax.tree.leaves(result.classifier.params)
        assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float64)}


# Compiled programs are shared


def stepping(scale):
    """As a projection does it: arrays in the state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda p: jnp.full_like(p, scale), params),
        lambda updates, state, params=None: (
            jax.tree.map(lambda u, s: u * s, updates, state),
            state,
        ),
    )


def injected(rate, scale):
    sgd = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
    return optax.chain(optax.clip_by_global_norm(1.0), sgd, stepping(scale))


@pytest.mark.core
def test_a_further_request_of_the_same_shapes_compiles_nothing(path):
    TRACES.clear()
    classifier, (images, targets) = make_dense(), data(11)
    options = {"steps": 4, "batch_size": 3, "key": KEY}
    one = unlearn(classifier, images, targets, injected(0.1, 1.0), **options)
    assert len(TRACES) <= 3  # the checks, once for two images, and the step
    other, (images, targets) = make_dense(seed=1), data(11, seed=1)
    options |= {"steps": 9, "key": jax.random.key(9)}
    chain = injected(0.2, 0.5)
    TRACES.clear()
    with compilations() as compiled:
        two = unlearn(other, images, targets, chain, **options)
    # Initialising a transform is the caller's own code.
    assert not TRACES
    assert not compiled
    assert two.trace.losses[0] != one.trace.losses[0]


@pytest.mark.long
@pytest.mark.core
def test_sharing_a_program_changes_no_result():
    classifier, (images, targets) = make_dense(), data()
    options = {"steps": 4, "key": KEY}
    for rate, scale in [(0.1, 1.0), (0.2, 0.5), (0.3, 0.0)]:
        chain = injected(rate, scale)
        result = unlearn(classifier, images, targets, chain, **options)
        params, losses = by_hand(classifier, images, targets, chain, 4, 12)
        np.testing.assert_allclose(result.trace.losses, losses, rtol=1e-4)
        assert_trees_close(result.classifier.params, params, atol=1e-5)


@pytest.mark.core
def test_optimizers_that_differ_in_a_number_share_nothing():
    classifier, (images, targets) = make_dense(), data()
    for rate in (0.1, 0.2, 0.1):
        optimizer = optax.chain(optax.clip(0.05), optax.sgd(rate))
        result = unlearn(classifier, images, targets, optimizer, steps=3, key=KEY)
        params, losses = by_hand(classifier, images, targets, optimizer, 3, 12)
        np.testing.assert_allclose(result.trace.losses, losses, rtol=1e-4)
        assert_trees_close(result.classifier.params, params, atol=1e-5)


def test_sets_of_other_sizes_share_the_step():
    classifier = make_dense()
    options = {"steps": 2, "batch_size": 4, "key": KEY}
    unlearn(classifier, *data(13), sgd(0.1), **options)
    TRACES.clear()
    with compilations() as compiled:
        unlearn(classifier, *data(17), sgd(0.1), **options)
    assert not TRACES
    assert len(compiled) <= 1  # the gather


def test_losses_and_augmentations_are_compared_by_what_they_compute():
    classifier, (images, targets) = make_dense(), data()

    def run(weight, shift):
        return unlearn(
            classifier,
            images,
            targets,
            sgd(0.1),
            steps=2,
            key=KEY,
            loss=lambda logits, targets: cross_entropy(logits, targets) * weight,
            augment=lambda key, images: images + shift,
        )

    run(2.0, jnp.float32(0.1))
    TRACES.clear()
    with compilations() as compiled:
        same = run(2.0, jnp.float32(0.1))
        again = run(2.0, jnp.float32(0.1))
    assert not TRACES
    assert not compiled
    assert same.trace.losses.tolist() == again.trace.losses.tolist()
    half = run(1.0, jnp.float32(0.1))
    np.testing.assert_allclose(
        half.trace.losses[0] * 2, same.trace.losses[0], rtol=1e-5
    )


@pytest.mark.long
def test_an_optimizer_that_searches_is_compared_by_identity():
    classifier, (images, targets) = make_dense(), data()
    optimizer = OPTIMIZERS["lbfgs"]
    unlearn(classifier, images, targets, optimizer, steps=2, key=KEY)
    TRACES.clear()
    with compilations() as compiled:
        unlearn(classifier, images, targets, optimizer, steps=3, key=KEY)
    assert not TRACES
    assert not compiled


# The record


def test_seconds_split_compilation_off():
    classifier, (images, targets) = make_dense(), data(9)
    options = {"steps": 3, "key": KEY, "batch_size": 7}
    first = unlearn(classifier, images, targets, sgd(0.1), **options).trace
    second = unlearn(classifier, images, targets, sgd(0.1), **options).trace
    assert set(first.seconds) == {"compile", "steps"}
    assert first.seconds["compile"] > 5 * second.seconds["compile"]
    assert second.seconds["steps"] > 0


def test_records_have_defaults():
    trace = Trace()
    assert trace.losses.shape == (0,)
    assert trace.proxies is None
    assert trace.ranks == trace.surviving_gradient == trace.seconds == {}
    assert Result(make_dense()).trace.samples_read == {}


# What it refuses


def test_it_stops_where_the_loss_is_not_finite(path):
    classifier, (images, targets) = make(), data()
    calls = []
    with pytest.raises(FloatingPointError, match="Lower the learning rate") as info:
        unlearn(
            classifier,
            images,
            targets,
            sgd(1e30),
            steps=10 * CHUNK,
            key=KEY,
            callback=lambda step, loss: calls.append(step),
        )
    assert f"at step {len(calls)}," in str(info.value)
    assert 0 < len(calls) < CHUNK


def test_it_says_so_where_only_the_last_update_is_not_finite():
    classifier, (images, targets) = make(), data()
    with pytest.raises(
        FloatingPointError, match="After the last step BatchNorm_0/bias"
    ):
        unlearn(classifier, images, targets, optax.sgd(jnp.inf), steps=1, key=KEY)


def mixing(params, state, images):
    rows = images.reshape(len(images), -1)
    return (rows - rows.mean(0, keepdims=True)) @ params["w"]


IMAGES, TARGETS = data()
ROWS = np.full((12, 3), 1 / 3, np.float32)
NAN = np.where(np.arange(12)[:, None, None, None] == 4, np.nan, IMAGES)
INF = np.where(np.isnan(NAN), np.inf, IMAGES)
WRONG = {
    "rank of images": ({"images": IMAGES[0]}, ValueError, r"\[n, h, w, c\]"),
    "bytes": ({"images": pixels()}, TypeError, "no Preprocess"),
    "integers": ({"images": pixels().astype(np.int32)}, TypeError, "floating point"),
    "no images": ({"images": IMAGES[:0]}, ValueError, "images are empty"),
    "nan": ({"images": NAN}, ValueError, "NaN or infinite pixels.*index 4"),
    "infinity": ({"images": INF}, ValueError, "NaN or infinite pixels"),
    "length": ({"targets": TARGETS[:7]}, ValueError, r"each of the 12 images.*\(7,\)"),
    "label 3": (
        {"targets": TARGETS * 0 + 3},
        ValueError,
        "0 to 2; .* to 3.*index 0",
    ),
    "label -1": ({"targets": TARGETS * 0 - 1}, ValueError, "0 to 2; .* from -1"),
    "float labels": (
        {"targets": ROWS[:, 0]},
        TypeError,
        r"labels must be integers.*\[n, k\]",
    ),
    "integer rows": (
        {"targets": np.eye(3, dtype=int)[TARGETS]},
        ValueError,
        "as floats",
    ),
    "booleans": ({"targets": TARGETS > 0}, TypeError, "they are bool"),
    "columns": ({"targets": ROWS[:, :2]}, ValueError, r"\[n, 3\].*\(12, 2\)"),
    "negative": ({"targets": ROWS - 1}, ValueError, "row 0 has minimum -0.6667"),
    "sum": ({"targets": ROWS * 2}, ValueError, "row 0 has minimum 0.6667 and sum 2"),
    "nan row": ({"targets": ROWS * np.nan}, ValueError, "sum nan"),
    "no steps": ({"steps": 0}, ValueError, "steps must be at least 1; it is 0"),
    "half steps": ({"steps": 2.5}, TypeError, "steps must be an integer; it is 2.5"),
    "true steps": ({"steps": True}, TypeError, "steps must be an integer; it is True"),
    "batch": (
        {"batch_size": -4},
        ValueError,
        "batch_size must be at least 1; it is -4",
    ),
    "optimizer": (
        {"optimizer": optax.sgd},
        TypeError,
        "optax transformation.*function",
    ),
    "optimizer of parts": (
        {"optimizer": (optax.sgd(0.1), optax.sgd(0.1))},
        TypeError,
        "optax transformation.*tuple",
    ),
    "sam": (
        {"optimizer": optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1))},
        ValueError,
        "contrib.sam asks for gradients at points of its own",
    ),
    "mask of another tree": (
        {"optimizer": optax.masked(optax.sgd(0.1), {"head": True})},
        ValueError,
        "optimizer fails on the classifier's parameters",
    ),
    "update without params": (
        {"optimizer": optax.GradientTransformation(lambda p: (), lambda u, s: (u, s))},
        TypeError,
        "optimizer fails on .*positional argument",
    ),
    "classifier": ({"classifier": {"w": 1}}, TypeError, "must be a Classifier.*dict"),
    "network that mixes": (
        {"classifier": ju.freeze(ju.Function(mixing, {"w": jnp.ones((32, 3))}))},
        ValueError,
        "must depend on that image alone",
    ),
    "no classifier": ({"classifier": None}, TypeError, "a Classifier.*NoneType"),
    "ragged": ({"images": [[1, 2], [3]]}, TypeError, "images must be an array"),
    "list of images": ({"images": ["cat.png"]}, (TypeError, ValueError), "images must"),
    "channels": ({"images": IMAGES[..., :1]}, ValueError, "channel"),
    "wide labels": ({"targets": TARGETS + 2**32}, ValueError, "0 to 2; .*4294967"),
    "masked": (
        {"targets": np.ma.masked_array(TARGETS, TARGETS > 0)},
        ValueError,
        "targets are a masked array",
    ),
    "many steps": ({"steps": 2**70}, ValueError, "steps must be at most"),
    "text": ({"steps": "3"}, TypeError, "steps must be an integer; it is '3'"),
    "large batch": ({"batch_size": 2**70}, ValueError, "batch_size must be at most"),
    "no loss": ({"loss": None}, TypeError, "loss must be a Callable; it is a NoneType"),
    "augment by name": (
        {"augment": "flip"},
        TypeError,
        "augment must be a function or None",
    ),
    "callback": ({"callback": 3}, TypeError, "callback must be a function or None"),
    "loss that fails": (
        {"loss": lambda logits: logits},
        TypeError,
        r"loss fails on logits float32\[12, 3\] and targets int32\[12\]. TypeError",
    ),
    "augment that fails": (
        {"augment": lambda key, images: 1 / 0},
        ValueError,
        r"augment fails on images float32\[12, 4, 4, 2\]. ZeroDivisionError",
    ),
    "seed": ({"key": 0}, TypeError, "jax.random.key.*it is int"),
    "old key": ({"key": np.zeros(2, np.uint32)}, TypeError, r"it is uint32\[2\]"),
    "keys": ({"key": jax.random.split(KEY)}, TypeError, "one jax.random.key"),
    "mean loss": (
        {"loss": lambda logits, targets: cross_entropy(logits, targets).mean()},
        ValueError,
        r"one float for each of the 12 samples.*it returned float32\[\]",
    ),
    "two losses": (
        {"loss": lambda logits, targets: (targets, targets)},
        ValueError,
        "one float for each",
    ),
    "augment": (
        {"augment": lambda key, images: images[:1]},
        ValueError,
        r"float32\[12, 4, 4, 2\]; it returned float32\[1, 4, 4, 2\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_refuses(name):
    changes, error, words = WRONG[name]
    given = {
        "classifier": make_dense(),
        "images": IMAGES,
        "targets": TARGETS,
        "optimizer": optax.sgd(0.1),
        "steps": 2,
        "key": KEY,
    }
    # Without the checks of types that only tests have: users get the sentences.
    plain = inspect.unwrap(unlearn)
    with pytest.raises(error, match=words) as info:
        plain(**{**given, **changes})
    assert len(str(info.value)) <= 1000


@pytest.mark.core
def test_floats_that_are_no_pixels_are_refused():
    classifier = make_dense(preprocess=ju.Preprocess(mean=0.5, std=0.25))
    images = pixels().astype(np.float32)
    with pytest.raises(ValueError, match="range from 0 to 255"):
        unlearn(classifier, images, TARGETS, sgd(0.1), steps=1, key=KEY)


@pytest.mark.core
def test_a_call_inside_jit_is_refused():
    classifier = make_dense()

    @jax.jit
    def inside(images):
        return unlearn(classifier, images, TARGETS, sgd(0.1), steps=1, key=KEY)

    with pytest.raises(TypeError, match="unlearn runs many programs"):
        inside(IMAGES)


def test_multi_steps_are_taken_as_they_are():
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2)
    options = {"steps": 4, "key": KEY, "batch_size": 5}
    one, other = (
        unlearn(make_dense(), IMAGES, TARGETS, given, **options)
        for given in (optimizer, optimizer.gradient_transformation())
    )
    assert one.trace.losses.tolist() == other.trace.losses.tolist()


@pytest.mark.long
def test_nothing_need_be_compiled():
    """As people debug."""
    given = make_dense(), IMAGES, TARGETS, sgd(0.1)
    compiled = unlearn(*given, steps=3, key=KEY, batch_size=5)
    with jax.disable_jit():
        result = unlearn(*given, steps=3, key=KEY, batch_size=5)
    np.testing.assert_allclose(result.trace.losses, compiled.trace.losses, rtol=1e-4)


def test_images_may_be_of_another_byte_order():
    pairs = (IMAGES, TARGETS), (IMAGES.astype(">f4"), TARGETS.astype(">i8"))
    results = [
        unlearn(make_dense(), *pair, sgd(0.1), steps=1, key=KEY) for pair in pairs
    ]
    losses = {float(result.trace.losses[0]) for result in results}
    assert len(losses) == 1


def test_half_precision_probabilities_are_probabilities():
    rows = jax.nn.softmax(jax.random.normal(KEY, (12, 3))).astype(jnp.bfloat16)
    result = unlearn(make_dense(), IMAGES, rows, sgd(0.1), steps=1, key=KEY)
    assert result.trace.losses.dtype == np.float32


def test_counts_may_be_numpy_s():
    assert check_count("steps", np.int32(5)) == 5
