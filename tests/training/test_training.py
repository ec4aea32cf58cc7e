"""Training from scratch: what it reaches, what it depends on, what it refuses."""

import functools
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxunlearn as ju
from jaxunlearn import datasets, models, parallel
from jaxunlearn.descent import loop
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.tasks import Data, split_by_class
from jaxunlearn.training import Recipe, fit, fitting
from jaxunlearn.training import step as training_step

KEY = jax.random.key(0)
SHORT = Recipe(epochs=2, batch_size=8, learning_rate=0.05, warmup_epochs=0.5)


class Linear(nn.Module):
    """One kernel and one bias, so that a step can be written down."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(images.reshape(len(images), -1))


class Noisy(nn.Module):
    """Batch statistics and dropout."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(6)(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class NoisyNNX(nnx.Module):
    """The same with NNX."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, images):
        x = self.first(images.reshape(len(images), -1))
        return self.last(self.dropout(self.norm(x)))


def toy(n=30, seed=0):
    """Three classes, each about a corner of its own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = 3 * np.eye(4)[:3]
    pixels = centres[labels] + rng.normal(size=(n, 4))
    return Data(pixels.reshape(n, 2, 2, 1).astype(np.float32), labels)


def leaves(classifier):
    return [np.asarray(p) for p in jax.tree.leaves(classifier.params)]


def assert_same(a, b, **tolerance):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **(tolerance or {"rtol": 0, "atol": 0}))


@functools.cache
def trained_digits():
    model = models.create("smallcnn", num_classes=10)
    train = datasets.load("digits", "train")
    options = {"preprocess": datasets.preprocess("digits"), "key": KEY}
    return model, train, options, fit(model, train, recipe=Recipe(), **options)


@pytest.mark.long
def test_the_small_network_learns_the_digits():
    classifier = trained_digits()[-1]
    accuracy = evaluate(classifier, datasets.load("digits", "test"), ())
    assert accuracy.retained_weighted >= 97
    assert accuracy.retained >= 97


@pytest.mark.long
def test_retraining_without_a_class_never_learns_it_and_compiles_no_step_again():
    model, train, options, _ = trained_digits()
    _, retain = split_by_class(train, [3])
    recipe = Recipe(epochs=6, learning_rate=0.08, weight_decay=1e-4)
    known = loop._advance._cache_size()
    retrained = fit(model, retain, recipe=recipe, **options)
    assert loop._advance._cache_size() == known
    accuracy = evaluate(retrained, datasets.load("digits", "test"), [3])
    assert accuracy.forgotten == 0
    assert accuracy.retained >= 95


def test_a_step_is_nesterov_momentum_with_decay_of_the_kernel_alone():
    data = toy(8)
    recipe = Recipe(
        epochs=2,
        batch_size=8,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.05,
        warmup_epochs=0,
        schedule="constant",
        label_smoothing=0.3,
    )
    x = data.images.reshape(8, 4).astype(np.float64)
    targets = 0.7 * np.eye(3)[data.labels] + 0.3 / 3
    # The first parameters: those of a fit that has hardly moved them.
    still = Recipe(epochs=1, batch_size=8, learning_rate=1e-12, warmup_epochs=0)
    start = fit(Linear(), data, recipe=still, key=KEY).params["Dense_0"]
    weights = {name: np.asarray(start[name], np.float64) for name in start}
    velocity = {name: np.zeros_like(w) for name, w in weights.items()}
    losses = []
    for _ in range(2):
        logits = x @ weights["kernel"] + weights["bias"]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-(targets * np.log(p)).sum(axis=1).mean())
        gradients = {
            "kernel": x.T @ (p - targets) / 8 + 0.05 * weights["kernel"],
            "bias": (p - targets).mean(axis=0),
        }
        for name, g in gradients.items():
            velocity[name] = 0.9 * velocity[name] + g
            weights[name] = weights[name] - 0.1 * (g + 0.9 * velocity[name])
    seen = []
    classifier = fit(
        Linear(), data, recipe=recipe, key=KEY, callback=lambda *s: seen.append(s)
    )
    for name, expected in weights.items():
        found = classifier.params["Dense_0"][name]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert [step for step, _ in seen] == [0, 1]
    np.testing.assert_allclose([loss for _, loss in seen], losses, rtol=1e-5)


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    recipe = Recipe(epochs=5, learning_rate=0.4, warmup_epochs=1)
    rates = recipe.learning_rates(4)
    np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4])
    after = np.arange(16) / 16
    np.testing.assert_allclose(rates[4:], 0.2 * (1 + np.cos(np.pi * after)), rtol=1e-5)
    constant = Recipe(epochs=5, learning_rate=0.4, schedule="constant")
    np.testing.assert_allclose(constant.learning_rates(4)[3:], 0.4)
    only_rising = Recipe(epochs=2, learning_rate=1.0, warmup_epochs=2)
    np.testing.assert_allclose(only_rising.learning_rates(2), [0.25, 0.5, 0.75, 1.0])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_training_is_a_function_of_its_key(kind):
    def run(seed):
        model = Noisy() if kind == "linen" else NoisyNNX(nnx.Rngs(0))
        return fit(model, toy(), recipe=SHORT, key=jax.random.key(seed))

    first, again, other = run(0), run(0), run(1)
    assert_same(first, again)
    differences = jax.tree.map(
        lambda a, b: abs(a - b).max(), first.params, other.params
    )
    assert max(jax.tree.leaves(differences)) > 1e-3


