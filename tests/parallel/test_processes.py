"""Training, unlearning and judging by several processes that share the work."""

import functools

import jax
import numpy as np
import pytest
from processes import run_processes

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.metrics.evaluation import logits

pytestmark = pytest.mark.long

KEY = jax.random.key(0)


def work(mesh):
    """What a short request comes to, as arrays."""
    data = ju.datasets.load("digits", "validation")
    classifier = ju.training.fit(
        ju.models.create("smallcnn", num_classes=10, width=4),
        data,
        recipe=ju.training.Recipe(epochs=2, batch_size=16, patience=2),
        key=KEY,
        preprocess=ju.datasets.preprocess("digits"),
        validation=data,
        mesh=mesh,
    )
    forget, retain = ju.split_by_class(data, [3])
    task = ju.Task(forget, retain, [3], num_classes=10)
    found = {}
    for method in (
        ju.UNSC(steps=3, batch_size=7, learning_rate=3.0),
        ju.CovarNav(steps=3, images_per_class=4, inversion_steps=4),
    ):
        result = method(classifier, task, key=KEY, mesh=mesh)
        name = type(method).__name__
        found[name] = logits(result.classifier, data.images, mesh=mesh)
        if result.trace.proxies is not None:
            found["proxies"] = result.trace.proxies.images
    judged = ju.evaluate(classifier, data, [3], mesh=mesh)
    found["confusion"] = judged.confusion
    found["original"] = logits(classifier, data.images)
    return found


def work_and_save(index, folder):
    """One process's part."""
    np.savez(f"{folder}/{index}.npz", **work(parallel.global_mesh()))


@functools.cache
def alone():
    return work(None)


@pytest.mark.parametrize(("count", "devices"), [(2, 2)])
def test_processes_come_to_what_one_comes_to(count, devices, tmp_path):
    run_processes("test_processes:work_and_save", count, str(tmp_path), devices=devices)
    for index in range(count):
        found = np.load(tmp_path / f"{index}.npz")
        assert set(found) == set(alone())
        for name, expected in alone().items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-3)
    moved = np.abs(alone()["UNSC"] - alone()["original"]).max()
    assert moved > 0.1
