"""Second moments over simulated devices and real processes are those of one device."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import run_processes

import jaxunlearn as ju
from jaxunlearn.nullspace import streaming

pytestmark = pytest.mark.long

TRANSFORMS = ["shard_map", "pmap"]
CLASSES = 6


class Small(nn.Module):
    """A strided convolution, one whose border counts, and a head."""

    @nn.compact
    def __call__(self, images):
        x = jnp.tanh(nn.Conv(3, (2, 2), strides=2, name="strided")(images))
        x = jnp.tanh(nn.Conv(4, (3, 3), name="plain")(x))
        return nn.Dense(CLASSES, name="head")(x.reshape(images.shape[0], -1))


@functools.cache
def small():
    """A classifier, 23 images, and labels of which nothing is of class 5."""
    images = np.random.default_rng(0).normal(size=(23, 8, 6, 2)).astype(np.float32)
    classifier = ju.freeze(Small(), Small().init(jax.random.key(0), images))
    return classifier, images, np.arange(23) % 5


def flat(moments) -> dict[str, np.ndarray]:
    """Grams and rows by path."""
    found = jax.tree_util.tree_flatten_with_path(moments)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


@functools.cache
def one_device():
    classifier, images, labels = small()
    return (
        flat(ju.second_moments(classifier, images)),
        flat(ju.class_moments(classifier, images, labels, num_classes=CLASSES)),
    )


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert len(found) == 6
    for path, value in expected.items():
        error = np.linalg.norm(found[path] - value) / np.linalg.norm(value)
        assert error <= 1e-6, path


@pytest.mark.core
@pytest.mark.parametrize(
    ("devices", "axis", "batch_size", "transform"),
    [
        (1, "i", 5, "shard_map"),
        (2, "data", 5, "pmap"),
        (4, "x", 5, "shard_map"),
        (8, "d", 5, "shard_map"),
        (8, "all", None, "pmap"),
    ],
)
def test_the_number_of_devices_does_not_matter(devices, axis, batch_size, transform):
    """23 images are divisible by none of them, nor are batches of five."""
    classifier, images, labels = small()
    options = {
        "batch_size": batch_size,
        "mesh": jax.make_mesh((devices,), (axis,)),
        "transform": transform,
    }
    whole, by_class = one_device()
    assert_same(flat(ju.second_moments(classifier, images, **options)), whole)
    if devices == 4 or batch_size is None:
        options["num_classes"] = CLASSES
        moments = ju.class_moments(classifier, images, labels, **options)
        assert_same(flat(moments), by_class)
        leaf = jax.tree.leaves(moments)[0]
        # Fit for what follows on one device.
        assert len(leaf.devices()) == 1


def test_images_that_lie_on_a_device_and_those_of_a_stream_are_cut_too():
    classifier, images, _ = small()
    options = {"mesh": jax.make_mesh((4,), ("data",)), "batch_size": 6}
    whole = one_device()[0]
    stored = jnp.asarray(images)
    assert_same(flat(ju.second_moments(classifier, stored, **options)), whole)
    parts = [images[:1], images[1:18], images[18:]]
    assert_same(flat(ju.second_moments(classifier, parts, **options)), whole)


@pytest.mark.core
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_each_device_holds_its_share_and_one_sum_travels(transform, monkeypatch):
    """Read off what the steps and the end are given, and off their programs."""
    classifier, images, _ = small()
    given = {}

    def watch(name):
        function = getattr(streaming, name)

        def watched(*arguments, **options):
            shapes = jax.tree.map(
                lambda x: (
                    jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                    if isinstance(x, jax.Array)
                    else x
                ),
                arguments,
            )
            lowered = function.lower(*shapes, **options)
            given[name] = (arguments[-2:], lowered.compile().as_text())
            return function(*arguments, **options)

        monkeypatch.setattr(streaming, name, watched)

    watch("_add")
    watch("_reduce")
    ju.second_moments(
        classifier,
        images,
        batch_size=16,
        mesh=jax.make_mesh((8,), ("data",)),
        transform=transform,
    )
    (batch, mask), step = given["_add"]
    for array, size in ((batch, 16 // 8 * 8 * 6 * 2), (mask, 16 // 8)):
        shards = array.addressable_shards
        assert len({shard.device for shard in shards}) == 8
        assert {shard.data.size for shard in shards} == {size}
    travels = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    assert not re.findall(travels, step)
    # The end: sums of one device each, and nothing but all-reduces.
    (values,), end = given["_reduce"]
    for array in jax.tree.leaves(values):
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {1}
    assert set(re.findall(travels, end)) == {"all-reduce"}
    # The step's program is of a device's share of the batch.
    assert "f32[2,8,6,2]" in step
    assert "f32[16,8,6,2]" not in step


# Processes.


def child(index, folder):
    """Moments of this process's share, by several devices of each process."""
    classifier, images, labels = small()
    share = slice(0, 6) if index == 0 else slice(6, None)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    assert mesh.is_multi_process
    options = {"mesh": mesh, "batch_size": 4}
    whole = ju.second_moments(classifier, images[share], **options)
    order = np.argsort(labels, kind="stable")
    images, labels = images[order][share], labels[order][share]
    by_class = ju.class_moments(
        classifier, images, labels, num_classes=CLASSES, **options
    )
    assert all(leaf.is_fully_addressable for leaf in jax.tree.leaves(by_class))
    np.savez(f"{folder}/{index}-whole.npz", **flat(whole))
    np.savez(f"{folder}/{index}-classes.npz", **flat(by_class))


@pytest.mark.core
def test_processes_with_unequal_shares_find_what_one_finds(tmp_path):
    """Six images and seventeen, other classes, and other numbers of batches."""
    run_processes("test_moments_devices:child", 2, str(tmp_path), devices=2)
    for index in range(2):
        for name, expected in zip(("whole", "classes"), one_device(), strict=True):
            with np.load(tmp_path / f"{index}-{name}.npz") as found:
                assert_same(dict(found), expected)