@pytest.mark.parametrize("kind", ["linen", pytest.param("nnx", marks=pytest.mark.long)])
def test_a_loop_on_the_device_gives_what_single_steps_give(kind, monkeypatch):
    def run():
        model = Noisy() if kind == "linen" else NoisyNNX(nnx.Rngs(0))
        seen = []
        classifier = fit(
            model, toy(), recipe=SHORT, key=KEY, callback=lambda *s: seen.append(s)
        )
        return classifier, seen

    single, single_seen = run()
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: False)
    # Three steps an epoch in chunks of two: the last one is filled up.
    monkeypatch.setattr(loop, "CHUNK_BYTES", 2 * 8 * 16)
    looped, looped_seen = run()
    assert_same(single, looped, rtol=1e-4, atol=1e-6)
    assert [step for step, _ in looped_seen] == list(range(6))
    np.testing.assert_allclose(looped_seen, single_seen, rtol=1e-4)


def test_nnx_training_starts_from_the_module_which_is_not_modified():
    model = NoisyNNX(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    still = Recipe(epochs=1, batch_size=8, learning_rate=1e-12)
    unmoved = fit(model, toy(), recipe=still, key=KEY)
    for a, b in zip(jax.tree.leaves(before), leaves(unmoved), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    recipe = Recipe(epochs=20, batch_size=8, learning_rate=0.05)
    classifier = fit(model, toy(), recipe=recipe, key=KEY)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.asarray(model.norm.mean.get_value()).any()
    assert np.asarray(classifier.state["norm"]["mean"]).any()
    assert evaluate(classifier, toy(300, seed=1), ()).retained > 85
    assert evaluate(ju.freeze(model), toy(300, seed=1), ()).retained < 75


def test_a_trained_network_is_the_one_that_freeze_makes():
    classifier = fit(Noisy(), toy(), recipe=SHORT, key=KEY)
    frozen = ju.freeze(Noisy(), ju.thaw(classifier))
    assert frozen.network == classifier.network
    np.testing.assert_array_equal(frozen(toy().images), classifier(toy().images))


def test_bytes_and_floats_in_the_unit_interval_train_alike():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 2, 2, 1), dtype=np.uint8)
    labels = np.arange(16) % 3
    preprocess = ju.Preprocess(mean=0.5, std=0.25)
    floats = pixels.astype(np.float32) / 255
    first, second = (
        fit(Linear(), Data(x, labels), recipe=SHORT, key=KEY, preprocess=preprocess)
        for x in (pixels, floats)
    )
    assert first.preprocess == preprocess
    assert_same(first, second, rtol=1e-4, atol=1e-6)


def test_fewer_samples_than_a_minibatch_make_one_of_their_own():
    seen = []
    recipe = Recipe(epochs=3, batch_size=64)
    fit(Linear(), toy(5), recipe=recipe, key=KEY, callback=lambda *s: seen.append(s))
    assert [step for step, _ in seen] == [0, 1, 2]


