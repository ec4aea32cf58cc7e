"""Features, heads, probes and relearning, on networks whose answers are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.metrics import head, layer_features, probes, relearning

pytestmark = pytest.mark.core


class Net(nn.Module):
    """Names sort against the order of use."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="z")(x)).mean((1, 2))
        return nn.Dense(3, name="a")(nn.relu(nn.Dense(5, name="b")(x)))


RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(11, 6, 6, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def classifier():
    return ju.freeze(Net(), Net().init(jax.random.key(0), IMAGES))


def test_layers_come_in_the_order_of_use(classifier):
    assert layer_features.feature_layers(classifier, IMAGES) == [
        "z/kernel",
        "b/kernel",
        "a/kernel",
    ]


def test_features_are_what_the_head_multiplies(classifier):
    x = layer_features.features(classifier, IMAGES, batch_size=4)
    layer = classifier.params["a"]
    logits = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    np.testing.assert_allclose(logits, classifier(IMAGES), atol=1e-5)


def test_features_of_a_convolution_are_the_mean_of_its_patches(classifier):
    x = layer_features.features(classifier, IMAGES, "z/kernel")
    padded = np.pad(IMAGES, [(0, 0), (1, 1), (1, 1), (0, 0)])
    means = [
        padded[:, i : i + 6, j : j + 6].mean(axis=(1, 2))
        for i in range(3)
        for j in range(3)
    ]
    np.testing.assert_allclose(x, np.concatenate(means, axis=1), atol=1e-5)


def test_an_unknown_layer_is_refused(classifier):
    with pytest.raises(ValueError, match="layer must be one of 'z/kernel'"):
        layer_features.features(classifier, IMAGES, "head")


def test_the_head_and_its_bias_are_found_by_what_they_do(classifier):
    found = head.find_head(classifier, IMAGES)
    leaves = jax.tree.leaves(classifier.params)
    assert leaves[found.kernel] is classifier.params["a"]["kernel"]
    assert leaves[found.bias] is classifier.params["a"]["bias"]


def test_a_masked_head_and_one_that_is_not_become_the_same(classifier):
    layer = classifier.params["a"]
    masked = {
        "kernel": layer["kernel"].at[:, 1].set(0),
        "bias": layer["bias"].at[1].set(-10),
    }
    other = classifier.replace(params={**classifier.params, "a": masked})
    one, same = (head.neutral_head(c, IMAGES, [1]) for c in (classifier, other))
    np.testing.assert_allclose(one(IMAGES), same(IMAGES), atol=1e-6)
    logits = np.asarray(one(IMAGES))
    np.testing.assert_allclose(logits[:, 1], logits[:, [0, 2]].mean(axis=1), atol=1e-5)
    np.testing.assert_array_equal(logits[:, [0, 2]], classifier(IMAGES)[:, [0, 2]])


def blobs(n=60, classes=(0, 1, 2)):
    centres = np.array([[4.0, 0, 0], [0, 4, 0], [0, 0, 4]])
    labels = np.resize(classes, n)
    return centres[labels] + np.random.default_rng(1).normal(size=(n, 3)), labels


def test_the_probe_is_at_the_minimum_of_its_loss():
    x, y = blobs()
    x[:, 2] = 7  # constant, so that it says nothing
    predicted = probes.linear_probe(x, y, x)
    mean, deviation = x.mean(axis=0), np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
    z = jnp.asarray((x - mean) / deviation)

    def loss(weights):
        logits = z @ weights[:3] + weights[3:]
        likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)
        return -likelihood.mean() + jnp.square(weights[:3]).sum() / (2 * len(x))

    weights = jnp.zeros((4, 3))
    descend = jax.jit(lambda w: w - jax.grad(loss)(w))
    for _ in range(2000):
        weights = descend(weights)
    expected = (z @ weights[:3] + weights[3:]).argmax(axis=1)
    np.testing.assert_array_equal(predicted, expected)


