"""Inversions that are interrupted, resumed, or end in numbers that are not finite."""

import functools
import logging
import os
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from normalised import CLASSES, draw_classifier
from test_checkpoints import Stop, files, flip_a_byte
from test_inversion import ADAM, SHAPE, Small, run, small
from test_inversion_schedule import drawn_images, filtered

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.descent.loop import run_steps
from jaxunlearn.inversion import ImagePrior, InversionError
from jaxunlearn.inversion import loop as inversion_loop
from jaxunlearn.inversion import snapshots as inversion_snapshots
from jaxunlearn.training.checkpoints import Checkpoints

# Two batches of three, the second one filled up; 7 coarse steps and 7 fine ones each.
LABELS = np.array([0, 1, 2, 2, 1])
OPTIONS = {"steps": 14, "coarse": (2,), "keep_best": True}
# Where the host looks: chunks of three steps, cut off where a stage ends.
VISITS = [3, 6, 7, 10, 13, 14, 17, 20, 21, 24, 27, 28]


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Short ones, so that few steps have many visits to the host."""
    short = functools.partial(run_steps, chunk=3)
    monkeypatch.setattr(inversion_loop, "run_steps", short)


class Above(int):
    """Equal to every step that is not below it."""

    def __eq__(self, other):
        return other >= int(self)

    __hash__ = int.__hash__


def inverted(stop_at=None, seen=None, classifier=None, **options):
    def callback(step, loss):
        if seen is not None:
            seen.append(step)
        if step == stop_at:
            raise Stop

    given = {"labels": LABELS} | OPTIONS | options
    classifier = small() if classifier is None else classifier
    return run(classifier, callback=callback, **given)


@functools.cache
def whole(keep_best=True):
    return inverted(keep_best=keep_best)


def assert_same_bits(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


# Resuming.


@pytest.mark.core
@pytest.mark.parametrize(
    ("stop_at", "newest", "keep_best"),
    [
        (7, 6, True),
        (10, 7, True),
        (10, 7, False),
        (13, 10, True),
        (17, 14, False),
        (24, 21, True),
        (28, 27, True),
    ],
)
def test_an_interrupted_inversion_ends_with_the_bits_of_one_that_was_not(
    tmp_path, stop_at, newest, keep_best
):
    """In a stage, between two, between two groups, and in the second of them."""
    options = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    options["keep_best"] = keep_best
    with pytest.raises(Stop):
        inverted(stop_at, **options)
    assert Checkpoints(tmp_path).newest().step == newest
    seen = []
    resumed = inverted(seen=seen, resume=True, **options)
    assert seen[-1] == 28
    assert set(seen) <= {*range(newest + 1, 29)}
    assert_same_bits(resumed, whole(keep_best))


def test_again_and_again_in_a_loop_on_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: False)
    options = {"checkpoint_dir": tmp_path, "checkpoint_every": 2, "resume": True}
    for stop_at in (10, 16, 25):
        # What was done stands: each time it comes to new steps.
        with pytest.raises(Stop):
            inverted(Above(stop_at), **options)
    assert_same_bits(inverted(**options), inverted())


def test_several_devices_resume_to_the_bit(tmp_path):
    options = {"mesh": jax.make_mesh((2,), ("data",)), "batch_size": 4}
    folder = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    with pytest.raises(Stop):
        inverted(24, **options, **folder)
    resumed = inverted(resume=True, **options, **folder)
    assert_same_bits(resumed, inverted(**options))


def test_snapshots_change_nothing_and_the_last_two_stay(tmp_path):
    images = inverted(checkpoint_dir=tmp_path, checkpoint_every=5)
    assert_same_bits(images, whole())
    assert Checkpoints(tmp_path).steps() == [27, 28]


def test_without_a_number_there_is_one_now_and_then_and_at_the_end(
    tmp_path, monkeypatch
):
    written, save = [], Checkpoints.save

    def noted(self, step, tree, facts):
        written.append(step)
        save(self, step, tree, facts)

    monkeypatch.setattr(Checkpoints, "save", noted)
    inverted(checkpoint_dir=tmp_path / "a")
    assert written == [28]
    written.clear()
    monkeypatch.setattr(inversion_snapshots, "_SECONDS", 0.0)
    inverted(checkpoint_dir=tmp_path / "b")
    assert written == VISITS


@pytest.mark.core
def test_a_finished_inversion_is_returned_at_once(tmp_path, monkeypatch):
    first = inverted(checkpoint_dir=tmp_path)

    def never(*_, **__):
        pytest.fail("a step is run")

    monkeypatch.setattr(inversion_loop, "run_steps", never)
    again = inverted(checkpoint_dir=tmp_path, resume=True)
    assert_same_bits(first, again)
    assert Checkpoints(tmp_path).steps() == [28]


def test_with_nothing_to_resume_it_starts_anew(tmp_path):
    seen = []
    anew = inverted(checkpoint_dir=tmp_path / "none", resume=True, seen=seen)
    assert seen == VISITS
    assert_same_bits(anew, whole())


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_it_goes_on_from_the_newest_whole_snapshot(tmp_path, caplog, damage):
    options = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    with pytest.raises(Stop):
        inverted(24, **options)
    assert Checkpoints(tmp_path).steps() == [20, 21]
    data = max(files(tmp_path / "21" / "arrays"), key=lambda p: p.stat().st_size)
    if damage == "flip":
        flip_a_byte(data)
    else:
        os.truncate(data, data.stat().st_size // 2)
    seen = []
    resumed = inverted(resume=True, seen=seen, **options)
    assert seen[0] == 21
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "21 is broken" in warning
    assert warning.endswith(f"going on from {tmp_path / '20'}.")
    assert_same_bits(resumed, whole())


# What is refused.


def start():
    return np.full((5, *SHAPE), 0.5, np.float32)


def moments():
    return ju.second_moments(small(), start() + np.arange(5)[:, None, None, None])


def student(preprocess=None, build=Small):
    return draw_classifier(build, SHAPE, np.float32, 4).replace(preprocess=preprocess)


class Bent(nn.Module):
    """Another network of the same parameters."""

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(True, name="norm")
        x = jnp.tanh(norm(x)).reshape(x.shape[0], -1)
        return nn.Dense(CLASSES, name="head")(x)


def scaled():
    return jax.tree.map(lambda leaf: 0.9 * leaf, small())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an inversion that ran to its end."""
    folder = tmp_path_factory.mktemp("finished")
    inverted(checkpoint_dir=folder)
    return folder