def test_each_epoch_visits_other_samples_and_none_twice():
    visited = []
    data = toy(10)
    gather = loop._gather

    def watch(arrays, rows):
        visited.append(np.asarray(rows).ravel().tolist())
        return gather(arrays, rows)

    recipe = Recipe(epochs=4, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_gather", watch)
        fit(Linear(), data, recipe=recipe, key=KEY)
    epochs = [visited[2 * e] + visited[2 * e + 1] for e in range(4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert set(sum(epochs, [])) == set(range(10))


def test_validation_accuracy_is_logged_and_changes_nothing(caplog):
    plain = fit(Noisy(), toy(), recipe=SHORT, key=KEY)
    with caplog.at_level(logging.INFO, logger="jaxunlearn.training"):
        watched = fit(Noisy(), toy(), recipe=SHORT, key=KEY, validation=toy(60, 1))
    assert_same(plain, watched)
    accuracy = evaluate(watched, toy(60, 1), ()).retained_weighted
    assert len(caplog.messages) == 2
    assert caplog.messages[-1].startswith("epoch 2 of 2: loss ")
    assert caplog.messages[-1].endswith(f"validation accuracy {accuracy:.2f} %")


def test_a_diverged_loss_stops_the_training_and_names_the_step():
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=1e30, warmup_epochs=0)
    seen = []
    sentence = (
        r"The loss is (nan|inf) at step \d, .* Lower the learning rate \(1e\+30\)"
    )
    with pytest.raises(FloatingPointError, match=sentence):
        fit(Linear(), toy(), recipe=recipe, key=KEY, callback=lambda *s: seen.append(s))
    assert all(np.isfinite(loss) for _, loss in seen)


def test_what_cannot_be_trained_on_is_refused_before_anything_is_computed():
    nothing = Data(np.zeros((0, 2, 2, 1), np.float32), [])
    with pytest.raises(ValueError, match="train holds no samples"):
        fit(Linear(), nothing, recipe=SHORT, key=KEY)
    wrong = Data(toy().images, toy().labels + 1)
    words = "labels of train .* 0 to 2; .* to 3.* 3 logits: make it wider"
    with pytest.raises(ValueError, match=words):
        fit(Linear(), wrong, recipe=SHORT, key=KEY)
    with pytest.raises(ValueError, match="labels of validation .* to 3"):
        fit(Linear(), toy(), recipe=SHORT, key=KEY, validation=wrong)
    pixels = Data(np.zeros((2, 2, 2, 1), np.uint8), [0, 1])
    with pytest.raises(TypeError, match="images are uint8, .* no Preprocess"):
        fit(Linear(), pixels, recipe=SHORT, key=KEY)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epochs", 0, "at least 1; it is 0"),
        ("batch_size", 0, "at least 1; it is 0"),
        ("learning_rate", 0.0, "positive and finite; it is 0.0"),
        ("learning_rate", float("nan"), "positive and finite; it is nan"),
        ("momentum", 1.0, r"in \[0, 1\); it is 1.0"),
        ("weight_decay", -1e-4, "0 or more and finite; it is -0.0001"),
        ("warmup_epochs", 16, r"between 0 and epochs \(15\); it is 16"),
        ("schedule", "linear", "'cosine', 'multi-step' or 'constant'; it is 'linear'"),
        (
            "milestones",
            (2.0, 1.0),
            r"positive, finite and in ascending .* \(2.0, 1.0\)",
        ),
        ("milestones", (0.0,), "positive, finite and in ascending order"),
        ("decay", 0.0, r"in \(0, 1\]; it is 0.0"),
        ("crop_padding", -1, "0 or more; it is -1"),
        ("precision", "float16", "'float32' or 'bfloat16'; it is 'float16'"),
        ("patience", 0, "at least 1, or None; it is 0"),
        ("label_smoothing", 1.0, r"in \[0, 1\); it is 1.0"),
    ],
)
def test_a_recipe_outside_its_ranges_is_refused(field, value, expected):
    with pytest.raises(ValueError, match=f"Recipe.{field} must be {expected}"):
        Recipe(**{field: value})


