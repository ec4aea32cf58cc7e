"""Evaluation, unlearning and whole methods on several devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import augmentation, parallel
from jaxunlearn.descent import loop, unlearning
from jaxunlearn.metrics.evaluation import logits

pytestmark = pytest.mark.long

KEY = jax.random.key(0)
DEVICES = [(1, "shard_map"), (2, "shard_map"), (4, "shard_map")]
DEVICES += [(8, "shard_map"), (8, "pmap")]


def mesh(count):
    return jax.make_mesh((count,), ("shard",))


@functools.cache
def digits():
    return ju.datasets.load("digits", "validation")


@functools.cache
def classifier():
    model = ju.models.create("smallcnn", num_classes=10, width=4)
    variables = model.init(KEY, jnp.zeros((1, 8, 8, 1)))
    return ju.freeze(model, variables, preprocess=ju.datasets.preprocess("digits"))


def largest_difference(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


@pytest.mark.core
@pytest.mark.parametrize(("count", "transform"), DEVICES)
def test_logits_are_those_of_one_device(count, transform):
    """Of a number of images that neither batches nor devices divide."""
    images = digits().images[:21]
    options = {"batch_size": 13, "mesh": mesh(count), "transform": transform}
    found = logits(classifier(), images, **options)
    np.testing.assert_allclose(found, logits(classifier(), images), atol=1e-6)


def test_accuracies_are_those_of_one_device():
    one = ju.evaluate(classifier(), digits(), [3])
    eight = ju.evaluate(classifier(), digits(), [3], mesh=mesh(8), transform="pmap")
    np.testing.assert_array_equal(one.confusion, eight.confusion)


@functools.cache
def subspaces():
    return ju.subspaces(
        ju.second_moments(classifier(), digits().images), protected_fraction=0.5
    )


def unlearn(batch_size, **options):
    images, labels = digits().images[:37], digits().labels[:37]
    tx = optax.chain(optax.adam(0.01), ju.project_to_null_space(subspaces()))
    return ju.unlearn(
        classifier(),
        images,
        labels,
        tx,
        steps=6,
        key=KEY,
        batch_size=batch_size,
        augment=augmentation.by_name["crop-flip"],
        **options,
    )


@functools.cache
def unlearned(batch_size):
    return unlearn(batch_size)


@pytest.mark.core
@pytest.mark.parametrize(
    ("batch_size", "count", "transform"),
    [
        (13, 2, "shard_map"),
        (13, 4, "shard_map"),
        (13, 8, "pmap"),
        (16, 8, "shard_map"),
    ],
)
def test_unlearning_is_that_of_one_device(batch_size, count, transform):
    """Minibatches that devices share evenly, and such that they cannot."""
    one = unlearned(batch_size)
    many = unlearn(batch_size, mesh=mesh(count), transform=transform)
    np.testing.assert_allclose(many.trace.losses, one.trace.losses, atol=1e-5)
    assert largest_difference(many.classifier.params, one.classifier.params) < 1e-5
    assert largest_difference(one.classifier.params, classifier().params) > 1e-2
    # The result lies on one device and mixes with anything.
    elsewhere = jax.device_put(digits().images[:2], jax.devices()[3])
    assert many.classifier(elsewhere).shape == (2, 10)


def test_devices_hold_their_share_and_add_up_gradients(monkeypatch):
    given = {}

    def note(step, carry, constants, *, steps, feed, chunk, on_chunk, **_):
        given.update(step=step, carry=carry, constants=constants, row=feed(0, 1))
        return carry, np.zeros(steps, np.float32)

    monkeypatch.setattr(unlearning, "run_steps", note)
    unlearn(16, mesh=mesh(8))
    images, labels = given["row"]
    assert {shard.data.shape for shard in images.addressable_shards} == {
        (1, 2, 8, 8, 1)
    }
    assert {shard.data.shape for shard in labels.addressable_shards} == {(1, 2)}
    here = np.int32(0), np.int32(1)
    arguments = (given["carry"], given["constants"], *here, (given["row"],))
    compiled = loop._advance.lower(given["step"], None, *arguments).compile()
    kinds = "all-reduce|all-to-all|reduce-scatter"
    assert set(re.findall(kinds, compiled.as_text())) == {"all-reduce"}
    # Nothing as large as the images travels: logits and losses at most.
    for shape in re.findall(r"\w+\[([\d,]*)\][^=]* all-gather\(", compiled.as_text()):
        assert np.prod([int(n) for n in shape.split(",") if n]) <= 16 * 10
    (params, _), _ = compiled.output_shardings
    assert all(s.is_fully_replicated for s in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "method",
    [
        ju.UNSC(learning_rate=0.1, steps=4, batch_size=8),
        ju.CovarNav(steps=4, images_per_class=8, inversion_steps=5),
        ju.Unprojected(steps=4),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_come_to_what_they_come_to_on_one_device(method):
    forget, retain = ju.split_by_class(digits(), [3])
    task = ju.Task(forget, retain, [3], num_classes=10)
    one, eight = (method(classifier(), task, key=KEY, mesh=m) for m in (None, mesh(8)))
    assert one.trace.ranks == eight.trace.ranks
    assert one.trace.samples_read == eight.trace.samples_read
    change = largest_difference(one.classifier.params, eight.classifier.params)
    moved = largest_difference(one.classifier.params, classifier().params)
    assert change < 1e-3 * moved


def test_a_mesh_of_two_axes_is_refused():
    square = jax.make_mesh((4, 2), ("a", "b"))
    with pytest.raises(ValueError, match="mesh must be .* with one axis"):
        unlearn(16, mesh=square)
    with pytest.raises(ValueError, match="mesh must be .* with one axis"):
        logits(classifier(), digits().images, mesh=square)


def test_accelerators_use_all_their_devices(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert parallel.mesh_for_rows(None).size == 8
