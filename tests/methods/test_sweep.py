"""Sweeps: every request as if it were alone, at the cost of one."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from counting import compilations

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.methods import stacked, statistics
from jaxunlearn.methods.grid import TOLERANCE, choose

K, KEY = 4, jax.random.key(3)
# Of unequal sizes, one of them less than a minibatch.
COUNTS = (9, 5, 12, 8)
SETS = ((0,), (1,), (2, 3))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Dense(12)(images.reshape(len(images), -1)))
        return nn.Dense(K)(x)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(K), COUNTS))
    bright = rng.random((K, 8, 8, 1), np.float32)
    noise = rng.random((len(labels), 8, 8, 1), np.float32)
    return ju.Data(bright[labels] + noise, labels)


def frozen(model, data):
    """Parameters and statistics drawn at random, far from those of fresh layers."""
    variables = jax.jit(model.init)(jax.random.key(0), data.images)
    rng = np.random.default_rng(1)

    def moved(path, x):
        noise = rng.normal(0, 0.1, x.shape).astype(np.float32)
        return x + np.abs(noise) if "var" in str(path) else x + noise

    return ju.freeze(model, jax.tree_util.tree_map_with_path(moved, variables))


@pytest.fixture(scope="module")
def mlp(data):
    return frozen(MLP(), data)


@pytest.fixture(scope="module")
def cnn(data):
    return frozen(ju.models.create("smallcnn", num_classes=K, width=2), data)


def unsc(**fields):
    common = {"energy": 0.9, "steps": 4, "batch_size": 8, "learning_rate": 0.3}
    return ju.UNSC(**{**common, **fields})


def task(data, classes):
    forget, retain = ju.split_by_class(data, classes)
    return ju.Task(forget, retain, classes, num_classes=K)


def relative(one, other, start, images):
    """How far two classifiers are apart, in units of how far one has moved."""
    one, other, start = (np.asarray(c(images)) for c in (one, other, start))
    moved = np.linalg.norm(one - start)
    assert moved > 1e-3 * np.linalg.norm(start), "it has not moved: nothing is shown"
    return np.linalg.norm(one - other) / moved


METHODS = {
    "merged": unsc(merge_energy=0.9),
    "pooled": unsc(subspace="pooled", momentum=0.5),
    "ridge": unsc(projection="ridge", learning_rate=1.0),
    "soft": ju.Unprojected(
        steps=4, batch_size=8, learning_rate=0.3, targets="retained-probabilities"
    ),
}


@pytest.mark.parametrize(
    "name",
    ["soft", *(pytest.param(n, marks=pytest.mark.long) for n in [*METHODS][:-1])],
)
def test_every_result_is_that_of_the_method_alone(name, mlp, data):
    method = METHODS[name]
    swept = ju.sweep(mlp, data, SETS, method, key=KEY)
    assert swept.requests == SETS
    # Each size compiles the method anew: all of them once, else the small one.
    compared = range(3) if name == "merged" else [1]
    for classes, result in ((SETS[i], swept.results[i]) for i in compared):
        alone = method(mlp, task(data, classes), key=KEY)
        assert result.trace.ranks == alone.trace.ranks
        assert result.trace.losses == pytest.approx(alone.trace.losses, rel=1e-4)
        pair = alone.classifier, result.classifier
        assert relative(*pair, mlp, data.images) < 1e-4
        assert result.trace.samples_read["forget"] == 4 * min(8, COUNTS[classes[0]])


@pytest.mark.long
@pytest.mark.core
def test_a_convolutional_network_with_batch_norm_too(cnn, data):
    method = unsc(learning_rate=3.0)
    swept = ju.sweep(cnn, data, SETS[1:], method, key=KEY)
    alone = method(cnn, task(data, SETS[1]), key=KEY)
    pair = alone.classifier, swept.results[0].classifier
    assert relative(*pair, cnn, data.images) < 1e-4
    assert swept.results[0].classifier.state is cnn.state


@pytest.mark.long
def test_covarnav_inverts_once_for_all(mlp, data):
    method = ju.CovarNav(
        images_per_class=3, inversion_steps=3, energy=0.8, steps=4, batch_size=8
    )
    swept = ju.sweep(mlp, data, SETS, method, key=KEY)
    proxies = swept.proxies
    assert np.bincount(proxies.labels).tolist() == [3] * K
    assert swept.samples_read["statistics"] == 0
    steps_key = jax.random.split(KEY)[1]
    for classes, result in zip(SETS, swept.results, strict=True):
        # Proxies of the classes that this request retains, and the method's own steps.
        retained = proxies.images[~np.isin(proxies.labels, classes)]
        moments = ju.second_moments(mlp, retained)
        projection = ju.project_to_null_space(ju.subspaces(moments, energy=0.8))
        images = task(data, classes).forget.images
        targets = ju.nearest_retained_labels(mlp(images), classes)
        given = mlp, images, targets, method.optimizer(projection)
        alone = ju.unlearn(*given, steps=4, batch_size=8, key=steps_key)
        pair = alone.classifier, result.classifier
        assert relative(*pair, mlp, data.images) < 1e-4


@pytest.fixture(scope="module")
def reference(mlp, data):
    return ju.sweep(mlp, data, SETS, unsc(), key=KEY)


def assert_same(swept, reference, images):
    for one, other in zip(swept.results, reference.results, strict=True):
        found, wanted = (r.classifier(images) for r in (one, other))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.trace.losses, other.trace.losses, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "counts"), [("vmap", (1, 8)), ("map", (4,)), ("one by one", (2, 8))]
)
def test_all_ways_agree_on_any_number_of_devices(
    how, counts, mlp, data, reference, monkeypatch
):
    held, run_steps = [], stacked.run_steps

    def spy(step, carry, constants, *, feed, **options):
        for axis, tree in enumerate((carry, feed(0, 1))):
            for x in jax.tree.leaves(tree):
                part = x.sharding.shard_shape(x.shape)
                held.append((x.shape[axis], part[axis], x.size / np.prod(part)))
        return run_steps(step, carry, constants, feed=feed, **options)

    assert_same(
        ju.sweep(mlp, data, SETS, unsc(), key=KEY, how=how), reference, data.images
    )
    monkeypatch.setattr(stacked, "run_steps", spy)
    for count in counts:
        held.clear()
        mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])
        swept = ju.sweep(mlp, data, SETS, unsc(), key=KEY, how=how, mesh=mesh)
        assert_same(swept, reference, data.images)
        # What belongs to requests is cut, not copied.
        assert held
        assert all(
            whole == count * part and devices == count for whole, part, devices in held
        )


@pytest.mark.long
def test_each_class_takes_one_pass_and_compiles_nothing_new(mlp, data, monkeypatch):
    calls, class_moments = [], statistics.class_moments

    def counted(classifier, images, *arguments, **options):
        calls.append(len(images))
        return class_moments(classifier, images, *arguments, **options)

    monkeypatch.setattr(statistics, "class_moments", counted)
    method = unsc(energy=None, rank=3)
    swept = ju.sweep(mlp, data, "each", method, key=KEY)
    assert swept.requests == ((0,), (1,), (2,), (3,))
    assert calls == [len(data)]
    assert swept.passes == {"statistics": 1, "labels": 1}
    assert swept.samples_read["statistics"] == swept.samples_read["labels"] == len(data)
    with compilations() as seen:
        ju.sweep(mlp, data, [[3], [0], [1], [2]], method, key=jax.random.key(9))
    assert not seen


@pytest.mark.long
@pytest.mark.parametrize("subspace", ["merged", "pooled"])
def test_passes_by_memory_give_the_same(subspace, mlp, data, monkeypatch):
    method = unsc(subspace=subspace)
    whole = ju.sweep(mlp, data, SETS, method, key=KEY)
    monkeypatch.setattr(statistics, "class_passes", lambda *_, **__: [(0, 1), (2, 3)])
    parted = ju.sweep(mlp, data, SETS, method, key=KEY)
    assert parted.passes["statistics"] == 2
    assert_same(parted, whole, data.images)
    if subspace == "pooled":
        with pytest.raises(ValueError, match=r"\[0, 1, 2\] do not fit into memory"):
            ju.sweep(mlp, data, [[0, 1, 2], [3]], method, key=KEY)


@pytest.mark.long
def test_off_the_cpu_the_faster_way_is_measured(mlp, data, reference, monkeypatch):
    assert reference.how == "one by one"
    assert reference.at_once == 1
    assert reference.step_seconds == {}
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: False)
    swept = ju.sweep(mlp, data, SETS, unsc(), key=KEY)
    assert set(swept.step_seconds) == {"vmap", "map"}
    assert swept.how == min(swept.step_seconds, key=swept.step_seconds.get)
    assert_same(swept, reference, data.images)


@pytest.mark.long
@pytest.mark.parametrize("how", ["vmap", "map"])
def test_as_many_requests_at_once_as_memory_holds(
    how, mlp, data, reference, monkeypatch
):
    taken, run_steps = [], stacked.run_steps

    def spy(step, carry, constants, *, feed, **options):
        program = jax.jit(step, donate_argnums=0)
        given = carry, constants, np.int32(0), jax.tree.map(lambda x: x[0], feed(0, 1))
        memory = program.lower(*given).compile().memory_analysis()
        taken.append(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
        return run_steps(step, carry, constants, feed=feed, **options)

    def leave(free, share):
        # To the statistics of the same sweep memory is as it is.
        monkeypatch.setattr(stacked, "free_memory", lambda devices: free)
        monkeypatch.setattr(stacked, "SHARE", share)
        taken.clear()

    monkeypatch.setattr(stacked, "run_steps", spy)
    counts = []
    for free, share in ((2**30, 0.5), (140_000, 0.5), (40_000, 0.01)):
        leave(free, share)
        swept = ju.sweep(mlp, data, SETS, unsc(), key=KEY, how=how)
        assert_same(swept, reference, data.images)
        assert len(taken) == -(-len(SETS) // swept.at_once)
        assert max(taken) < free
        counts.append(swept.at_once)
        leaves = jax.tree.leaves([r.classifier.params for r in swept.results])
        assert all(isinstance(x, np.ndarray) == (share < 0.5) for x in leaves)
    assert counts == [3, 2, 1]
    # Each of two devices holds two.
    leave(140_000, 0.5)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    swept = ju.sweep(mlp, data, SETS, unsc(), key=KEY, how=how, mesh=mesh)
    assert (swept.at_once, len(taken)) == (4, 1)
    assert_same(swept, reference, data.images)


@pytest.mark.long
def test_one_rate_is_chosen_for_all_on_validation_data(mlp, data):
    rates = np.array([0.3, 1e30, 3.0, 0.01])
    swept = ju.sweep(mlp, data, SETS, unsc(), key=KEY, validation=data, rates=rates)
    # At the absurd rate losses are not finite: it is no candidate.
    assert [trial.value for trial in swept.trials] == [0.01, 0.3, 3.0]
    for trial in swept.trials:
        method = unsc(learning_rate=trial.value)
        found = ju.sweep(mlp, data, SETS, method, key=KEY).evaluate(data)
        assert trial.retained == pytest.approx(np.mean([e.retained for e in found]))
        assert trial.forgotten == pytest.approx(np.mean([e.forgotten for e in found]))
    gains = [trial.retained - trial.forgotten for trial in swept.trials]
    near = [gain >= max(gains) - TOLERANCE for gain in gains]
    assert swept.tuned == {"learning_rate": swept.trials[near.index(True)].value}
    with pytest.raises(FloatingPointError, match="extend the grid downwards"):
        ju.sweep(mlp, data, SETS, unsc(), key=KEY, validation=data, rates=[1e30])


@pytest.mark.parametrize("finite", [25.0, 1e-3])
def test_a_grid_of_which_all_diverge_goes_on_to_gentler_values(finite):
    def judge(method):
        if method.learning_rate > finite:
            raise FloatingPointError
        return 90.0, 90.0 - method.learning_rate

    candidates = [unsc(learning_rate=rate) for rate in (300.0, 1000.0, 2000.0)]
    if finite < 1:  # Two decades are as far as it goes.
        with pytest.raises(FloatingPointError, match="extend the grid downwards"):
            choose(candidates, judge, lambda *_: None)
        return
    choice = choose(candidates, judge, lambda *_: None)
    assert choice.method.learning_rate == 20.0
    assert [trial.value for trial in choice.trials] == [3.0, 10.0, 20.0]


@pytest.mark.long
def test_a_request_that_diverges_is_named(mlp, data):
    with pytest.raises(FloatingPointError, match=r"forgetting \[\d"):
        ju.sweep(mlp, data, SETS, unsc(learning_rate=1e30), key=KEY)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"requests": "all"}, ValueError, 'must be "each" or sets of classes'),
        ({"requests": []}, ValueError, "requests are empty"),
        ({"requests": [[0], []]}, ValueError, r"requests\[1\] is empty"),
        ({"requests": [[7]]}, ValueError, r"requests\[0\] names class 7"),
        (
            {"requests": [0, 1]},
            ValueError,
            r"two readings: write \[\[0, 1\]\] .* \[\[0\], \[1\]\]",
        ),
        ({"requests": [[0, 1], [1, 0]]}, ValueError, "are the same classes"),
        ({"requests": [[0, 1, 2]]}, ValueError, "leave at least one to retain"),
        ({"requests": [[3]]}, ValueError, r"class 3, named in requests\[0\]"),
        ({"method": ju.Retrain()}, ValueError, r"Retrain needs Task\(train="),
        ({"method": "unsc"}, TypeError, "method must be called as"),
        ({"how": "pmap"}, ValueError, "how must be one of"),
        ({"rates": [0.1]}, ValueError, "judged on validation data"),
        ({"rates": [-1.0]}, ValueError, "learning_rate must be positive"),
    ],
)
def test_refusals(change, error, sentence, mlp, data):
    three = data.labels < 3
    data = ju.Data(data.images[three], data.labels[three])
    asked = {"requests": "each", "method": unsc(), **change}
    requests, method = asked.pop("requests"), asked.pop("method")
    with pytest.raises(error, match=sentence):
        ju.sweep(mlp, data, requests, method, key=KEY, **asked)


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("requests", ["each", [[0]]])
@pytest.mark.parametrize("targets", ["nearest-retained", "retained-probabilities"])
def test_float64_images_of_numpy_are_taken_without_a_warning(requests, targets):
    """One request and many; newer versions of JAX warn of types that they narrow."""
    images = np.random.default_rng(0).normal(size=(12, 2, 2, 1))
    model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    variables = model.init(jax.random.key(0), images.astype(np.float32))
    classifier, data = ju.freeze(model, variables), ju.Data(images, np.arange(12) % 3)
    method = ju.UNSC(learning_rate=0.1, steps=2, targets=targets)
    results = ju.forget(method, classifier, data, requests, key=jax.random.key(1))
    assert len(results) == len(requests if requests != "each" else range(3))
    assert all(np.isfinite(result.trace.losses).all() for result in results)