@pytest.mark.parametrize("side", [8, 13, 32])
def test_the_small_network_takes_images_of_any_size(side):
    model = models.create("smallcnn", num_classes=7, width=4)
    images = jnp.ones((2, side, side, 3))
    variables = jax.eval_shape(model.init, KEY, images)
    assert jax.eval_shape(model.apply, variables, images).shape == (2, 7)
    assert variables["params"]["Conv_2"]["kernel"].shape == (3, 3, 8, 16)


@pytest.mark.long
def test_the_small_network_has_as_many_parameters_as_documented():
    classifier = trained_digits()[-1]
    documented = f"{sum(p.size for p in leaves(classifier)):,} parameters"
    assert documented in models.SmallCNN.__doc__


def test_an_unknown_model_or_option_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"must be one of .*smallcnn.*is 'smallcn'\."):
        models.create("smallcn", num_classes=10)
    with pytest.raises(
        TypeError, match="smallcnn has no option 'depth'; it has: width"
    ):
        models.create("smallcnn", num_classes=10, depth=3)
    with pytest.raises(ValueError, match="num_classes must be at least 1; it is 0"):
        models.create("smallcnn", num_classes=0)


@pytest.mark.parametrize("milestones", [(), (15.0, 20.0)])
def test_milestones_that_are_never_reached_are_refused(milestones):
    with pytest.raises(ValueError, match="beyond the 15 epochs, so that the learning"):
        Recipe(schedule="multi-step", epochs=15, milestones=milestones)


def test_the_learning_rate_falls_by_steps_at_the_milestones():
    recipe = Recipe(
        epochs=6,
        learning_rate=1.0,
        warmup_epochs=1,
        schedule="multi-step",
        milestones=(2, 4.5),
        decay=0.1,
    )
    rates = recipe.learning_rates(2)
    by_epoch = [0.5, 1] + [1] * 2 + [0.1] * 5 + [0.01] * 3
    np.testing.assert_allclose(rates, by_epoch, rtol=1e-6)


def test_momentum_without_nesterov_is_its_own_recursion():
    data = toy(8)
    options = {"epochs": 3, "batch_size": 8, "warmup_epochs": 0, "weight_decay": 0.0}
    recipe = Recipe(**options, schedule="constant", nesterov=False, momentum=0.5)
    still = Recipe(epochs=1, batch_size=8, learning_rate=1e-12, warmup_epochs=0)
    start = fit(Linear(), data, recipe=still, key=KEY).params["Dense_0"]
    x = data.images.reshape(8, 4).astype(np.float64)
    kernel, bias = (np.asarray(start[n], np.float64) for n in ("kernel", "bias"))
    v, u = np.zeros_like(kernel), np.zeros_like(bias)
    for _ in range(3):
        p = np.exp(x @ kernel + bias)
        p /= p.sum(axis=1, keepdims=True)
        error = (p - np.eye(3)[data.labels]) / 8
        v, u = 0.5 * v + x.T @ error, 0.5 * u + error.sum(axis=0)
        kernel, bias = kernel - 0.1 * v, bias - 0.1 * u
    found = fit(Linear(), data, recipe=recipe, key=KEY).params["Dense_0"]
    np.testing.assert_allclose(found["kernel"], kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["bias"], bias, rtol=1e-4, atol=1e-6)