def test_means_and_neighbours_of_blobs_are_right():
    x, y = blobs()
    means = np.stack([x[y == c].mean(axis=0) for c in range(3)])
    expected = np.linalg.norm(x[:, None] - means, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(probes.class_mean_predictions(x, y, x), expected)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = np.argsort(-unit @ unit.T, axis=1)[:, :3]
    votes = [np.bincount(y[row], minlength=3).argmax() for row in nearest]
    got = probes.neighbour_predictions(x, y, x, neighbours=3)
    np.testing.assert_array_equal(got, votes)


def test_a_prototype_brings_back_what_the_head_alone_had_forgotten():
    x, y = blobs()
    logits = 4 * x - 8
    logits[:, 2] = -100  # masked
    attack = probes.attack_with_prototypes(x, logits, y, {2: x[y == 2][:5]})
    assert attack.forgotten > 90
    assert attack.retained > 90
    # Features in which the class cannot be told from another.
    x[y == 2] = x[y == 1]
    logits[:, :2] = 4 * x[:, :2] - 8
    attack = probes.attack_with_prototypes(x, logits, y, {2: x[y == 2][:5]})
    assert attack.harmonic < 80


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def taught():
    x, y = blobs(90)
    data = ju.Data(x.astype(np.float32).reshape(-1, 1, 1, 3), y)
    kernel = {"kernel": jnp.eye(3) * 2, "bias": jnp.zeros(3)}
    return data, ju.freeze(Linear(), {"params": {"Dense_0": kernel}})


def relearn(taught, classifier, **options):
    data, _ = taught
    settings = {"learning_rate": 0.05, "batch_size": 30, "cap": 40, **options}
    return relearning.relearn_steps(
        classifier,
        data,
        data,
        [2],
        target=90,
        protocol=relearning.Relearning(**settings),
        key=jax.random.key(3),
    )


def test_relearning_is_counted_and_trains_nothing_in_place(taught):
    _, classifier = taught
    before = jax.tree.map(np.array, classifier.params)
    first = relearn(taught, classifier)
    assert not first.censored
    assert len(first.curve) == first.steps
    assert max(first.curve[:-1], default=0) < 90 <= first.curve[-1]
    again = relearn(taught, classifier)
    assert again == first
    assert relearning.anamnesis_index(first, again) == 1
    jax.tree.map(np.testing.assert_array_equal, before, classifier.params)


def test_a_masked_head_does_not_slow_relearning_unless_it_is_let(taught):
    _, classifier = taught
    layer = classifier.params["Dense_0"]
    masked = {**layer, "bias": layer["bias"].at[2].set(-10)}
    other = classifier.replace(params={"Dense_0": masked})
    assert relearn(taught, other) == relearn(taught, classifier)
    slow = relearn(taught, other, neutral_head=False)
    quick = relearn(taught, classifier, neutral_head=False)
    assert quick.steps < slow.steps


def test_the_index_of_worked_times():
    def times(*steps):
        how = relearning.Relearning()
        return [relearning.Relearned(n, False, (), 95.0, how) for n in steps]

    assert relearning.anamnesis_index(*times(12, 40)) == pytest.approx(0.3)
    value = relearning.anamnesis_index(*times(1, 3), variant="as-coded:erasure")
    assert value == pytest.approx(0.335548, abs=1e-6)


def test_relearning_of_samples_looks_at_these_alone(taught):
    data, classifier = taught
    forget = ju.Data(data.images[:7], data.labels[:7])
    how = relearning.Relearning(learning_rate=0.05, batch_size=30, cap=3, data="retain")
    given = {"target": 100, "forget": forget, "protocol": how, "key": jax.random.key(3)}
    result = relearning.relearn_steps(classifier, data, data, (), **given)
    assert all(abs(a / 100 * 7 - round(a / 100 * 7)) < 1e-4 for a in result.curve)
    # Where they stand among the training samples is found.
    moved = np.roll(np.arange(len(data)), -7)
    other = ju.Data(data.images[moved], data.labels[moved])
    rows = relearning.rows_of(other, forget)
    assert np.flatnonzero(rows).tolist() == list(range(len(data) - 7, len(data)))
    assert relearning.relearn_steps(classifier, other, data, (), **given) == result
    with pytest.raises(ValueError, match="given are both"):
        relearning.relearn_steps(classifier, data, data, [2], **given)


def test_retained_data_alone_bring_nothing_back_and_the_cap_is_said(taught):
    _, classifier = taught
    result = relearn(taught, classifier, data="retain", cap=5)
    assert (result.steps, result.censored, str(result)) == (5, True, ">5")
    both = relearning.anamnesis_index(result, result)
    assert np.isnan(both)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data": "some"}, "data must be one of"),
        ({"cap": 0}, "cap must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
    ],
)
def test_wrong_protocols_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        relearning.Relearning(**options)


def test_heads_of_numpy_parameters_are_edited_too():
    model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    kernel = {"kernel": np.float32([[1, 3, 9]]), "bias": np.float32([0, 2, -9])}
    classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    neutral = head.neutral_head(classifier, jnp.ones((1, 1, 1, 1)), [2])
    after = neutral.params["layers_1"]
    assert np.asarray(after["kernel"]).tolist() == [[1, 3, 2]]
    assert np.asarray(after["bias"]).tolist() == [0, 2, 1]
