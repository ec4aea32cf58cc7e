"""What people ask to be forgotten: by number, by name, or badly."""

import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.methods import stacked
from jaxunlearn.methods.requests import class_sets

pytestmark = pytest.mark.long

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).random((12, 4, 4, 1), np.float32)
LABELS = np.arange(12) % 4
NAMES = ("ant", "bee", "cat", "wasp")
NAMED = ju.Data(IMAGES, LABELS, NAMES)
PLAIN = ju.Data(IMAGES, LABELS)
TENS = ju.Data(IMAGES, LABELS, ("10", "20", "30", "1"))


def logits(params, state, images):
    return images.reshape(len(images), -1) @ params["kernel"]


KERNEL = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)
CLASSIFIER = ju.freeze(ju.Function(logits, {"kernel": jnp.asarray(KERNEL)}))
# Without the checks of types that only tests have: users get the sentences.
FORGET = inspect.unwrap(ju.forget)
UNSC = ju.UNSC(steps=2, batch_size=3)


@pytest.mark.core
@pytest.mark.parametrize(
    ("requests", "data", "sets"),
    [
        ("each", NAMED, ((0,), (1,), (2,), (3,))),
        (["bee"], NAMED, ((1,),)),
        ([2], PLAIN, ((2,),)),
        ([["bee", "wasp"], ["ant"]], NAMED, ((1, 3), (0,))),
        ([["bee", 0], (np.int64(2),)], NAMED, ((1, 0), (2,))),
        ([{"bee"}, [jnp.int32(0)]], NAMED, ((1,), (0,))),
        ([["1", "number:2"], ["name:ant"]], NAMED, ((1, 2), (0,))),
        # In Python a number is that of a class, whatever classes are called.
        ([[1], [2]], TENS, ((1,), (2,))),
        ([["30"]], NAMED, None),
        ([["name:30"], ["number:1"]], TENS, ((2,), (1,))),
        (iter([[0], [1]]), PLAIN, ((0,), (1,))),
        (np.array([[0], [3]]), PLAIN, ((0,), (3,))),
    ],
)
def test_classes_are_asked_for_by_number_and_by_name(requests, data, sets):
    if sets is None:
        with pytest.raises(ValueError, match="names class 30, which does not exist"):
            class_sets(requests, data, 4)
    else:
        assert class_sets(requests, data, 4) == sets


@pytest.mark.core
@pytest.mark.parametrize(
    ("requests", "data", "error", "sentence"),
    [
        ("37", PLAIN, ValueError, "must be \"each\" or sets .* they are '37'"),
        ("bee", NAMED, ValueError, 'must be "each" or sets'),
        ([0, 1], PLAIN, ValueError, r"two readings: write \[\[0, 1\]\] .* \[\[0\], \["),
        (["bee", "ant"], NAMED, ValueError, r"two readings.*\[\['bee'\], \['ant'\]\]"),
        ([[True]], PLAIN, TypeError, "must hold integers; True is a bool"),
        ([True], PLAIN, TypeError, r"requests\[0\] must be a sequence"),
        ([[1.7]], PLAIN, TypeError, "1.7 is a float"),
        ([["bee", 1.7]], NAMED, TypeError, "1.7 is a float"),
        ([[0, 0]], PLAIN, ValueError, "must name each class once"),
        ([["bee", 1]], NAMED, ValueError, "'bee'.* twice"),
        ([["hornet"]], NAMED, ValueError, r"requests\[0\] asks for 'hornet'.*ant, bee"),
        ([["bees"]], NAMED, ValueError, "Is 'bee' meant"),
        ([["bee"]], PLAIN, ValueError, "they have numbers alone"),
        ([["1"]], TENS, ValueError, "two readings.*number:1.*name:1"),
        ([[2**70]], PLAIN, ValueError, "names class 118.*does not exist"),
        ([["bee", "ant", "cat", "wasp"]], NAMED, ValueError, "all 4 classes"),
        (None, PLAIN, TypeError, "requests must be a sequence of sets"),
        (range(10**9), PLAIN, ValueError, "at most 1048576 entries"),
        ([range(10**9)], PLAIN, ValueError, "at most 1048576 entries"),
        ([b"bee"], NAMED, TypeError, r"requests\[0\] must be a sequence"),
    ],
)
def test_other_requests_are_refused(requests, data, error, sentence):
    with pytest.raises(error, match=sentence) as info:
        inspect.unwrap(class_sets)(requests, data, 4)
    assert len(str(info.value)) < 1000


@pytest.mark.core
def test_forgetting_by_name_is_forgetting_by_number():
    one, other = (
        ju.forget(UNSC, CLASSIFIER, NAMED, requests, key=KEY)[0].classifier
        for requests in (["bee"], [[1]])
    )
    assert (one.params["kernel"] == other.params["kernel"]).all()
    assert (one.params["kernel"] != KERNEL).any()


# Validation