def test_images_are_augmented_in_pixel_space_before_they_are_standardised():
    # Of one pixel and its black border each window shows one of nine, eight black.
    images = np.full((90, 1, 1, 1), 255, np.uint8)
    seen = []

    class Spy(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            if train and not self.is_initializing():
                jax.debug.callback(lambda x: seen.extend(np.ravel(x)), images)
            return nn.Dense(2)(images.reshape(len(images), -1))

    recipe = Recipe(epochs=10, batch_size=90, crop_padding=1, learning_rate=0.01)
    data = Data(images, np.arange(90) % 2)
    preprocess = ju.Preprocess(mean=0.5, std=0.5)
    fit(Spy(), data, recipe=recipe, key=KEY, preprocess=preprocess)
    jax.effects_barrier()
    # Standardised black and white, to a rounding error.
    np.testing.assert_allclose(np.abs(seen), 1, rtol=1e-6)
    share = np.mean(np.array(seen) > 0)
    # Nine hundred draws of probability 1/9 each.
    assert abs(share - 1 / 9) < 4 * np.sqrt(8 / 81 / 900)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_half_precision_learns_and_keeps_full_parameters(kind):
    def run(precision):
        model = Noisy() if kind == "linen" else NoisyNNX(nnx.Rngs(0))
        recipe = Recipe(epochs=20, batch_size=10, precision=precision)
        return fit(model, toy(300), recipe=recipe, key=KEY)

    half, full = run("bfloat16"), run("float32")
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        assert a.dtype == b.dtype
    assert evaluate(half, toy(300, seed=1), ()).retained > 85
    differences = jax.tree.map(lambda a, b: abs(a - b).max(), half.params, full.params)
    assert max(jax.tree.leaves(differences)) > 1e-4


def test_half_precision_computes_in_bfloat16():
    model, recipe = Noisy(), Recipe(precision="bfloat16")
    classifier = ju.freeze(model, model.init(KEY, toy(4).images))
    step, carry, constants = training_step.begin(recipe, classifier, KEY, None)
    row = (jnp.asarray(toy(4).images), toy(4).labels), np.float32(0.1)
    program = str(jax.make_jaxpr(step)(carry, constants, 0, row))
    products = [line for line in program.splitlines() if " dot_general" in line]
    assert len(products) >= 4
    assert all("bf16" in line.split("=")[0] for line in products)


def test_early_stopping_returns_the_best_epoch_and_its_state():
    # Labels of validation samples are those of no rule: the accuracy wanders.
    rng = np.random.default_rng(0)
    validation = Data(toy(40, 1).images, rng.integers(0, 3, 40))
    recipe = Recipe(epochs=30, batch_size=8, patience=3, schedule="constant")
    records = []
    stopped = fit(
        Noisy(),
        toy(),
        recipe=recipe,
        key=KEY,
        validation=validation,
        log=records.append,
    )
    ends = [r for r in records if "validation_accuracy" in r]
    accuracies = [r["validation_accuracy"] for r in ends]
    best = int(np.argmax(accuracies))
    assert len(accuracies) == best + 1 + 3 < 30
    found = evaluate(stopped, validation, ()).retained_weighted
    np.testing.assert_allclose(found, accuracies[best])
    # A constant rate: stopping after the best epoch is a shorter training.
    short = Recipe(epochs=best + 1, batch_size=8, schedule="constant")
    expected = fit(Noisy(), toy(), recipe=short, key=KEY)
    assert_same(stopped, expected)
    for a, b in zip(
        jax.tree.leaves(stopped.state), jax.tree.leaves(expected.state), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_early_stopping_needs_validation_samples():
    recipe = Recipe(patience=2)
    with pytest.raises(ValueError, match="patience is 2, .* validation samples"):
        fit(Linear(), toy(), recipe=recipe, key=KEY)


def test_each_step_is_logged_once_with_its_rate_and_each_epoch_with_its_accuracy():
    records = []
    recipe = Recipe(epochs=2, batch_size=10, warmup_epochs=1)
    seen = []
    classifier = fit(
        Linear(),
        toy(),
        recipe=recipe,
        key=KEY,
        validation=toy(60, 1),
        callback=lambda *s: seen.append(s),
        log=records.append,
    )
    assert [r["step"] for r in records] == list(range(6))
    assert [r["epoch"] for r in records] == [0, 0, 0, 1, 1, 1]
    assert [(r["step"], r["loss"]) for r in records] == seen
    rates = [r["learning_rate"] for r in records]
    np.testing.assert_array_equal(rates, recipe.learning_rates(3))
    assert ["validation_accuracy" in r for r in records] == [False, False, True] * 2
    assert all(r["images_per_second"] > 0 for r in records[2::3])
    accuracy = evaluate(classifier, toy(60, 1), ()).retained_weighted
    np.testing.assert_allclose(records[-1]["validation_accuracy"], accuracy)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_eight_devices_train_as_one_does(kind):
    mesh = jax.make_mesh((8,), ("data",))
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.05, crop_padding=1)

    def run(mesh):
        # Dropout draws the same for each sample wherever it lies.
        model = Noisy() if kind == "linen" else NoisyNNX(nnx.Rngs(0))
        return fit(model, toy(48), recipe=recipe, key=KEY, mesh=mesh)

    one, eight = run(None), run(mesh)
    # Sums over a minibatch in another order.
    assert_same(one, eight, rtol=1e-4, atol=1e-5)
    for a, b in zip(
        jax.tree.leaves(one.state), jax.tree.leaves(eight.state), strict=True
    ):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    # The result lies on one device and mixes with anything.
    assert eight(jax.device_put(toy().images, jax.devices()[3])).shape == (30, 3)


@pytest.mark.parametrize("slow", [True, False])
def test_devices_add_up_their_gradients(slow, monkeypatch):
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: slow)
    mesh = parallel.mesh_for_batch(jax.make_mesh((8,), ("data",)), 16)
    model, recipe = Noisy(), Recipe()
    classifier = ju.freeze(model, model.init(KEY, toy(4).images))
    step, carry, constants = training_step.begin(recipe, classifier, KEY, mesh)
    carry = parallel.place_whole(carry, mesh)
    images = np.stack([toy(16).images] * 2)
    batch = parallel.place_cut((images, np.stack([toy(16).labels] * 2)), mesh, 1)
    given = batch, np.ones(2, np.float32)
    here = np.int32(0), np.int32(2)
    length = None if slow else 2
    lowered = loop._advance.lower(step, length, carry, constants, *here, (given,))
    compiled = lowered.compile()
    assert "all-reduce" in compiled.as_text()
    (classifier, _), _ = compiled.output_shardings
    assert all(s.is_fully_replicated for s in jax.tree.leaves(classifier.params))


