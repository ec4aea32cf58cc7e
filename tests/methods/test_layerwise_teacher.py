"""Layers towards a masked teacher, beside the normal equations of explicit rows."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxunlearn as ju
from jaxunlearn import methods
from jaxunlearn.capture.residuals import Residuals, find_places
from jaxunlearn.methods import layerwise_teacher
from jaxunlearn.nullspace.targets import (
    TargetMoments,
    change_toward,
    strongest_within,
)

KEY, K = jax.random.key(3), 5
METHOD = methods.LayerwiseTeacher(mu=0.7, damping=1e-2)


class Convolutional(nn.Module):
    """A strided convolution with a bias, one without, and a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = jnp.tanh(nn.Conv(6, (3, 3), use_bias=False)(x))
        return nn.Dense(K, name="head")(x.mean(axis=(1, 2)))


class Grouped(nn.Module):
    """Feature groups, tokens, and a product of several axes."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=2)(x))
        x = x.reshape(len(x), -1, 4)
        x = jnp.tanh(nn.DenseGeneral((2, 3), name="wide")(x))
        x = jnp.tanh(nn.Einsum((2, 3, 4), "ntgi,gio->ntgo", use_bias=False)(x))
        return nn.Dense(K, name="head")(x.mean(axis=1).reshape(len(x), -1))


def deep(params, state, images):
    x = images.reshape(len(images), -1)
    x = jax.nn.relu(x @ params["body"]["kernel"] + params["body"]["bias"][None])
    return x @ params["head"]["kernel"] + params["head"]["bias"][None]


def linear(params, state, images):
    return images.reshape(len(images), -1) @ params["kernel"] + params["bias"][None]


def draw(rng, shapes):
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s) / s[0] ** 0.5),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )


def problem(kind, forgotten=(4,), shape=(4, 4, 2), n=90, seed=0):
    """A random classifier in float64, and a task whose classes it half knows."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, *shape))
    if isinstance(kind, type):
        model = kind()
        shapes = jax.eval_shape(model.init, KEY, images[:1])["params"]
        params = draw(rng, jax.tree.map(lambda s: s.shape, shapes))
        classifier = ju.freeze(model, {"params": params})
    else:
        d = int(np.prod(shape))
        sizes = {"kernel": (d, K), "bias": (K,)}
        if kind is deep:
            body = {"kernel": (d, 7), "bias": (7,)}
            sizes = {"body": body, "head": {"kernel": (7, K), "bias": (K,)}}
        classifier = ju.freeze(ju.Function(kind, draw(rng, sizes)))
    data = ju.Data(images, np.arange(n) % K)
    sets = ju.split_by_class(data, forgotten)
    return classifier, ju.Task(*sets, forgotten, num_classes=K)


def numbers(x):
    return np.array(x, np.float64)


def by_path(tree):
    is_leaf = lambda x: x is None or hasattr(x, "layout")  # noqa: E731
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in pairs}


def all_rows(classifier, task):
    """By path `[g, n, p, d]` of both sets, and how the weight is read."""
    images = np.concatenate([task.retain.images, task.forget.images])
    found = by_path(jax.jit(ju.layer_inputs)(classifier, images))
    rows = {}
    for path, one in found.items():
        if one is not None:
            x = numbers(one.inputs)
            x = x.reshape(len(x), len(images), -1, x.shape[-1])
            rows[path] = np.split(x, [len(task.retain)], axis=1), one.layout
    return rows


