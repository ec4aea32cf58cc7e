"""Every baseline keeps the contract of a method, and is what it says it is."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import methods
from jaxunlearn.methods.random_labels import saliency_mask
from jaxunlearn.training.recipe import Recipe


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.relu(nn.Dense(12)(x.reshape(x.shape[0], -1)))
        return nn.Dense(4, name="head")(x)


def samples(seed, n=160):
    """Four classes: a bright quadrant each."""
    rng = np.random.default_rng(seed)
    images, labels = rng.uniform(size=(n, 6, 6, 1)) * 0.6, np.arange(n) % 4
    for i, c in enumerate(labels):
        row, column = 3 * (c // 2), 3 * (c % 2)
        images[i, row : row + 3, column : column + 3] += 0.4
    return ju.Data(images.astype(np.float32), labels)


TRAIN, TEST = samples(0), samples(1)
FORGET, RETAIN = ju.split_by_class(TRAIN, [3])
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def original():
    model = Net()
    recipe = Recipe(epochs=8, batch_size=32, learning_rate=0.1)
    return ju.training.fit(model, TRAIN, recipe=recipe, key=jax.random.key(0))


@pytest.fixture(scope="module")
def task():
    return ju.Task(FORGET, RETAIN, [3], num_classes=4)


# Few steps, and the rate by the one grid.
SMALL = {
    "fine-tune": methods.FineTune(steps=30),
    "l1-sparse": methods.L1Sparse(steps=30),
    "gradient-ascent": methods.GradientAscent(steps=40),
    "neg-grad-plus": methods.NegGradPlus(steps=40),
    "random-labels": methods.RandomLabels(steps=40),
    "salun": methods.SalUn(steps=40),
    "delete": methods.Delete(steps=40),
    "mask-head": methods.MaskHead(),
}
GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


@pytest.fixture(scope="module", params=list(SMALL))
def run(request, original, task):
    method = SMALL[request.param]
    (result,) = ju.forget(
        *(method, original, TRAIN, [[3]]), key=KEY, validation=TEST, grid=GRID
    )
    return method, result


def accuracies(classifier):
    evaluation = ju.evaluate(classifier, TEST, [3])
    return evaluation.forgotten, evaluation.retained


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


def test_it_is_deterministic_in_the_key_and_changes_no_input(run, original, task):
    method, _ = run
    before = jax.tree.map(np.array, original.params)
    short = method.replace(steps=3) if hasattr(method, "steps") else method
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


def test_delete_distils_the_masked_original_without_retained_data(original):
    alone = ju.Task(FORGET, None, [3], num_classes=4)
    z = original(jnp.asarray(FORGET.images))
    teacher = jax.nn.softmax(z.at[:, 3].set(-jnp.inf))

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


def test_l1_leaves_fewer_and_smaller_weights(original, task):
    settings = {"steps": 60, "learning_rate": 0.03}
    plain = methods.FineTune(**settings)(original, task, key=KEY)
    sparse = methods.L1Sparse(**settings, gamma=3e-3)(original, task, key=KEY)

    def small(result):
        leaves = jax.tree.leaves(result.classifier.params)
        return sum(int((jnp.abs(leaf) < 1e-3).sum()) for leaf in leaves)

    assert small(sparse) > 2 * small(plain)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_salun_moves_salient_weights_alone(weight_decay, original, task):
    method = methods.SalUn(steps=5, share=0.3, weight_decay=weight_decay)
    result = method(original, task, key=KEY)
    mask = saliency_mask(original, FORGET, 0.3)

    def loss(params):
        return entropy(original.replace(params=params), FORGET)

    # The twin: the cut by the sorted sizes of the whole gradient.
    gradient = jax.grad(loss)(original.params)
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
    assert set(targets.tolist()) == {0, 1, 2}


def test_masking_the_head_leaves_all_else(original, task):
    masked = methods.MaskHead()(original, task, key=KEY).classifier
    logits = np.asarray(masked(TEST.images))
    np.testing.assert_array_equal(logits[:, 3], -10)
    np.testing.assert_array_equal(
        logits[:, :3], np.asarray(original(TEST.images))[:, :3]
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
    ],
)
def test_wrong_settings_are_refused(kind, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(**options)


@pytest.mark.parametrize("name", ["fine-tune", "neg-grad-plus", "random-labels"])
def test_those_that_read_retained_data_say_so(name, original):
    alone = ju.Task(FORGET, None, [3], num_classes=4)
    with pytest.raises(ValueError, match="reads retained data, of which this task has"):
        SMALL[name](original, alone, key=KEY)


def test_every_field_of_a_method_is_documented():
    for kind in methods.by_name.values():
        text = " ".join(base.__doc__ or "" for base in kind.__mro__[:-1])
        for field in dataclasses.fields(kind):
            assert f"{field.name}" in text, (kind, field.name)
