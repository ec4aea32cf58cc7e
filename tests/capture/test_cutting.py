"""A network cut at an activation: both parts together are the whole, in both modes."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from networks import quick_compilation

import jaxunlearn as ju
from jaxunlearn import models
from jaxunlearn.capture.cutting import Cut, find_cut
from jaxunlearn.metrics.layer_features import feature_layers

KEY = jax.random.key(3)
IN_TRAINING = jax.jit(Cut.logits_in_training, static_argnums=0)


class Residual(nn.Module):
    """A stem, two blocks of two layers each, a head; in half precision if asked."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        norm = functools.partial(nn.BatchNorm, not train)
        x = nn.Conv(3, (3, 3), name="stem", dtype=self.dtype)(x)
        for i in range(2):
            y = nn.relu(norm(name=f"norm{i}")(x))
            y = nn.Conv(3, (3, 3), name=f"conv{i}a", dtype=self.dtype)(y)
            x = x + nn.Conv(3, (1, 1), name=f"conv{i}b", dtype=self.dtype)(nn.relu(y))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


def frozen(model, shape):
    images = jax.random.uniform(KEY, (3, *shape))
    variables = jax.jit(model.init)({"params": KEY, "dropout": KEY}, images)
    return ju.freeze(model, variables), images


# A network, the shape of its images, how many of the last weights are wanted, and the
# containers of those that are above.
CASES = {
    "smallcnn": (
        lambda: models.create("smallcnn", num_classes=4, width=2),
        (8, 8, 1),
        2,
        {"Conv_2", "BatchNorm_2", "Dense_0"},
    ),
    "residual": (Residual, (5, 5, 2), 2, {"norm1", "conv1a", "conv1b", "head"}),
    "half": (
        lambda: Residual(jnp.bfloat16),
        (5, 5, 2),
        1,
        {"head"},
    ),
    "vit": (
        lambda: models.create("vit", num_classes=4, depth=2),
        (8, 8, 1),
        2,
        None,
    ),
}
SLOW = {"residual", "half", "vit"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n in SLOW)) for n in CASES]
)
def test_both_parts_together_are_the_whole_and_have_its_gradient(name):
    build, shape, count, containers = CASES[name]
    classifier, images = frozen(build(), shape)
    weights = feature_layers(classifier, images)[-count:]
    cut = find_cut(classifier, images, weights)
    assert not cut.at_images
    assert set(weights) <= cut.above
    if containers is not None:
        assert {path.split("/")[0] for path in cut.above} == containers

    @jax.jit
    def both(classifier, images):
        def square(params, logits):
            return (logits(classifier.replace(params=params)) ** 2).sum()

        activation = cut.below(classifier, images)
        functions = lambda c: c(images), lambda c: cut.logits(c, activation)  # noqa: E731
        return [
            (f(classifier), jax.grad(square)(classifier.params, f)) for f in functions
        ]

    with quick_compilation():
        (whole, expected), (logits, gradient) = both(classifier, images)
    # Of activations in half precision the gradients of the whole are rounded too.
    tolerance = 2e-2 if name == "half" else 1e-6
    np.testing.assert_allclose(logits, whole, atol=1e-6)
    for path, value in jax.tree_util.tree_leaves_with_path(gradient):
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        twin = functools.reduce(lambda tree, key: tree[key.key], path, expected)
        if place in cut.above:
            scale = float(jnp.abs(twin).max()) + 1
            np.testing.assert_allclose(value, twin, atol=tolerance * scale)
        else:
            np.testing.assert_array_equal(value, 0)


