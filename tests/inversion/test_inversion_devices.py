"""A batch of images shared by eight devices, by either of JAX's two transforms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import compilations
from normalised import draw_classifier
from test_inversion import ADAM, KEY, SHAPE, TERMS, Small, run, small

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.descent import loop
from jaxunlearn.descent.loop import run_steps
from jaxunlearn.inversion import ImagePrior, inversion_terms
from jaxunlearn.inversion.objective import References
from jaxunlearn.inversion.step import Carry, Constants, Step

pytestmark = pytest.mark.long

TRANSFORMS = ["shard_map", "pmap"]
# Rolled at random, which must be the same on all devices.
WIDE = (16, 16, 2)
OPTIONS = {"batch_size": 8, "steps": 10, "jitter": 1, "image_shape": WIDE}
# Thirteen labels fill two batches of eight: the first three are there twice.
LABELS = np.array([0, 1, 2, 1, 0, 2, 2, 1, 0, 1, 2, 1, 0])
FILLED = np.concatenate([LABELS, LABELS[:3]])


@functools.cache
def mesh():
    return jax.make_mesh((8,), ("shard",))


def automatic():
    return parallel.automatic(mesh())


@functools.cache
def on_one_device():
    return run(small(shape=WIDE), FILLED, **OPTIONS)[:13]


def test_a_mesh_of_two_axes_is_refused():
    square = jax.make_mesh((4, 2), ("a", "b"))
    with pytest.raises(ValueError, match="mesh must be .* with one axis"):
        run(small(), mesh=square)


# The same images.


@pytest.mark.core
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_devices_find_the_images_of_one_device(transform):
    """Of a number of labels that they cannot share evenly, by one program."""
    options = OPTIONS | {"mesh": mesh(), "transform": transform}
    options["optimizer"] = optax.adam(0.05)  # known to no program
    before = loop._advance._cache_size()
    images = run(small(shape=WIDE), LABELS, **options)
    assert loop._advance._cache_size() == before + 1
    np.testing.assert_allclose(images, on_one_device(), atol=1e-4)
    with compilations() as compiled:
        run(small(shape=WIDE), LABELS[::-1], **options)
    assert not compiled


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_loop_on_the_devices_gives_the_same_images(transform, monkeypatch):
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: False)
    classifier = small(shape=WIDE)
    images = run(classifier, LABELS, mesh=mesh(), transform=transform, **OPTIONS)
    np.testing.assert_allclose(images, on_one_device(), atol=1e-4)


# Statistics of the whole batch.

# A step along the gradient, and nothing else.
DOWN = optax.sgd(1.0)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_statistics_are_those_of_the_whole_batch(transform):
    """The terms of the first step, and the step itself, of two images a device."""
    given, records = everything(), []
    images = run(
        **given,
        steps=1,
        batch_size=16,
        mesh=mesh(),
        transform=transform,
        optimizer=DOWN,
        callback=lambda _, terms: records.append(terms),
    )
    terms, gradient = by_hand()
    assert set(records[0]) == set(terms)
    for name, value in terms.items():
        np.testing.assert_allclose(records[0][name], value, rtol=1e-4)
    np.testing.assert_allclose(images, given["start"] - gradient, atol=1e-5)


@functools.cache
def everything():
    """What all terms are of."""
    start, others = np.random.default_rng(0).normal(size=(2, 16, *SHAPE))
    classifier = small(None)
    return {
        "classifier": classifier,
        "labels": np.resize([0, 1, 2], 16),
        "start": start.astype(np.float32),
        "prior": ImagePrior(0.1, 0.1, 0.7, 0.8, 0.9),
        "moments": ju.second_moments(classifier, others.astype(np.float32)),
        "student": draw_classifier(Small, SHAPE, np.float32, 4),
    }


@functools.cache
def by_hand():
    """The terms of the whole batch on one device, and their gradient."""
    given = dict(everything())
    start, labels = given.pop("start"), jnp.asarray(given.pop("labels"))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope(images):
        terms = inversion_terms(images=images, labels=labels, **given)
        return terms["total"], terms

    gradient, terms = slope(start)
    return terms, gradient


def test_shares_and_the_whole_batch_differ():
    """So that the test above can tell them apart."""
    images = np.random.default_rng(0).normal(size=(16, *SHAPE)).astype(np.float32)
    labels = np.resize([0, 1, 2], 16)
    whole = TERMS(small(None), jnp.asarray(images), jnp.asarray(labels))["feature"]
    parts = [
        TERMS(small(None), jnp.asarray(images[i : i + 2]), jnp.asarray(labels[:2]))
        for i in range(0, 16, 2)
    ]
    assert np.mean([part["feature"] for part in parts]) > 1.05 * whole


# Where things lie.


@pytest.mark.core
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_each_device_holds_its_share_and_only_sums_travel(transform):
    where = automatic()
    prior = ImagePrior().resolved({"total_variation", "l2", "feature"})
    step = Step(ADAM, prior, (0, 0), where, transform)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(16, *SHAPE)))

    def cut(leaf):
        return leaf.shape[:1] == (16,)

    def put(leaf):
        place = parallel.place_cut if cut(leaf) else parallel.place_whole
        return place(leaf, where)

    carry = jax.tree.map(put, Carry(images, ADAM.init(images), jnp.array(True)))
    labels = np.resize(np.array([0, 1, 2], np.int32), 16)
    numbers = (KEY, np.float32(0), np.float32(1))
    constants = Constants(
        *parallel.place_whole((small(), References()), where),
        parallel.place_cut(labels, where),
        *parallel.place_whole(numbers, where),
    )
    visits = []

    def on_chunk(stop, carry, outputs):
        visits.append(stop)
        for leaf in jax.tree.leaves(carry):
            expected = leaf.shape
            if cut(leaf):
                expected = (2, *leaf.shape[1:])
            shards = leaf.addressable_shards
            assert {shard.device for shard in shards} == set(where.devices.flat)
            assert all(shard.data.shape == expected for shard in shards)

    def rates(first, stop):
        return np.ones(stop - first, np.float32)

    run_steps(step, carry, constants, steps=3, chunk=2, feed=rates, on_chunk=on_chunk)
    assert visits == [2, 3]
    arguments = (carry, constants, np.int32(0), np.float32(1))
    text = jax.jit(step).lower(*arguments).compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    # What is as large as a batch stays where it is.
    assert set(re.findall(kinds, text)) == {"all-reduce"}
    sizes = [
        np.prod([int(n) for n in shape.split(",") if n], initial=1)
        for shape in re.findall(r"f32\[([\d,]*)\][^=]* all-reduce\(", text)
    ]
    assert sizes
    assert max(sizes) < images.size / 8
