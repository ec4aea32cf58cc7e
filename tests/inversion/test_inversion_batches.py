"""Inversions that are interrupted after a batch, or end in numbers not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_inversion import ADAM, SHAPE, run, small

from jaxunlearn.inversion import ImagePrior, InversionError
from jaxunlearn.inversion import inversion as inversion_module

# Two batches of three, the second one filled up.
LABELS = np.array([0, 1, 2, 2, 1])
STEPS = 30


class Stop(Exception):
    """Raised by callbacks."""


def inverted(**options):
    return run(small(), **({"labels": LABELS, "steps": STEPS} | options))


@functools.cache
def whole():
    return inverted()


# Progress.


def test_steps_are_counted_over_all_batches():
    reports, steps = [], []
    inverted(
        progress=lambda *report: reports.append(report),
        callback=lambda step, terms: steps.append(step),
    )
    assert reports == [("inversion", done, 60) for done in (25, 30, 55, 60)]
    assert steps == list(range(60))


# Finished batches.


@pytest.mark.core
def test_finished_batches_are_not_made_again():
    finished, steps = [], []

    def stop(step, terms):
        if step == STEPS + 3:
            raise Stop

    with pytest.raises(Stop):
        inverted(finished=finished, callback=stop)
    assert len(finished) == 1
    images = inverted(finished=finished, callback=lambda step, _: steps.append(step))
    assert steps == list(range(STEPS, 2 * STEPS))
    np.testing.assert_array_equal(images, whole())
    assert [batch.shape for batch in finished] == [(3, *SHAPE)] * 2
    np.testing.assert_array_equal(np.concatenate(finished)[:5], whole())


def test_a_finished_inversion_is_returned_at_once(monkeypatch):
    finished = []
    inverted(finished=finished)
    monkeypatch.setattr(
        inversion_module, "run_steps", lambda *_, **__: pytest.fail("a step is run")
    )
    np.testing.assert_array_equal(inverted(finished=finished), whole())


def test_finished_batches_of_another_size_are_refused():
    finished = [np.zeros((5, *SHAPE), np.float32)]
    with pytest.raises(ValueError, match=r"finished must hold batches of .*\(3, 4, 4"):
        inverted(finished=finished)


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
    np.testing.assert_array_equal(error.images, last)
    assert np.abs(last).max() > 1e20


def test_images_that_are_not_finite_name_the_step_behind_which_they_are_not():
    error = broken("images are not finite after step 4", optimizer=GONE)
    assert error.step == 4
    last = run(small(None), optimizer=GONE, steps=4)
    np.testing.assert_array_equal(error.images, last)
    assert np.isfinite(error.images).all()


def test_where_one_weight_is_zero_the_other_term_is_named():
    prior = ImagePrior(0.0, 0.0, 0.1)
    error = broken("because of .*feature", optimizer=FAR, prior=prior)
    assert " l2" not in str(error).partition("because of")[2].partition(".")[0]


def test_images_of_finished_batches_are_not_lost():
    """Those of the second batch are too large from the start, and finite."""
    begin = np.full((5, *SHAPE), 0.5, np.float32)
    begin[3:] = 1e25
    error = broken(
        "not finite at step 11: .*because of .*l2",
        labels=LABELS,
        start=begin,
        optimizer=ADAM,
    )
    assert error.step == 11
    np.testing.assert_array_equal(error.labels, LABELS)
    alone = run(small(None), LABELS[:3], start=begin[:3], steps=11)
    np.testing.assert_array_equal(error.images[:3], alone)
    np.testing.assert_array_equal(error.images[3:], begin[3:])


def test_a_batch_that_was_not_reached_has_no_images():
    error = broken("at step 5", labels=LABELS, optimizer=FAR)
    assert len(error.images) == 3
    np.testing.assert_array_equal(error.labels, LABELS[:3])


@pytest.mark.long
def test_on_several_devices_it_is_the_same_step_and_image():
    options = {"batch_size": 4, "labels": [0, 1, 2, 1], "optimizer": FAR}
    mesh = jax.make_mesh((2,), ("data",))
    error = broken("at step 5", mesh=mesh, transform="pmap", **options)
    alone = broken("at step 5", **options)
    assert error.step == alone.step == 5
    np.testing.assert_allclose(error.images, alone.images, rtol=1e-3)
