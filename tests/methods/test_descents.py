"""What tells the baselines that descend apart, each beside a twin of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import CLASSES, FORGET, FORGOTTEN, KEY, RETAIN, TASK, trained
from flax import nnx

import jaxunlearn as ju
from jaxunlearn import methods
from jaxunlearn.methods.baseline import minimise
from jaxunlearn.methods.last_layers_reset import last_layers
from jaxunlearn.methods.scrub import divergence
from jaxunlearn.metrics.evaluation import logits

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def original():
    return trained()


def softmax(z):
    e = np.exp(np.asarray(z, np.float64))
    return e / e.sum(axis=1, keepdims=True)


def linear(params, state, images):
    return images.reshape(len(images), -1) @ params["kernel"] + params["bias"][None]


def plain_linear():
    rng = np.random.default_rng(0)
    size = FORGET.images[0].size
    params = {"kernel": rng.normal(size=(size, CLASSES)), "bias": np.zeros(CLASSES)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return ju.freeze(ju.Function(linear, params)), params


def test_boundary_shrink_takes_the_class_of_the_fgsm_image():
    classifier, params = plain_linear()
    x, y = FORGET.images, FORGET.labels
    w = np.asarray(params["kernel"], np.float64)
    p = softmax(logits(classifier, x))
    slope = (p - np.eye(CLASSES)[y]) @ w.T
    moved = x.reshape(len(x), -1) + 0.2 * np.sign(slope)
    moved = np.clip(moved, x.min(), x.max())
    expected = (moved @ w)[:, :FORGOTTEN].argmax(axis=1)
    method = methods.BoundaryShrink(epsilon=0.2)
    images, labels = method.sets(classifier, TASK, KEY)["forget"]
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(images, x)
    nearest = (x.reshape(len(x), -1) @ w)[:, :FORGOTTEN].argmax(axis=1)
    assert (labels != nearest).any()  # Or the step would have no effect.


def test_boundary_expand_has_a_class_more_while_it_works(original):
    method = methods.BoundaryExpand(steps=60, learning_rate=0.003)
    sets, constants, expanded = method.measured(original, TASK, KEY)
    before, after = original(FORGET.images), expanded(FORGET.images)
    assert after.shape == (len(FORGET), CLASSES + 1)
    np.testing.assert_allclose(after[:, :-1], before, atol=1e-5)
    one = ju.metrics.features(original, FORGET.images) @ expanded.params["row"]
    np.testing.assert_allclose(after[:, -1], one + expanded.params["bias"], atol=1e-5)
    _, order, draw = jax.random.split(KEY, 3)
    params, _ = minimise(
        *(expanded, sets, method.objective(), method.optimizer(constants)),
        steps=60,
        batch_size=64,
        key=jax.random.fold_in(order, 0),
        draw=draw,
    )
    worked = expanded.replace(params=params)(FORGET.images)
    assert (worked.argmax(axis=1) == CLASSES).mean() > 0.9
    pruned = method(original, TASK, key=KEY).classifier
    jax.tree.map(np.testing.assert_array_equal, pruned.params, params["network"])
    assert pruned.network == original.network


def test_scrub_moves_off_the_teacher_on_forgotten_and_to_it_on_retained(original):
    keys = iter(jax.random.split(KEY, len(jax.tree.leaves(original.params))))
    student = original.replace(
        params=jax.tree.map(
            lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), original.params
        )
    )
    method = methods.SCRUB(
        steps=40, alpha=1.0, gamma=0.0, learning_rate=0.003, weight_decay=0.0
    )
    sets = method.sets(original, TASK, KEY)
    up, down, *_ = method.phases(sets, ())

    def apart(classifier, data):
        p, q = softmax(original(data.images)), softmax(classifier(data.images))
        return (p * np.log(p / q)).sum(axis=1).mean()

    def moved(phase):
        given = {n: sets[n] for n in phase.sets}
        options = {"steps": 10, "batch_size": 64, "key": KEY, "draw": KEY}
        params, _ = minimise(
            student, given, phase.objective, phase.optimizer, **options
        )
        return student.replace(params=params)

    assert (up.sets, down.sets) == (("forget",), ("retain",))
    assert apart(moved(up), FORGET) > 1.5 * apart(student, FORGET)
    assert apart(moved(down), RETAIN) < 0.8 * apart(student, RETAIN)


def test_scrub_takes_turns():
    method = methods.SCRUB(steps=10, rounds=3, ascents=2, batch_size=7)
    images = np.zeros((30, 2, 2, 1))
    sets = {"forget": (images, None), "retain": (images, None)}
    turns = [(phase.sets[0], phase.steps) for phase in method.phases(sets, ())]
    assert turns == [
        ("forget", 5), ("retain", 4), ("forget", 5), ("retain", 3), ("retain", 3)
    ]  # fmt: skip


def test_the_divergence_is_that_of_the_tempered_distributions():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 5, 4))
    p, q = softmax(teacher / 4), softmax(student / 4)
    expected = 16 * (p * np.log(p / q)).sum(axis=1).mean()
    found = divergence(jnp.asarray(teacher), jnp.asarray(student), 4.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bad_teacher_teaches_what_its_two_teachers_say(original):
    sets = methods.BadTeacher().sets(original, TASK, KEY)
    params, state = original.network.init(KEY, (6, 6, 1))
    untrained = original.replace(params=params, state=state)
    for name, data, teacher in (
        ("forget", FORGET, untrained),
        ("retain", RETAIN, original),
    ):
        images, targets = sets[name]
        np.testing.assert_array_equal(images, data.images)
        np.testing.assert_allclose(targets, softmax(teacher(images)), atol=1e-5)


def test_unsir_noise_raises_the_loss_of_the_class(original):
    method = methods.UNSIR(noise_steps=40, batch_size=16)
    sets = method.sets(original, TASK, KEY)
    noise, labels = sets["noise"]
    assert set(sets) == {"noise", "retain"}
    assert noise.shape == (16, 6, 6, 1)
    assert labels.tolist() == [FORGOTTEN] * 16
    draw, _ = jax.random.split(KEY)
    start = jax.random.normal(draw, noise.shape)

    def losses(inputs):
        p = softmax(original.logits(inputs))
        return -np.log(p[:, FORGOTTEN])

    assert losses(noise).mean() > losses(start).mean() + 2
    assert (losses(noise) > losses(original.prepare(FORGET.images)).max()).all()


def test_projected_gradient_leaves_the_retained_subspace_out(original):
    method = methods.ProjectedGradient(steps=20, learning_rate=0.05)
    result = method(original, TASK, key=KEY).classifier
    change = jax.tree.map(jnp.subtract, result.params, original.params)
    bases = method.constants(original, TASK, KEY)
    for name, share in (("Conv_0", 1e-4), ("Dense_0", 1e-5), ("head", 1e-5)):
        assert ju.leakage(change, bases)[name]["kernel"] < share
        assert jnp.abs(change[name]["kernel"]).max() > 1e-3
        np.testing.assert_array_equal(change[name]["bias"], 0)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), change["BatchNorm_0"])


def test_projected_gradient_descends_against_the_label_and_for_entropy(original):
    rows = {"forget": (FORGET.images, jnp.asarray(FORGET.labels))}
    p = softmax(original(FORGET.images))
    own = p[np.arange(len(p)), FORGET.labels]
    entropy = -(p * np.log(p)).sum(axis=1)
    expected = (-np.log1p(-own) - 0.3 * entropy).mean()
    loss = methods.ProjectedGradient(weight=0.3).objective()
    np.testing.assert_allclose(loss((), original, rows, KEY), expected, rtol=1e-4)


@pytest.mark.parametrize(("layers", "distil"), [(1, False), (2, True)])
def test_below_the_last_layers_nothing_changes(layers, distil, original):
    method = methods.LastLayersReset(steps=5, layers=layers, distil=distil)
    result = method(original, TASK, key=KEY).classifier.params
    fresh = method.start(original, TASK, KEY).params
    for name, layer in result.items():
        same = name not in ("head", "Dense_0")[:layers]
        for leaf, value in layer.items():
            assert (value == original.params[name][leaf]).all() == same, (name, leaf)
    assert abs(float(fresh["head"]["kernel"].std()) - 24**-0.5) < 0.05
    assert (fresh["head"]["bias"] == 0).all()
    _, targets = method.sets(original, TASK, KEY)["retain"]
    if distil:
        z = np.asarray(original(RETAIN.images), np.float64)
        z[:, FORGOTTEN] = -np.inf
        np.testing.assert_allclose(targets, softmax(z), atol=1e-5)
    else:
        np.testing.assert_array_equal(targets, RETAIN.labels)


def test_last_layers_says_which_weight_is_missing_or_whose_bias_is_unclear():
    classifier, params = plain_linear()
    size = FORGET.images[0].size
    assert last_layers(classifier, FORGET.images, 1) == [(1, 0, size)]
    with pytest.raises(ValueError, match="layers is 2, and this network has 1 weights"):
        last_layers(classifier, FORGET.images, 2)

    def twice(params, state, images):
        return linear(params, state, images) + params["other"][None]

    both = ju.freeze(ju.Function(twice, {**params, "other": params["bias"]}))
    with pytest.raises(ValueError, match="2 leaves beside kernel could be its bias"):
        last_layers(both, FORGET.images, 1)


class Small(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Linear(FORGET.images[0].size, 8, rngs=rngs)
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.body(x.reshape(len(x), -1))))


@pytest.mark.parametrize(
    "name",
    sorted({*methods.by_name} - {"retrain", "covarnav", "unsc", "unprojected"}),
)
def test_it_works_for_networks_of_every_kind(name):
    classifiers = {
        "NNX": ju.freeze(Small(nnx.Rngs(0))),
        "Function": plain_linear()[0],
    }
    kind = methods.by_name[name]
    few = {"steps", "rounds", "ascents"} & set(kind.__dataclass_fields__)
    method = kind(**dict.fromkeys(few, 1))
    for classifier in classifiers.values():
        if name in ("bad-teacher", "reset-and-distill"):
            needs = f"{kind.__name__} needs freshly drawn"
            with pytest.raises(TypeError, match=needs):
                method(classifier, TASK, key=KEY)
            continue
        result = method(classifier, TASK, key=KEY).classifier
        shapes = [jax.tree.map(jnp.shape, c.params) for c in (result, classifier)]
        assert shapes[0] == shapes[1]
        assert isinstance(ju.thaw(result), type(ju.thaw(classifier)))