def explicit(classifier, task, weights, mu, damping):
    """The docstring's equations, row by row, in the order of `(weight, bias)`."""
    z = numbers(classifier(task.forget.images))
    z[:, list(task.forget_classes)] = -np.inf
    q = np.exp(z - z.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    changed, before = classifier, all_rows(classifier, task)
    leaves = by_path(classifier.params)
    for number, (path, bias) in enumerate(weights):
        inputs, layout = before[path]
        W, sets = numbers(layout.to_matrix(leaves[path])), []
        if bias is not None:
            below = numbers(leaves[bias]).reshape(len(W), 1, -1)
            W = np.concatenate([W, below], axis=1)
        for old, new in zip(inputs, all_rows(changed, task)[path][0], strict=True):
            if bias is not None:
                one = np.ones((*old.shape[:3], 1))
                old, new = (np.concatenate([x, one], axis=3) for x in (old, new))
            sets.append((new, np.einsum("gnpd,gdo->gnpo", old, W)))
        (xr, zr), (xf, zf) = sets
        means = np.zeros((K, *np.delete(zr.shape, 1)))
        for k in np.unique(task.retain.labels):
            means[k] = zr[:, task.retain.labels == k].mean(axis=1)
        y = np.einsum("nk,kgpo->gnpo", q, means)
        if number == len(weights) - 1:
            keep = np.setdiff1d(np.arange(K), task.forget_classes)
            high, usual = (
                numbers(jax.nn.logsumexp(classifier(s.images)[:, keep], axis=1))
                for s in (task.forget, task.retain)
            )
            labels = task.retain.labels
            usual = np.array([usual[labels == k].sum() for k in range(K)])
            usual /= np.maximum(np.bincount(labels, minlength=K), 1)
            y += (high - q @ usual)[None, :, None, None]
            y[..., keep] = zf[..., keep]
        solved = []
        for g in range(len(W)):
            total, right = 0, 0
            for weight, x, t in ((1, xr[g], zr[g]), (mu, xf[g], y[g])):
                x, t = x.reshape(-1, x.shape[-1]), t.reshape(-1, t.shape[-1])
                total = total + weight * x.T @ x / len(x)
                right = right + weight * x.T @ t / len(x)
            eps = damping * np.trace(total) / len(total)
            solved.append(
                np.linalg.solve(total + eps * np.eye(len(total)), right + eps * W[g])
            )
        solved = np.stack(solved)
        new = by_path(changed.params)
        new[path] = layout.from_matrix(jnp.asarray(solved[:, : layout.fan_in]))
        if bias is not None:
            new[bias] = jnp.asarray(solved[:, -1].reshape(new[bias].shape))
        structure = jax.tree.structure(changed.params)
        params = jax.tree.unflatten(structure, list(new.values()))
        changed = changed.replace(params=params)
    return changed.params


def assert_near(a, b, rtol):
    def near(x, y):
        x, y = numbers(x), numbers(y)
        assert np.abs(x - y).max() <= rtol * np.abs(y).max()

    jax.tree.map(near, a, b)


CASES = {
    "dense": (deep, (4,), [("body/kernel", "body/bias"), ("head/kernel", "head/bias")]),
    "conv": (
        *(Convolutional, (4,)),
        [
            ("Conv_0/kernel", "Conv_0/bias"),
            ("Conv_1/kernel", None),
            ("head/kernel", "head/bias"),
        ],
    ),
    "several": (
        *(deep, (1, 3)),
        [("body/kernel", "body/bias"), ("head/kernel", "head/bias")],
    ),
    # The bias of several axes stays.
    "grouped": (
        *(Grouped, (0,)),
        [
            ("Conv_0/kernel", "Conv_0/bias"),
            ("wide/kernel", None),
            ("Einsum_0/kernel", None),
            ("head/kernel", "head/bias"),
        ],
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_every_layer_solves_the_normal_equations(name):
    """Under the layers before it as they are by then, from the front."""
    kind, forgotten, weights = CASES[name]
    with jax.enable_x64(True):
        classifier, task = problem(kind, forgotten)
        before = jax.tree.map(np.array, classifier.params)
        found = METHOD(classifier, task, key=KEY)
        expected = explicit(classifier, task, weights, METHOD.mu, METHOD.damping)
        assert_near(found.classifier.params, expected, 1e-9)
    jax.tree.map(np.testing.assert_array_equal, before, classifier.params)
    assert list(found.trace.drift) == [path for path, _ in weights]


@pytest.fixture(scope="module")
def two_layers():
    classifier, task = problem(deep)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), classifier.params)
    return classifier.replace(params=single), task


@pytest.mark.long
def test_two_layers_solve_the_normal_equations_in_single_precision(two_layers):
    classifier, task = two_layers
    found = METHOD(classifier, task, key=KEY).classifier.params
    given = classifier, task, CASES["dense"][2]
    assert_near(found, explicit(*given, METHOD.mu, METHOD.damping), 1e-4)


@pytest.mark.long
def test_a_later_layer_makes_good_what_earlier_ones_moved(two_layers):
    classifier, task = two_layers
    result = METHOD(classifier, task, key=KEY)
    images = task.retain.images
    z = numbers(classifier(images))
    partly = {**result.classifier.params, "head": classifier.params["head"]}

    def error(params):
        y = numbers(classifier.replace(params=params)(images))
        return np.linalg.norm(y - z) / np.linalg.norm(z)

    drift = result.trace.drift["head/kernel"]
    assert np.isclose(error(result.classifier.params), drift, rtol=1e-3)
    assert drift < error(partly)


@pytest.mark.long
def test_without_weight_on_the_forgotten_nothing_changes(two_layers):
    classifier, task = two_layers
    same = METHOD.replace(mu=0.0)(classifier, task, key=KEY).classifier
    jax.tree.map(np.testing.assert_array_equal, classifier.params, same.params)
    near = METHOD.replace(mu=1e-6)(classifier, task, key=KEY).classifier
    assert_near(near.params, classifier.params, 1e-4)


@pytest.mark.long
def test_neither_batches_nor_repetition_change_the_result(two_layers, monkeypatch):
    classifier, task = two_layers
    whole, again = (METHOD(classifier, task, key=KEY).classifier for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    monkeypatch.setattr(layerwise_teacher, "_BATCH", 7)
    parts = METHOD(classifier, task, key=KEY).classifier
    assert_near(parts.params, whole.params, 1e-5)


@pytest.mark.long
def test_a_linear_head_is_the_masked_teacher():
    """With more inputs than samples all targets are met."""
    with jax.enable_x64(True):
        classifier, task = problem(linear, n=30, shape=(4, 4, 4))
        method = METHOD.replace(damping=1e-9)
        after = method(classifier, task, key=KEY).classifier
        before = classifier(task.forget.images)
        wanted = methods.retained_probabilities(before, task.forget_classes)
        found = numbers(after(task.forget.images))
        z = numbers(classifier(task.retain.images))
        np.testing.assert_allclose(after(task.retain.images), z, atol=1e-6)
    keep = [0, 1, 2, 3]
    shares = np.exp(found[:, keep]) / np.exp(found[:, keep]).sum(axis=1, keepdims=True)
    wanted, labels = numbers(wanted)[:, keep], task.retain.labels
    np.testing.assert_allclose(shares, wanted, atol=1e-6)

    def odds(z):
        return z[:, 4] - np.log(np.exp(z[:, keep]).sum(axis=1))

    usual = [odds(z[labels == k]).mean() for k in keep]
    np.testing.assert_allclose(odds(found), wanted @ usual, atol=1e-6)


def moments(rng, d=4, o=3, n=50):
    x, t = rng.normal(size=(n, d)), rng.normal(size=(n, o))
    sums = (x.T @ x)[None], (x.T @ t)[None], 2 * np.sum(t**2), np.sum(t**2), n
    return TargetMoments.of([Residuals(*sums)])


def test_a_budget_takes_the_strongest_weight_within_it():
    rng = np.random.default_rng(0)
    retain, forget = moments(rng), moments(rng)
    retain = TargetMoments(retain.gram, 0 * retain.cross, retain.outputs, 0.0)

    def drift(mu):
        return retain.drift(change_toward(retain, forget, mu=mu, damping=1e-3))

    given = {"damping": 1e-3, "budget": 0.5 * drift(3.0)}
    mu = strongest_within(retain, forget, mu=3.0, **given)
    assert drift(mu) <= given["budget"] < drift(1.01 * mu)
    assert strongest_within(retain, forget, mu=mu, **given) == mu


def test_a_budget_of_drift_is_kept_in_every_layer(two_layers):
    classifier, task = two_layers
    method = METHOD.replace(mu=100.0, drift_budget=0.05)
    drifts = method(classifier, task, key=KEY).trace.drift
    assert all(0.045 < drift <= 0.05 for drift in drifts.values())


def test_weights_without_one_output_stay_and_that_is_said():
    def shared(params, state, images):
        x = images.reshape(len(images), -1)
        x = jnp.tanh(jnp.tanh(x @ params["both"]) @ params["both"])
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["deep"])
        return x @ params["head"]

    rng = np.random.default_rng(0)
    shapes = {"both": (8, 8), "deep": (2, 8, 8), "head": (8, K)}
    classifier = ju.freeze(ju.Function(shared, draw(rng, shapes)))
    _, task = problem(linear, shape=(2, 2, 2))
    result = METHOD(classifier, task, key=KEY)
    assert "both, as it is used in several places" in result.trace.caution
    assert "deep, as it is used inside a scan" in result.trace.caution
    for name in ("both", "deep"):
        old, new = classifier.params[name], result.classifier.params[name]
        np.testing.assert_array_equal(old, new)
    assert list(result.trace.drift) == ["head"]
    (noted,) = ju.forget(*(METHOD, classifier, ju.Data(*_joined(task)), [[4]]), key=KEY)
    assert noted.trace.caution == result.trace.caution


def _joined(task):
    sets = task.forget, task.retain
    return (np.concatenate([getattr(s, n) for s in sets]) for n in ("images", "labels"))


def draw_more():
    return draw(np.random.default_rng(0), {"kernel": (32, K + 1), "bias": (K + 1,)})


def test_what_cannot_be_solved_is_refused(two_layers):
    classifier, task = two_layers
    alone = ju.Task(task.forget, None, [4], num_classes=K)
    with pytest.raises(ValueError, match="LayerwiseTeacher reads retained data"):
        METHOD(classifier, alone, key=KEY)

    def tied(params, state, images):
        x = images.reshape(len(images), -1)[:, :K]
        return jnp.tanh(x @ params) @ params

    classifier = ju.freeze(ju.Function(tied, jnp.eye(K)))
    with pytest.raises(ValueError, match="head, which it cannot.*several places"):
        METHOD(classifier, task, key=KEY)
    more = ju.Function(lambda p, s, x: linear(p, s, x)[:, :K], draw_more())
    with pytest.raises(ValueError, match="with kernel: it has 6 outputs, of 5 cl"):
        METHOD(ju.freeze(more), task, key=KEY)
    for wrong in ({"mu": -1.0}, {"damping": 0.0}, {"drift_budget": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            METHOD.replace(**wrong)
    with pytest.raises(ValueError, match="refresh must be"):
        METHOD.replace(refresh="often")


def test_costs_and_samples_are_told(two_layers):
    classifier, task = two_layers
    trace = METHOD(classifier, task, key=KEY).trace
    assert trace.samples_read == {"forget": 3 * 18, "retain": 4 * 72}
    forward = 32 * 7 + 7 * K
    assert trace.multiply_adds["means"] == (90 + 72) * forward
    layers = 90 * (32 * (32 + 21) + 2 * 32 * 7 + 7 * (7 + 3 * K))
    layers += 32**2 * (32 / 3 + 7) + 7**2 * (7 / 3 + K)
    assert np.isclose(trace.multiply_adds["layers"], layers)


def test_as_many_retained_samples_are_read_as_are_asked_for(two_layers):
    classifier, task = two_layers
    few = METHOD.replace(samples=20)
    result = few(classifier, task, key=KEY)
    rows = np.asarray(jax.random.permutation(KEY, len(task.retain)))[:20]
    some, _ = ju.split_by_index(task.retain, rows)
    alone = ju.Task(task.forget, some, [4], num_classes=K)
    chex.assert_trees_all_equal(
        result.classifier.params, METHOD(classifier, alone, key=KEY).classifier.params
    )
    assert result.trace.samples_read["retain"] == 20 * 4
    assert few.reads(50, K) == {"images": 20}
    assert few.reads(10, K) == {"images": 10}
    every = METHOD.replace(samples=10**6)(classifier, task, key=KEY)
    assert every.trace.samples_read["retain"] == 4 * len(task.retain)


def test_weights_are_found_in_order_with_their_biases():
    classifier, task = problem(Convolutional)
    found, left, last = find_places(classifier, task.forget.images)
    names = [p.path for p in found], [p.bias is not None for p in found]
    assert names == (
        ["Conv_0/kernel", "Conv_1/kernel", "head/kernel"],
        [True, False, True],
    )
    assert [p.positions for p in found] == [4, 4, 1]
    assert not left
    assert last == "head/kernel"


@pytest.mark.long
def test_statistics_are_refreshed_when_asked():
    from blocks import TASK, trained

    original = trained()
    kept, end, each = (
        METHOD.replace(refresh=when)(original, TASK, key=KEY).classifier
        for when in ("never", "end", "each")
    )
    jax.tree.map(np.testing.assert_array_equal, original.state, kept.state)
    jax.tree.map(np.testing.assert_array_equal, kept.params, end.params)
    refreshed = methods.batch_statistics.refresh_statistics(
        kept, TASK.retain.images, key=KEY
    )
    jax.tree.map(np.testing.assert_array_equal, refreshed.state, end.state)
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, kept.params, each.params)