def test_a_method_finds_the_validation_data_in_its_task():
    seen = []

    def method(classifier, task, *, key):
        seen.append(task.validation)
        return UNSC(classifier, task, key=key)

    validation = ju.Data(IMAGES[:8], LABELS[:8])
    ju.forget(*(method, CLASSIFIER, PLAIN, [[0], [1]]), key=KEY, validation=validation)
    assert len(seen) == 2
    assert all(found is validation for found in seen)


@pytest.mark.parametrize(
    ("validation", "error", "sentence"),
    [
        ((IMAGES, LABELS), TypeError, "validation must be a Data"),
        (ju.Data(IMAGES[:, 1:], LABELS), ValueError, r"validation set \(3, 4, 1\)"),
        (ju.Data(IMAGES, LABELS + 1), ValueError, "labels of the validation set .* 4"),
        (ju.Data(IMAGES, LABELS, NAMES[::-1]), ValueError, "of the validation set"),
    ],
)
def test_other_validation_data_are_refused(validation, error, sentence):
    with pytest.raises(error, match=sentence):
        FORGET(UNSC, CLASSIFIER, NAMED, [[0]], key=KEY, validation=validation)
    forget, retain = ju.split_by_class(NAMED, [0])
    with pytest.raises(error, match=sentence):
        ju.Task(forget, retain, [0], num_classes=4, validation=validation)


def test_what_is_no_task_is_refused():
    for kind in (ju.UNSC, ju.Retrain):
        with pytest.raises(TypeError, match="task must be a Task; it is a tuple"):
            inspect.unwrap(kind.__call__)(kind(), CLASSIFIER, (1, 2), key=KEY)


def test_a_training_that_returns_no_classifier_is_refused():
    forget, retain = ju.split_by_class(PLAIN, [0])
    given = {"num_classes": 4, "train": lambda data, key: data}
    task = ju.Task(forget, retain, [0], **given)
    with pytest.raises(TypeError, match="what task.train returns must be a Classifier"):
        ju.Retrain()(CLASSIFIER, task, key=KEY)


# Memory, interruption, no compilation


@pytest.mark.core
def test_bases_that_the_host_cannot_hold_are_refused_in_bytes(monkeypatch):
    monkeypatch.setattr(parallel, "free_host_memory", lambda: 2500)
    with pytest.raises(ValueError, match=r"bases and parameters of 4 requests take"):
        ju.sweep(CLASSIFIER, PLAIN, "each", UNSC, key=KEY)


def test_a_step_that_no_device_can_hold_is_refused_in_bytes(monkeypatch):
    monkeypatch.setattr(stacked, "free_memory", lambda devices: 100)
    with pytest.raises(ValueError, match=r"one request takes [\d,]+ bytes .* 100 free"):
        ju.sweep(CLASSIFIER, PLAIN, "each", UNSC, key=KEY, how="vmap")


@pytest.mark.core
@pytest.mark.parametrize("requests", [[[0]], [[0], [1]]])
def test_an_interruption_leaves_nothing_behind(requests):
    threads, given = threading.active_count(), (UNSC, CLASSIFIER, PLAIN, requests)

    def interrupt(stage, done, total):
        if stage == "steps":
            raise KeyboardInterrupt

    whole = ju.forget(*given, key=KEY)
    listeners = len(jax._src.monitoring.get_event_duration_listeners())
    with pytest.raises(KeyboardInterrupt):
        ju.forget(*given, key=KEY, progress=interrupt)
    assert threading.active_count() == threads
    assert len(jax._src.monitoring.get_event_duration_listeners()) == listeners
    again = ju.forget(*given, key=KEY)
    for one, other in zip(whole, again, strict=True):
        assert (
            one.classifier.params["kernel"] == other.classifier.params["kernel"]
        ).all()


def test_methods_run_without_compilation():
    """As people debug; in a process without the checks that only tests have."""
    script = """
import numpy as np, jax, jaxunlearn as ju
key = jax.random.key(0)
apply = lambda params, state, images: images.reshape(len(images), -1) @ params
classifier = ju.freeze(ju.Function(apply, jax.numpy.eye(16, 4)))
images = np.random.default_rng(0).random((12, 4, 4, 1), np.float32)
train = ju.Data(images, np.arange(12) % 4)
for method in (
    ju.UNSC(steps=2),
    ju.CovarNav(steps=2, inversion_steps=2, images_per_class=2),
    ju.Unprojected(steps=2),
):
    for requests in ([[0]], [[0], [1]]):
        for result in ju.forget(method, classifier, train, requests, key=key):
            assert (result.classifier.params != classifier.params).any()
ju.sweep(classifier, train, "each", ju.UNSC(steps=2), key=key, how="vmap")
"""
    environment = {**os.environ, "JAX_DISABLE_JIT": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_malformed_calls_are_refused_in_sentences():
    """In a process without the checks of types that only tests have."""
    script = Path(__file__).parents[1] / "malformed_requests.py"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, script, "0", "150"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "raw" not in done.stdout, done.stdout
    assert "sentence" in done.stdout
