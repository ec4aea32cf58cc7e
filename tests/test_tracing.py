"""What is compiled once serves every batch, request and number of samples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import compilations

import jaxunlearn as ju
from jaxunlearn import training
from jaxunlearn.descent import step
from jaxunlearn.metrics import evaluation
from jaxunlearn.nullspace import streaming
from jaxunlearn.training import step as training_step

KEY = jax.random.key(0)
# Of a shape that no other test uses: programs are kept for as long as a process lives.
SHAPE = (5, 7, 1)
MODEL = ju.models.create("smallcnn", num_classes=3, width=2)


@pytest.fixture(scope="module")
def classifier():
    variables = MODEL.init(KEY, jnp.zeros((1, *SHAPE)))
    return ju.freeze(MODEL, variables, preprocess=ju.Preprocess((0.5,), (0.5,)))


def data(count):
    draw = np.random.default_rng(count)
    images = draw.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return ju.Data(images, draw.permutation(np.arange(count) % 3))


def moments(classifier, count):
    ju.second_moments(classifier, data(count).images, batch_size=4)


def moments_of_classes(classifier, count):
    images, labels = data(count).images, data(count).labels
    ju.class_moments(classifier, images, labels, num_classes=3, batch_size=3)


def judge(classifier, count):
    ju.evaluate(classifier, data(count), [1], batch_size=4)


def train(classifier, count):
    recipe = training.Recipe(epochs=1, batch_size=4, learning_rate=0.01 * count)
    training.fit(
        MODEL,
        data(count),
        recipe=recipe,
        key=jax.random.key(count),
        preprocess=classifier.preprocess,
    )


def unlearn(classifier, count):
    images, labels = data(count).images, data(count).labels
    sgd = optax.inject_hyperparams(optax.sgd)(learning_rate=0.01 * count)
    key = jax.random.key(count)
    ju.unlearn(classifier, images, labels, sgd, steps=count, key=key, batch_size=4)


def invert(classifier, count):
    ju.invert(
        classifier, [0, 1, 2, 0], image_shape=SHAPE, key=jax.random.key(count), steps=3
    )


ENTRIES = [moments, moments_of_classes, judge, train, unlearn, invert]


@pytest.mark.long
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_another_number_of_samples_compiles_nothing_of_weight(entry, classifier):
    entry(classifier, 9)
    with compilations() as seen:
        entry(classifier, 9)
    assert not seen
    with compilations() as seen:
        entry(classifier, 14)
    # Gathering rows of another number of samples, at most: no network among it.
    assert len(seen) <= 4


@pytest.mark.long
@pytest.mark.parametrize(
    ("entry", "module", "name", "shapes"),
    [
        (moments, streaming, "layer_sums", 1),
        (moments_of_classes, streaming, "layer_sums", 1),
        # One image by itself, for the number of classes.
        (judge, evaluation, "_logits", 2),
        (unlearn, step, "_logits", 1),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_network_is_traced_once_for_all_batches(
    entry, module, name, shapes, classifier, monkeypatch
):
    function = getattr(module, name)
    counted = chex.assert_max_traces(lambda *given: function(*given), shapes)
    chex.clear_trace_counter()
    jax.clear_caches()
    monkeypatch.setattr(module, name, jax.jit(counted))
    entry(classifier, 11)
    entry(classifier, 14)


@pytest.mark.long
def test_training_traces_its_step_once(classifier, monkeypatch):
    chex.clear_trace_counter()
    jax.clear_caches()
    training = training_step.TrainingStep.__call__
    counted = chex.assert_max_traces(training, 1)
    monkeypatch.setattr(training_step.TrainingStep, "__call__", counted)
    train(classifier, 9)
    train(classifier, 14)
