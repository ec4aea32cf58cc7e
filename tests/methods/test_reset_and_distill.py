"""ResetAndDistill, and the parts that it is made of, each against a slow twin."""

import re
import types
from pathlib import Path

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from blocks import CLASSES, FORGET, FORGOTTEN, KEY, RETAIN, TASK, TEST, trained
from flax import nnx
from networks import quick_compilation

import jaxunlearn as ju
from jaxunlearn.capture.cutting import find_cut
from jaxunlearn.methods import ResetAndDistill
from jaxunlearn.methods.batch_statistics import refresh_statistics
from jaxunlearn.methods.distillation import distil_above, match_confidence
from jaxunlearn.methods.masked_distillation import Distillation
from jaxunlearn.methods.multiply_adds import Costs

# Of 240 retained samples, whose moments and trials are dear.
QUICK = ResetAndDistill(budget=40.0, dampings=(0.1, 0.5), trial=0.2, batch_size=16)


@pytest.fixture(scope="module")
def original():
    return trained()


@pytest.fixture(scope="module")
def result(original):
    return QUICK(original, TASK, key=KEY)


class Normalised(nn.Module):
    """Two normalised layers, of different momenta."""

    momenta: tuple[float, float] = (0.9, 0.999)

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        for momentum in self.momenta:
            x = nn.Dense(3)(x) * 30
            x = nn.relu(nn.BatchNorm(not train, momentum=momentum)(x))
        counter = self.variable("counts", "calls", lambda: jnp.zeros(()))
        if train and not self.is_initializing():
            counter.value += 1
        return nn.Dense(2)(x)


@pytest.mark.parametrize(
    "momenta", [(0.9, 0.999), pytest.param((0.0, 0.5), marks=pytest.mark.long)]
)
def test_statistics_are_those_of_the_images_whatever_the_momentum(momenta):
    rng = np.random.default_rng(0)
    images = rng.normal(2, 3, size=(23, 2, 2, 1)).astype(np.float32)
    model = Normalised(momenta)
    classifier = ju.freeze(model, model.init(KEY, images))
    with quick_compilation():
        refreshed = refresh_statistics(classifier, images, key=KEY, batch_size=10)

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), classifier.params)
    seen: dict[str, list] = {"BatchNorm_0": [], "BatchNorm_1": []}
    for batch in (images[:10], images[10:20]):
        x = batch.reshape(10, -1).astype(np.float64)
        for number in range(2):
            layer = p[f"Dense_{number}"]
            x = 30 * (x @ layer["kernel"] + layer["bias"])
            mean, variance = x.mean(axis=0), x.var(axis=0)
            seen[f"BatchNorm_{number}"].append((mean, variance))
            x = np.maximum((x - mean) / np.sqrt(variance + 1e-5), 0)
    for name, batches in seen.items():
        new = refreshed.state["batch_stats"][name]
        mean, variance = np.mean(batches, axis=0)
        np.testing.assert_allclose(new["mean"], mean, rtol=2e-5, atol=1e-4)
        np.testing.assert_allclose(new["var"], variance, rtol=2e-5)
    assert refreshed.state["counts"]["calls"] == 0
    jax.tree.map(np.testing.assert_array_equal, refreshed.params, classifier.params)