def test_a_mesh_that_does_not_divide_the_minibatch_is_refused():
    mesh, two = jax.make_mesh((8,), ("data",)), jax.make_mesh((4, 2), ("a", "b"))
    with pytest.raises(ValueError, match="minibatch of 12 samples .* the 8 devices"):
        fit(Linear(), toy(), recipe=Recipe(batch_size=12), key=KEY, mesh=mesh)
    with pytest.raises(ValueError, match="one axis"):
        fit(Linear(), toy(), recipe=SHORT, key=KEY, mesh=two)


def test_accelerators_share_the_minibatch_by_themselves(monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with caplog.at_level(logging.INFO, logger="jaxunlearn.parallel"):
        assert parallel.mesh_for_batch(None, 24).size == 8
        assert parallel.mesh_for_batch(None, 20).size == 5
        assert parallel.mesh_for_batch(None, 1) is None
    assert caplog.messages[1] == (
        "training on 5 of 8 devices, 4 samples of a minibatch on each"
    )
    monkeypatch.undo()
    assert parallel.mesh_for_batch(None, 24) is None


def test_an_epoch_is_cut_into_chunks_whose_images_fit(monkeypatch):
    lengths = []
    run_steps = loop.run_steps

    def watch(*arguments, chunk, steps, **options):
        lengths.append((chunk, steps))
        return run_steps(*arguments, chunk=chunk, steps=steps, **options)

    monkeypatch.setattr(fitting, "run_steps", watch)
    recipe = Recipe(epochs=2, batch_size=10)
    # On a CPU there is one step in a chunk.
    fit(Linear(), toy(90), recipe=recipe, key=KEY)
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: False)
    fit(Linear(), toy(90), recipe=recipe, key=KEY)
    monkeypatch.setattr(loop, "CHUNK_BYTES", 4 * 10 * 16)
    fit(Linear(), toy(90), recipe=recipe, key=KEY)
    assert lengths == [(1, 9)] * 2 + [(loop.CHUNK, 9)] * 2 + [(4, 9)] * 2


def test_progress_is_reported_after_every_step():
    seen = []
    recipe = Recipe(epochs=2, batch_size=10)
    fit(Linear(), toy(), recipe=recipe, key=KEY, progress=lambda *r: seen.append(r))
    assert seen == [("training", done, 6) for done in range(1, 7)]