class Layers(nn.Module):
    """Two normalised layers and a head; in training an auxiliary output beside."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        for name, width in (("a", 5), ("b", 4)):
            x = nn.Dense(width, name=name)(x)
            x = nn.BatchNorm(not train, momentum=0.8, name=f"norm_{name}")(x)
            x = nn.relu(x)
        logits = nn.Dense(3, name="c")(x)
        return (logits, nn.Dense(3, name="auxiliary")(x)) if train else logits


def test_in_training_mode_the_upper_part_is_a_network_of_its_own():
    model = Layers()
    images = np.random.default_rng(0).normal(size=(6, 2, 2, 1)).astype(np.float32)
    classifier = ju.freeze(
        model, jax.jit(lambda: model.init(KEY, images, train=True))()
    )
    cut = find_cut(classifier, images, ["b/kernel", "c/kernel"])
    activation = np.random.default_rng(1).uniform(size=(6, 5)).astype(np.float32)
    with quick_compilation():
        logits, state = IN_TRAINING(cut, classifier, activation, KEY)

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), classifier.params)
    x = activation @ p["b"]["kernel"] + p["b"]["bias"]
    mean, variance = x.mean(axis=0), x.var(axis=0)
    x = np.maximum((x - mean) / np.sqrt(variance + 1e-5), 0)
    expected = x @ p["c"]["kernel"] + p["c"]["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    old, new = classifier.state["batch_stats"], state["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, old["norm_a"], new["norm_a"])
    np.testing.assert_allclose(new["norm_b"]["mean"], 0.2 * mean, atol=1e-6)
    np.testing.assert_allclose(new["norm_b"]["var"], 0.8 + 0.2 * variance, atol=1e-6)
    assert not any("auxiliary" in path for path in cut.above)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.gelu(nn.Dense(40)(x.reshape(len(x), -1)))
        x = nn.Dropout(0.5)(x, deterministic=not train)
        return nn.Dense(40, name="head")(x)


def test_dropout_right_below_the_wanted_weights_is_above_the_cut():
    model, images = Dropped(), jax.random.normal(KEY, (3, 2, 2, 1))
    variables = jax.jit(model.init)(KEY, images)
    variables["params"]["head"]["kernel"] = jnp.eye(40)
    classifier = ju.freeze(model, variables)
    cut = find_cut(classifier, images, ["head/kernel"])
    with quick_compilation():
        activation, expected = jax.jit(lambda c, x: (cut.below(c, x), c(x)))(
            classifier, images
        )
        logits, _ = IN_TRAINING(cut, classifier, activation, KEY)
    np.testing.assert_allclose(activation, expected, atol=1e-6)
    kept = np.isclose(logits, 2 * activation, atol=1e-5)
    dropped = np.isclose(logits, 0, atol=1e-7)
    assert (kept | dropped).all()
    assert 30 < dropped.sum() < 90


@dataclasses.dataclass(frozen=True)
class Written(ju.Network):
    """A function of parameters and images, the same in training."""

    function: Any

    def apply(self, params, state, images):
        return self.function(params, images.reshape(len(images), -1))

    def apply_train(self, params, state, images, key):
        return self.apply(params, state, images), state


def written(function, *names):
    rng = np.random.default_rng(2)
    params = {n: jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for n in names}
    return ju.Classifier(params, {}, None, Written(function))


def test_a_weight_that_is_used_below_too_moves_the_cut_down():
    def twice(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["b"] @ p["c"]

    classifier = written(twice, "a", "b", "c")
    images = jax.random.normal(KEY, (3, 2, 2, 1))
    assert find_cut(classifier, images, ["c"]).above == {"c"}
    cut = find_cut(classifier, images, ["b", "c"])
    assert cut.above == {"b", "c"}
    x = images.reshape(3, 4)
    a = classifier.params["a"]
    np.testing.assert_allclose(
        cut.below(classifier, images), jnp.tanh(x @ a), atol=1e-6
    )
    for n in (1, 3):
        activation = cut.below(classifier, images[:n])
        logits = cut.logits(classifier, activation)
        np.testing.assert_allclose(logits, classifier(images[:n]), atol=1e-5)


def test_the_second_of_several_results_is_handed_on():
    def ordered(p, x):
        h = x @ p["a"]
        _, h = lax.sort((h, 2 * h), dimension=1, num_keys=1)
        return h @ p["b"]

    classifier = written(ordered, "a", "b")
    images = jax.random.normal(KEY, (3, 2, 2, 1))
    cut = find_cut(classifier, images, ["b"])
    expected = np.sort(2 * images.reshape(3, 4) @ classifier.params["a"], axis=1)
    np.testing.assert_allclose(cut.below(classifier, images), expected, atol=1e-5)
    logits = cut.logits(classifier, jnp.asarray(expected))
    np.testing.assert_allclose(logits, classifier(images), atol=1e-5)


def test_where_no_place_will_do_the_cut_is_at_the_images():
    def around(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"] + x @ p["c"]

    classifier = written(around, "a", "b", "c")
    images = jax.random.normal(KEY, (3, 2, 2, 1))
    cut = find_cut(classifier, images, ["b"])
    assert cut.at_images
    assert cut.above == {"a", "b", "c"}
    assert cut.below(classifier, images) is images
    expected = classifier(images)
    np.testing.assert_array_equal(cut.logits(classifier, images), expected)
    logits, _ = cut.logits_in_training(classifier, images, KEY)
    np.testing.assert_array_equal(logits, expected)


def test_what_cannot_be_cut_is_refused():
    classifier = written(lambda p, x: x @ p["a"], "a")
    images = jnp.zeros((1, 2, 2, 1))
    with pytest.raises(ValueError, match="weights must be one of.*'a'"):
        find_cut(classifier, images, ["b"])
    function = ju.freeze(ju.Function(lambda p, s, x: x.mean((1, 2)) @ p, jnp.eye(1)))
    with pytest.raises(TypeError, match="A Function only infers"):
        find_cut(function, images, [""])

    def growing(p, x):
        for _ in range(1 + (len(x) == 5)):
            x = jnp.tanh(x)
        return x @ p["a"] @ p["b"]

    classifier = written(growing, "a", "b")
    cut = find_cut(classifier, images, ["b"])
    with pytest.raises(ValueError, match="the same for every number of images"):
        cut.below(classifier, jnp.zeros((5, 2, 2, 1)))


class NNXDropped(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.body(x.reshape(len(x), -1)))
        return self.head(self.dropout(nnx.relu(x)))


@pytest.mark.long
def test_nnx_networks_and_their_random_streams_are_cut_too():
    classifier = ju.freeze(NNXDropped(nnx.Rngs(0)))
    images = jax.random.normal(KEY, (6, 2, 2, 1))
    cut = find_cut(classifier, images, ["head/kernel"])
    assert cut.above == {"head/kernel", "head/bias"}
    activation = cut.below(classifier, images)
    logits = cut.logits(classifier, activation)
    np.testing.assert_allclose(logits, classifier(images), atol=1e-6)
    one, state = cut.logits_in_training(classifier, activation, KEY)
    two, _ = cut.logits_in_training(classifier, activation, jax.random.key(4))
    assert (one != two).any()
    before, after = (s["norm"]["mean"] for s in (classifier.state, state))
    np.testing.assert_array_equal(before, after)