@pytest.mark.core
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"labels": LABELS[::-1]}, "in labels: give"),
        ({"labels": LABELS[:4]}, r"labels; batches \(\[2, 1, 3\] there, \[2, 1, 2\]"),
        ({"key": jax.random.key(6)}, r"in key \(\[0, 5\] there, \[0, 6\] here\): give"),
        ({"steps": 15}, r"steps \(14 there, 15 here\); learning rates: give"),
        ({"optimizer": None}, "in optimizer; learning rates: give"),
        ({"optimizer": optax.adam(0.1)}, "in optimizer: give"),
        ({"classifier": lambda: small(build=Bent)}, "in network: give"),
        ({"coarse": (3,)}, r"in coarse \(\[2\] there, \[3\] here\): give"),
        ({"flip": True}, r"in flip \(False there, True here\): give"),
        ({"bounds": (0.0, 2.0)}, r"in bounds \(0.0 to 1.0 there, 0.0 to 2.0 here\)"),
        ({"keep_best": False}, r"in keep_best \(True there, False here\): give"),
        ({"batch_size": 5}, r"in batches \(\[2, 1, 3\] there, \[1, 1, 5\] here\)"),
        ({"batches_at_once": 2}, r"batches \(\[2, 1, 3\] there, \[1, 2, 3\] here\)"),
        ({"prior": ImagePrior(l2=0.2)}, r"in prior.l2 \(0.1 there, 0.2 here\): give"),
        ({"classifier": scaled}, "in classifier: give"),
        ({"start": start}, "in start: give"),
        ({"moments": moments}, r"in moments; prior.moment \(0.0 there, 0.1 here\)"),
        ({"student": student}, r"student; prior.competition \(0.0 there, 1.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_snapshot_of_another_inversion_is_refused(finished, changed, named):
    changed = {n: v() if callable(v) else v for n, v in changed.items()}
    words = f"28 is a checkpoint of another inversion, which differs .*{named}"
    with pytest.raises(ValueError, match=words):
        inverted(checkpoint_dir=finished, resume=True, **changed)


def test_another_preprocess_or_student_is_another_inversion(tmp_path):
    """A preprocess of the classifier, or of the student."""
    half = ju.Preprocess(0.5, 0.5)
    options = {"checkpoint_dir": tmp_path, "resume": True, "student": student(half)}
    inverted(**options)
    with pytest.raises(ValueError, match="differs in student's network: give"):
        inverted(**(options | {"student": student(half, Bent)}))
    with pytest.raises(ValueError, match="differs in preprocess"):
        inverted(classifier=small(half), **options)
    with pytest.raises(ValueError, match="differs in student's preprocess"):
        inverted(**(options | {"student": student(ju.Preprocess(0.5, 1.0))}))


def test_shares_with_statistics_of_their_own_belong_to_their_devices(tmp_path):
    """More devices would find other images, and not just other last bits."""
    options = {"labels": np.resize(LABELS, 8), "batch_size": 8, "steps": 2}
    options |= {"sync_statistics": False, "checkpoint_dir": tmp_path, "resume": True}
    one, other = (jax.make_mesh((n,), ("data",)) for n in (2, 4))
    inverted(mesh=one, **options)
    words = r"shares with statistics of their own \(2 there, 4 here\)"
    with pytest.raises(ValueError, match=words):
        inverted(mesh=other, **options)


def test_other_devices_are_warned_of(tmp_path, caplog):
    options = {"batch_size": 8, "checkpoint_dir": tmp_path, "checkpoint_every": 1}
    options["labels"] = np.resize(LABELS, 8)
    with pytest.raises(Stop):
        inverted(10, **options)
    images = inverted(resume=True, mesh=jax.make_mesh((2,), ("data",)), **options)
    assert any(
        "number of devices (1 there, 2 here)" in m and "last bit" in m
        for m in caplog.messages
    )
    alone = inverted(labels=options["labels"], batch_size=8)
    np.testing.assert_allclose(images, alone, atol=1e-4)


def test_another_version_of_jax_may_write_the_same_program_in_other_words(
    tmp_path, caplog, monkeypatch
):
    options = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    machine, digest = parallel.machine, inversion_loop._program_digest
    with monkeypatch.context() as patch:
        old = {"version of jax": "0.0.1"}
        patch.setattr(parallel, "machine", lambda mesh: machine(mesh) | old)
        patch.setattr(inversion_loop, "_program_digest", lambda *a: digest(*a)[::-1])
        with pytest.raises(Stop):
            inverted(10, **options)
        # The same version has the same words.
        patch.setattr(inversion_loop, "_program_digest", digest)
        with pytest.raises(ValueError, match="differs in network; optimizer: give"):
            inverted(resume=True, **options)
    resumed = inverted(resume=True, **options)
    words = rf"differ in version of jax \(0\.0\.1 there, {jax.__version__} here\)"
    assert any(re.search(words, message) for message in caplog.messages)
    assert_same_bits(resumed, whole())


def test_a_checkpoint_of_a_training_is_refused(tmp_path):
    Checkpoints(tmp_path).save(3, {"w": jnp.ones(2)}, {"training": {"rate": 1}})
    with pytest.raises(ValueError, match="3 is a checkpoint of another inversion"):
        inverted(checkpoint_dir=tmp_path, resume=True)


def test_an_inversion_does_not_begin_where_another_left_snapshots(finished):
    words = r"holds checkpoints \(the newest is 28\): .*resume=True"
    with pytest.raises(ValueError, match=words):
        inverted(checkpoint_dir=finished)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resume": True}, "resume has no effect without checkpoint_dir"),
        ({"checkpoint_every": 5}, "checkpoint_every has no effect without"),
        (
            {"checkpoint_dir": "never", "checkpoint_every": 0},
            "checkpoint_every must be at least 1; it is 0",
        ),
    ],
)
def test_settings_without_effect_are_refused(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        inverted(**options)
    assert not list(tmp_path.iterdir())


def test_what_is_logged_goes_on_where_it_was(tmp_path, caplog):
    """Each step once, counted over all groups, but for those that are repeated."""
    options = {"checkpoint_dir": tmp_path, "checkpoint_every": 6}
    records = []
    with pytest.raises(Stop):
        inverted(24, log=records.append, **options)
    assert [r["step"] for r in records] == list(range(24))
    assert {r["steps"] for r in records} == {28}
    again = []
    with caplog.at_level(logging.INFO, logger="jaxunlearn.inversion"):
        inverted(log=again.append, resume=True, **options)
    assert "resuming after 20 steps" in caplog.messages
    assert [r["step"] for r in again] == list(range(20, 28))
    assert again[:4] == records[20:]


# Numbers that are not finite.

# Objects of the module, as programs are shared by optimizers that are the same object.
FAR = optax.sgd(lambda count: jnp.where(count < 4, 0.5, 1e25))
GONE = optax.sgd(lambda count: jnp.where(count < 4, 0.5, jnp.inf))


def broken(words, **options):
    given = {"labels": [0, 1, 2], "steps": 11} | options
    with pytest.raises(InversionError, match=words) as caught:
        run(small(None), **given)
    return caught.value


@pytest.mark.core
def test_an_objective_that_is_not_finite_names_its_step_and_term():
    """Step 4 leaps, so that the norm of the pixels is infinite at step 5."""
    error = broken("not finite at step 5: .*'l2': inf.*because of l2", optimizer=FAR)
    assert isinstance(error, FloatingPointError)
    assert error.step == 5
    np.testing.assert_array_equal(error.labels, [0, 1, 2])
    last = run(small(None), optimizer=FAR, steps=5)
    assert np.isfinite(error.images).all()
    assert_same_bits(error.images, last)
    assert np.abs(last).max() > 1e20


def test_images_that_are_not_finite_name_the_step_behind_which_they_are_not():
    error = broken("images are not finite after step 4", optimizer=GONE)
    assert error.step == 4
    assert_same_bits(error.images, run(small(None), optimizer=GONE, steps=4))
    assert np.isfinite(error.images).all()


def test_where_one_weight_is_zero_the_other_term_is_named():
    prior = ImagePrior(0.0, 0.0, 0.1)
    error = broken("because of .*feature", optimizer=FAR, prior=prior)
    assert " l2" not in str(error).partition("because of")[2].partition(".")[0]


def test_images_of_finished_groups_are_not_lost():
    """Those of the second group are too large from the start, and finite."""
    labels = LABELS
    begin = np.full((5, *SHAPE), 0.5, np.float32)
    begin[3:] = 1e25
    error = broken(
        "not finite at step 11: .*because of .*l2",
        labels=labels,
        start=begin,
        optimizer=ADAM,
    )
    assert error.step == 11
    np.testing.assert_array_equal(error.labels, labels)
    alone = run(small(None), labels[:3], start=begin[:3], steps=11)
    np.testing.assert_array_equal(error.images[:3], alone)
    np.testing.assert_array_equal(error.images[3:], begin[3:])


def test_images_of_a_coarse_stage_are_those_that_it_shows():
    begin = 1e25 * drawn_images()
    error = broken("at step 0: .*because of .*l2", start=begin, coarse=(2,))
    expected = filtered(begin, 2)
    np.testing.assert_allclose(error.images, expected, rtol=1e-5)
    assert np.abs(expected / begin - 1).max() > 0.1


def test_a_group_that_was_not_reached_has_no_images():
    error = broken("at step 5", labels=LABELS, optimizer=FAR)
    assert len(error.images) == 3
    np.testing.assert_array_equal(error.labels, LABELS[:3])


def test_on_several_devices_it_is_the_same_step_and_image():
    options = {"batch_size": 4, "labels": [0, 1, 2, 1], "optimizer": FAR}
    mesh = jax.make_mesh((2,), ("data",))
    error = broken("at step 5", mesh=mesh, transform="pmap", **options)
    alone = broken("at step 5", **options)
    assert error.step == alone.step == 5
    np.testing.assert_allclose(error.images, alone.images, rtol=1e-3)


def test_snapshots_end_before_the_numbers_that_are_not_finite(tmp_path):
    """Resuming comes to the same end."""
    options = {"checkpoint_dir": tmp_path, "checkpoint_every": 1, "optimizer": FAR}
    first = broken("at step 5", **options)
    assert Checkpoints(tmp_path).newest().step == 3
    again = broken("at step 5", resume=True, **options)
    assert_same_bits(first.images, again.images)
