"""Every baseline keeps the contract of a method, and is what it says it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from blocks import (
    CLASSES,
    FORGET,
    FORGOTTEN,
    KEY,
    RETAIN,
    TASK,
    TEST,
    TRAIN,
    accuracies,
    trained,
)

import jaxunlearn as ju
from jaxunlearn import datasets, methods, models
from jaxunlearn.cli.run import Run
from jaxunlearn.methods.random_labels import saliency_mask
from jaxunlearn.training.recipe import Recipe


@pytest.fixture(scope="module")
def original():
    return trained()


@pytest.fixture(scope="module")
def task():
    return TASK


# Few steps, and the rate by the one grid.
SMALL = {
    "fine-tune": methods.FineTune(steps=30),
    "l1-sparse": methods.L1Sparse(steps=30),
    "gradient-ascent": methods.GradientAscent(steps=40),
    "neg-grad-plus": methods.NegGradPlus(steps=40),
    "random-labels": methods.RandomLabels(steps=40),
    "boundary-shrink": methods.BoundaryShrink(steps=40),
    "boundary-expand": methods.BoundaryExpand(steps=40),
    "fisher": methods.Fisher(),
    "salun": methods.SalUn(steps=40),
    "ssd": methods.SSD(),
    "scrub": methods.SCRUB(steps=40, batch_size=16),
    "bad-teacher": methods.BadTeacher(steps=40),
    "unsir": methods.UNSIR(steps=20, repair_steps=20),
    "delete": methods.Delete(steps=40),
    "kodge": methods.Kodge(),
    "projected-gradient": methods.ProjectedGradient(steps=40),
    "erase-concept": methods.EraseConcept(),
    "layerwise-teacher": methods.LayerwiseTeacher(),
    "last-layers-reset": methods.LastLayersReset(steps=40),
    # Of 240 samples, moments and trials cost more than the training.
    "reset-and-distill": methods.ResetAndDistill(budget=40.0, batch_size=16),
    "mask-head": methods.MaskHead(),
}
GRID = np.geomspace(1e-3, 1, 13)
QUICK = {"fine-tune", "mask-head"}
# A confident model gives ascent no gradient, and then too much: a narrow window.
GRIDS = {"gradient-ascent": [0.01, 0.014, 0.02]}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK))
        for name in SMALL
    ],
)
def run(request, original):
    method = SMALL[request.param]
    grid = GRIDS.get(request.param, getattr(method, "grid", GRID))
    (result,) = ju.forget(
        *(method, original, TRAIN, [[FORGOTTEN]]),
        key=KEY,
        validation=TEST,
        grid=grid,
    )
    return method, result


def test_all_that_start_from_the_classifier_are_here():
    elsewhere = {"covarnav", "unsc", "unprojected", "retrain"}
    kinds = {n: k for n, k in methods.by_name.items() if n not in elsewhere}
    assert {name: type(method) for name, method in SMALL.items()} == kinds


def test_it_forgets_unless_it_says_otherwise(run, original):
    method, result = run
    before, after = accuracies(original), accuracies(result.classifier)
    assert before[0] > 90
    assert after[1] > 60
    if method.forgets:
        assert after[0] < before[0] - 40
    else:
        assert after[1] >= before[1] - 5


def test_structure_dtypes_and_state_are_kept(run, original):
    method, result = run
    before, after = (
        jax.tree.map(lambda x: (x.shape, x.dtype), c.params)
        for c in (original, result.classifier)
    )
    assert before == after
    if not method.changes_state:
        state = result.classifier.state
        jax.tree.map(np.testing.assert_array_equal, original.state, state)
    if not method.changes_network:
        assert result.classifier.network == original.network
        assert result.classifier.preprocess == original.preprocess


def test_the_trace_tells_what_happened(run):
    method, result = run
    trace = result.trace
    assert set(trace.seconds) >= {"compile", "steps"}
    assert set(trace.samples_read) == {"forget", "retain"}
    if hasattr(method, "steps"):
        assert len(trace.losses) >= method.steps
        assert np.isfinite(trace.losses).all()
    if method.tuned is not None:
        assert trace.tuned[method.tuned] in [trial.value for trial in trace.trials]


def test_it_is_deterministic_in_the_key_and_changes_no_input(run, original, task):
    method, _ = run
    before = jax.tree.map(np.array, original.params)
    few = {"steps": getattr(method, "rounds", 3)}
    short = method.replace(**few) if hasattr(method, "steps") else method
    one, same = (short(original, task, key=KEY).classifier for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one.params, same.params)
    jax.tree.map(np.testing.assert_array_equal, before, original.params)


def descend(original, loss, steps, learning_rate, momentum=0.0):
    """Plain SGD on whole sets, written out."""
    params, velocity = original.params, jax.tree.map(jnp.zeros_like, original.params)
    gradient = jax.jit(jax.grad(lambda p: loss(original.replace(params=p))))
    for _ in range(steps):
        step = gradient(params)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, step)
        params = jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity)
    return params


def entropy(classifier, data):
    logits = classifier(jnp.asarray(data.images))
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.asarray(data.labels)
    ).mean()


WHOLE = {"batch_size": 500, "steps": 4, "learning_rate": 0.01}


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "loss"),
    [
        (methods.FineTune(**WHOLE), lambda c: entropy(c, RETAIN)),
        (methods.GradientAscent(**WHOLE, momentum=0.9), lambda c: -entropy(c, FORGET)),
        (
            methods.NegGradPlus(**WHOLE, alpha=0.7),
            lambda c: 0.7 * entropy(c, RETAIN) - 0.3 * entropy(c, FORGET),
        ),
        (
            methods.L1Sparse(**WHOLE, gamma=1e-2),
            lambda c: (
                entropy(c, RETAIN)
                + 1e-2 * sum(jnp.abs(p).sum() for p in jax.tree.leaves(c.params))
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_on_whole_sets_it_is_plain_descent_on_its_objective(
    method, loss, original, task
):
    result = method(original, task, key=KEY)
    expected = descend(original, loss, 4, 0.01, method.momentum)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        result.classifier.params,
        expected,
    )


@pytest.mark.long
def test_delete_distils_the_masked_original_without_retained_data(original):
    alone = ju.Task(FORGET, None, [FORGOTTEN], num_classes=CLASSES)
    z = original(jnp.asarray(FORGET.images))
    teacher = jax.nn.softmax(z.at[:, FORGOTTEN].set(-jnp.inf))

    def loss(classifier):
        log = jax.nn.log_softmax(classifier(jnp.asarray(FORGET.images)))
        return -jnp.where(teacher > 0, teacher * log, 0).sum(axis=1).mean()

    result = methods.Delete(**WHOLE)(original, alone, key=KEY)
    expected = descend(original, loss, 4, 0.01, 0.9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        result.classifier.params,
        expected,
    )


@pytest.mark.long
def test_l1_leaves_fewer_and_smaller_weights(original, task):
    settings = {"steps": 60, "learning_rate": 0.03}
    plain = methods.FineTune(**settings)(original, task, key=KEY)
    sparse = methods.L1Sparse(**settings, gamma=3e-3)(original, task, key=KEY)

    def small(result):
        leaves = jax.tree.leaves(result.classifier.params)
        return sum(int((jnp.abs(leaf) < 1e-3).sum()) for leaf in leaves)

    assert small(sparse) > 2 * small(plain)


@pytest.mark.long
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_salun_moves_salient_weights_alone(weight_decay, original, task):
    method = methods.SalUn(steps=5, share=0.3, weight_decay=weight_decay)
    result = method(original, task, key=KEY)
    mask = saliency_mask(original, FORGET, 0.3)

    def loss(params):
        return entropy(original.replace(params=params), FORGET)

    # The twin: the cut by the sorted sizes of the whole gradient.
    gradient = jax.jit(jax.grad(loss))(original.params)
    sizes = np.concatenate([np.abs(g).ravel() for g in jax.tree.leaves(gradient)])
    cut = np.quantile(sizes, 0.7)
    moved = 0
    for old, new, free, g in zip(
        *map(
            jax.tree.leaves, (original.params, result.classifier.params, mask, gradient)
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(old[~free], new[~free])
        clear = np.abs(np.abs(g) - cut) > 1e-3 * cut
        np.testing.assert_array_equal(free[clear], (np.abs(g) > cut)[clear])
        moved += int((old != new).sum())
    assert 0.1 * sizes.size < moved <= 0.31 * sizes.size


def test_random_labels_are_retained_ones(original, task):
    images, targets = methods.RandomLabels().sets(original, task, KEY)["forget"]
    assert len(images) == len(targets) == len(FORGET)
    assert set(targets.tolist()) <= set(range(CLASSES)) - {FORGOTTEN}


def test_masking_the_head_leaves_all_else(original, task):
    masked = methods.MaskHead()(original, task, key=KEY).classifier
    logits = np.asarray(masked(TEST.images))
    np.testing.assert_array_equal(logits[:, FORGOTTEN], -10)
    np.testing.assert_array_equal(
        logits[:, :FORGOTTEN], np.asarray(original(TEST.images))[:, :FORGOTTEN]
    )
    body = {k: v for k, v in masked.params.items() if k != "head"}
    for name, layer in body.items():
        jax.tree.map(np.testing.assert_array_equal, layer, original.params[name])


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        (methods.FineTune, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (methods.FineTune, {"weight_decay": -1.0}, "weight_decay must be at least 0"),
        (methods.FineTune, {"momentum": 1.0}, "momentum must lie in"),
        (methods.L1Sparse, {"gamma": -1.0}, "gamma must be at least 0"),
        (methods.NegGradPlus, {"alpha": 1.0}, "alpha must lie in"),
        (methods.SalUn, {"share": 0.0}, "share must lie in"),
        (methods.MaskHead, {"bias": 1.0}, "bias must be a finite number below 0"),
        (methods.BoundaryShrink, {"epsilon": 0.0}, "epsilon must be positive"),
        (methods.Fisher, {"alpha": -1.0}, "alpha must be positive"),
        (methods.SSD, {"dampening": 0.0}, "dampening must be positive"),
        (methods.SCRUB, {"rounds": 3, "ascents": 4}, "ascents must be at most rounds"),
        (methods.SCRUB, {"temperature": 0.0}, "temperature must be positive"),
        (methods.UNSIR, {"penalty": -1.0}, "penalty must be at least 0"),
        (methods.Kodge, {"alpha_f": 0.0}, "alpha_f must be positive"),
        (methods.ProjectedGradient, {"energy": 0.0}, "energy"),
        (methods.EraseConcept, {"percent": 100.0}, "percent must lie in"),
        (methods.LastLayersReset, {"layers": 0}, "layers"),
    ],
)
def test_wrong_settings_are_refused(kind, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(**options)


@pytest.mark.parametrize("method", [methods.FineTune(), methods.SSD()])
def test_arguments_of_another_type_are_refused(method, original):
    with pytest.raises(TypeError, match="classifier"):
        method(original.params, TASK, key=KEY)
    with pytest.raises(TypeError, match=r"task.*Task\(forget, retain"):
        method(original, FORGET, key=KEY)


READING = ["fine-tune", "neg-grad-plus", "random-labels", "fisher", "ssd", "scrub"]
READING += ["bad-teacher", "unsir", "kodge", "projected-gradient", "last-layers-reset"]
READING += ["reset-and-distill"]


@pytest.mark.parametrize("name", READING)
def test_those_that_read_retained_data_say_so(name, original):
    alone = ju.Task(FORGET, None, [FORGOTTEN], num_classes=CLASSES)
    with pytest.raises(ValueError, match="reads retained data, of which this task has"):
        SMALL[name](original, alone, key=KEY)


def test_every_field_of_a_method_is_documented():
    for kind in methods.by_name.values():
        text = " ".join(base.__doc__ or "" for base in kind.__mro__[:-1])
        for field in dataclasses.fields(kind):
            assert f"{field.name}" in text, (kind, field.name)


@pytest.fixture(scope="module")
def digits():
    """A small network on all digits, and the splits."""
    splits = {name: datasets.load("digits", name) for name in ("train", "validation")}
    given = {"key": KEY, "preprocess": datasets.preprocess("digits")}
    model = models.create("smallcnn", num_classes=10, width=8)
    recipe = Recipe(epochs=5, batch_size=32, learning_rate=0.1)
    return ju.training.fit(model, splits["train"], recipe=recipe, **given), splits


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_with_its_defaults_and_the_commands_grid_it_forgets_a_digit(name, digits):
    classifier, splits = digits
    (result,) = ju.forget(
        *(methods.by_name[name](), classifier, splits["train"], [[3]]),
        key=KEY,
        validation=splits["validation"],
        grid=Run().grid_of(name),
    )
    before, after = (
        ju.evaluate(c, splits["validation"], [3])
        for c in (classifier, result.classifier)
    )
    if methods.by_name[name].forgets:
        assert after.forgotten < before.forgotten - 50
    assert after.retained > before.retained - 25