class Dropping(nn.Module):
    """Dropout before normalisation, as in UNSC's AlexNet."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(2)(nn.BatchNorm(not train, momentum=0.9)(x))


class NNXDropping(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dense = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.norm(self.drop(x.reshape(len(x), -1))))


@pytest.mark.long
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_statistics_without_a_key_are_those_without_dropout(framework):
    images = np.random.default_rng(0).normal(2, 3, (40, 2, 2, 1)).astype(np.float32)
    if framework == "linen":
        classifier = ju.freeze(Dropping(), Dropping().init(KEY, images))
    else:
        classifier = ju.freeze(NNXDropping(nnx.Rngs(0)))

    def variance(key):
        changed = refresh_statistics(classifier, images, key=key, batch_size=20)
        leaves = jax.tree_util.tree_leaves_with_path(changed.state)
        return next(x for path, x in leaves if "var" in jax.tree_util.keystr(path))

    flat = images.reshape(2, 20, 4).astype(np.float64)
    expected = flat.var(axis=1).mean(axis=0)
    np.testing.assert_allclose(variance(None), expected, rtol=2e-5)
    # What is kept is doubled, and half of all is 0.
    assert (variance(KEY) > 1.3 * expected).all()


def test_without_a_key_a_network_that_draws_otherwise_is_refused():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(not train)(x.reshape(len(x), -1))
            if train:
                x += jax.random.normal(self.make_rng("dropout"), x.shape)
            return nn.Dense(2)(x)

    images = np.ones((2, 2, 2, 1), np.float32)
    classifier = ju.freeze(Noisy(), Noisy().init(KEY, images))
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        refresh_statistics(classifier, images, key=None)


def test_a_state_that_is_no_running_average_is_refused():
    class Squaring(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            value = self.variable("state", "square", lambda: jnp.ones(()))
            if train:
                value.value = value.value**2 / 2
            return nn.Dense(2)(x.reshape(len(x), -1))

    model, images = Squaring(), np.ones((2, 2, 2, 1), np.float32)
    classifier = ju.freeze(model, model.init(KEY, images))
    with pytest.raises(ValueError, match="state/square is no running average"):
        refresh_statistics(classifier, images, key=KEY)
    with pytest.raises(ValueError, match="images are empty"):
        refresh_statistics(classifier, images[:0], key=KEY)


@pytest.mark.long
def test_multiply_adds_are_those_that_xla_counts(original):
    costs = Costs(original, FORGET.images)
    # By hand: a convolution of stride 2 on 6 x 6 pixels, 54 inputs, two dense layers.
    assert costs.forward() == 9 * (9 * 6) + 54 * 24 + 24 * CLASSES
    assert costs.forward(["head/kernel", "head/bias"]) == 24 * CLASSES
    assert costs.step() == 3 * costs.forward()
    assert costs.moments() == costs.forward() + 9 * 9**2 + 54**2 + 24**2
    outputs = 9 * 6**2 + 24**2 + CLASSES**2
    assert costs.output_moments() == costs.step() + outputs
    sides = (9, 54, 24, 6, 24, CLASSES)
    assert costs.decompositions() == 10 * sum(side**3 for side in sides)

    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(64, (3, 3), padding="VALID")(x)
            return nn.Dense(256)(x.reshape(len(x), -1))

    model, images = Wide(), np.ones((4, 10, 10, 8), np.float32)
    wide = ju.freeze(model, model.init(KEY, images))
    counted = jax.jit(lambda x: wide(x)).lower(images).cost_analysis()
    counted = counted if isinstance(counted, dict) else counted[0]
    expected = 2 * 4 * Costs(wide, images).forward()
    np.testing.assert_allclose(counted["flops"], expected, rtol=0.03)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_one_temperature_matches_the_mean_confidence(scale):
    outputs = scale * np.random.default_rng(0).normal(size=(50, 5))
    temperature = match_confidence(outputs, 0.6)
    values = np.exp(outputs / temperature)
    confidence = (values / values.sum(axis=1, keepdims=True)).max(axis=1).mean()
    np.testing.assert_allclose(confidence, 0.6, atol=1e-9)


def test_where_no_temperature_matches_it_is_the_nearer_end():
    outputs = np.asarray([[3.0, 0.0], [2.0, 0.0]])
    assert match_confidence(outputs, 0.1) == pytest.approx(20)
    assert match_confidence(np.zeros((2, 3)), 0.9) == pytest.approx(1 / 20)
    certain = match_confidence(outputs, 1.0)
    assert 0.1 < certain == match_confidence(outputs, 0.9999) < 0.3


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distilling_is_plain_descent_on_what_is_above(original, temperature):
    images = jnp.asarray(RETAIN.images[:32])
    prepared = original.prepare(images)
    cut = find_cut(original, prepared, ["Dense_0/kernel", "head/kernel"])
    targets = np.random.default_rng(0).dirichlet(np.ones(CLASSES), 32)
    activations = cut.below(original, prepared)
    optimizer = optax.chain(
        optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9, nesterov=True)
    )
    trained, losses = distil_above(
        *(original, cut, activations, targets, optimizer),
        steps=3,
        batch_size=32,
        key=KEY,
        temperature=temperature,
    )
    # The twin in float64, by hand.
    x = np.asarray(activations, np.float64).reshape(32, -1)
    names = [("Dense_0", "kernel"), ("Dense_0", "bias"), ("head", "kernel")]
    names.append(("head", "bias"))
    w = [np.asarray(original.params[a][b], np.float64) for a, b in names]
    velocity = [np.zeros_like(p) for p in w]
    for step in range(3):
        hidden = x.reshape(32, -1) @ w[0] + w[1]
        active = np.maximum(hidden, 0)
        z = active @ w[2] + w[3]
        log = (z - z.max(axis=1, keepdims=True)) / temperature
        log -= np.log(np.exp(log).sum(axis=1, keepdims=True))
        loss = -(temperature**2) * (targets * log).sum(1).mean()
        assert losses[step] == pytest.approx(loss, rel=1e-4)
        d = temperature * (np.exp(log) - targets) / 32
        back = (d @ w[2].T) * (hidden > 0)
        gradients = [x.T @ back, back.sum(0), active.T @ d, d.sum(0)]
        for i, g in enumerate(gradients):
            g = g + 0.01 * w[i]
            velocity[i] = 0.9 * velocity[i] + g
            w[i] = w[i] - 0.1 * (g + 0.9 * velocity[i])
    for (a, b), value in zip(names, w, strict=True):
        np.testing.assert_allclose(trained.params[a][b], value, atol=1e-4)
    for name in ("Conv_0", "BatchNorm_0"):
        same = trained.params[name], original.params[name]
        jax.tree.map(np.testing.assert_array_equal, *same)


@pytest.mark.long
def test_it_costs_at_most_its_budget_and_says_so_beforehand(result, original):
    told, spent = QUICK.multiply_adds(original, TASK), result.trace.multiply_adds
    budget = QUICK.budget * len(RETAIN) * Costs(original, RETAIN.images).step()
    step = QUICK.batch_size * Costs(original, RETAIN.images).step()
    for costs in (told, spent):
        assert list(costs) == ["teacher", "moments", "trials", "steps"]
        assert budget - step <= sum(costs.values()) <= budget
    assert spent["teacher"] == told["teacher"]
    assert spent["moments"] == pytest.approx(told["moments"], rel=1e-12)
    assert spent["trials"] <= told["trials"] * (1 + 1e-12)
    assert len(result.trace.losses) > 100
    assert result.trace.samples_read["forget"] == 0


@pytest.mark.long
def test_the_forgotten_class_is_gone_and_what_is_below_the_cut_has_moved(
    result, original
):
    evaluation = ju.evaluate(result.classifier, TEST, [FORGOTTEN])
    assert evaluation.forgotten < 5
    assert evaluation.retained > 60
    before, after = original.params["Conv_0"], result.classifier.params["Conv_0"]
    assert (before["kernel"] != after["kernel"]).all()
    np.testing.assert_array_equal(before["bias"], after["bias"])


@pytest.mark.long
def test_forgotten_images_are_never_read(result, original):
    poison = ju.Data(np.full_like(FORGET.images, 0.123), FORGET.labels)
    task = ju.Task(poison, RETAIN, [FORGOTTEN], num_classes=CLASSES)
    before = jax.tree.map(np.array, (original.params, original.state))
    same = QUICK(original, task, key=KEY)
    both = result.classifier, same.classifier
    jax.tree.map(np.testing.assert_array_equal, *both)
    np.testing.assert_array_equal(result.trace.losses, same.trace.losses)
    after = original.params, original.state
    jax.tree.map(np.testing.assert_array_equal, before, after)


# Accuracies of trials by damping, the old layers' under 0, and what the rule takes.
PLANTED = [
    ({0.0: 92.0, 0.2: 91.0, 0.5: 80.0}, 0.2, [0.0, 0.5, 0.2]),
    ({0.0: 92.0, 0.5: 90.0}, 0.5, [0.0, 0.5]),
    ({0.0: 92.0, 0.2: 89.0, 0.5: 60.0}, 0.05, [0.0, 0.5, 0.2]),
]


@pytest.mark.parametrize(("accuracies", "chosen", "tried"), PLANTED)
def test_the_largest_damping_within_the_margin_is_taken(accuracies, chosen, tried):
    work, seen, told = object.__new__(Distillation), [], []
    work.method = ResetAndDistill(margin=2.0, dampings=(0.2, 0.05, 0.5))
    portion = types.SimpleNamespace(steps=7)
    work.allotment = types.SimpleNamespace(trial=lambda: portion)
    work.cut, work.cautions = types.SimpleNamespace(at_images=False), []

    def trained(damping, portion, stage):
        assert stage == "trials"
        seen.append(damping)
        return damping, None

    work._trained = trained
    work._outputs = lambda model, stage: model
    work._accuracy = accuracies.get
    assert work.choose(lambda *given: told.append(given)) == chosen
    assert seen == tried
    assert told == [("rates", i + 1, 3) for i in range(len(tried))]
    caution = " ".join(work.cautions)
    assert bool(caution) == (chosen == 0.05)
    if caution:
        assert "Of the dampings [0.5, 0.2] none keeps the accuracy" in caution
        assert "within 2 points of the 92.0 % that old layers" in caution
        assert "(after 7 steps at most 89.0 %): the smallest, 0.05, is" in caution
    # One alone is not tried.
    work.method = work.method.replace(dampings=(0.3,))
    assert work.choose(told.append) == 0.3
    assert seen == tried


def test_a_budget_that_does_not_suffice_is_told_what_would(original):
    small = QUICK.replace(budget=1.0)
    with pytest.raises(ValueError, match="budget is 1 passes over the retained") as e:
        small.multiply_adds(original, TASK)
    words = str(e.value).replace(":", "").split()
    needed = float(words[words.index("need") + 1])
    assert needed < 40
    told = small.replace(budget=needed).multiply_adds(original, TASK)
    assert told["steps"] > 0
    with pytest.raises(ValueError, match="budget is"):
        small.replace(budget=needed / 1.2).multiply_adds(original, TASK)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"budget": 0.0}, "budget must be positive"),
        ({"margin": -1.0}, "margin must be at least 0"),
        ({"layers": -1}, "layers"),
        ({"dampings": ()}, "dampings are empty"),
        ({"dampings": (0.1, 0.0)}, "dampings must be positive"),
        ({"momentum": 1.0}, "momentum must lie in"),
        ({"trial": 0.4}, "3 trials of 0.4 of the budget leave nothing to train with"),
    ],
)
def test_wrong_settings_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ResetAndDistill(**options)


@pytest.mark.long
def test_no_layers_is_training_from_scratch_by_the_same_teacher(original):
    method = QUICK.replace(layers=0, budget=8.0, teacher_temperature=1.5)
    result = method(original, TASK, key=KEY)
    told = method.multiply_adds(original, TASK)
    assert result.trace.multiply_adds == pytest.approx(told)
    assert list(told) == ["teacher", "steps"]
    assert list(result.trace.tuned) == ["temperature"]
    assert result.trace.caution == ""
    # The twin: the network drawn anew, trained as a whole on the same targets.
    work = Distillation(method, original, TASK, RETAIN, KEY)
    work.prepare()
    expected = ju.methods.retained_probabilities(
        original(work.data.images) / 1.5, [FORGOTTEN]
    )
    rows = np.flatnonzero(work.targets.any(axis=1))
    np.testing.assert_allclose(work.targets[rows], expected[rows], atol=1e-6)
    everything = work.allotment.cut
    assert everything.at_images
    portion = work.allotment.distillation()
    warm = portion.steps // 10
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.3, warm, portion.steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(5e-4),
        optax.sgd(schedule, 0.9, nesterov=True),
    )
    images = original.prepare(work.data.images[rows])
    model, losses = distil_above(
        *(work.fresh, everything, images, work.targets[rows], optimizer),
        steps=portion.steps,
        batch_size=16,
        key=jax.random.split(work.key)[1],
        temperature=1.5,
    )
    np.testing.assert_allclose(losses, result.trace.losses, rtol=1e-5)
    temperature = result.trace.tuned["temperature"]
    head = model.params["head"]["kernel"] / temperature
    np.testing.assert_allclose(result.classifier.params["head"]["kernel"], head, 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("forget", [[8, 2], []])
def test_several_classes_and_samples_may_be_forgotten(forget, original):
    if forget:
        parts = ju.split_by_class(RETAIN, [2])
    else:
        parts = ju.split_by_index(RETAIN, np.arange(0, 200, 10))
    task = ju.Task(*parts, forget, num_classes=CLASSES, validation=TEST)
    stages = []

    def progress(stage, done, total):
        stages.append((stage, done, total))

    result = QUICK(original, task, key=KEY, progress=progress)
    evaluation = ju.evaluate(result.classifier, TEST, forget or [FORGOTTEN])
    assert evaluation.retained > 60
    if forget:
        assert evaluation.forgotten < 5
    last = {stage: (done, total) for stage, done, total in stages}
    assert set(last) == {"rates", "steps"}
    assert last["steps"][0] == last["steps"][1] == len(result.trace.losses)


@pytest.mark.long
def test_a_network_without_a_place_is_trained_whole_and_says_so():
    class Around(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = x.reshape(len(x), -1)
            y = nn.Dense(8, name="a")(x)
            return nn.Dense(CLASSES, name="b")(nn.relu(y)) + nn.Dense(
                CLASSES, name="c"
            )(x)

    model = Around()
    classifier = ju.freeze(model, model.init(KEY, RETAIN.images))
    with quick_compilation():
        result = QUICK(classifier, TASK, key=KEY)
    assert "all of the network is trained from a draw" in result.trace.caution


@pytest.mark.long
def test_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "reset-and-distill.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(code, "reset-and-distill.md", "exec"), {})  # noqa: S102
