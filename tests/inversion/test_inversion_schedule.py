"""Learning rates, and where an inversion begins."""

import jax
import numpy as np
import optax
import pytest
from counting import compilations
from test_inversion import KEY, SHAPE, run, small
from typecheck import unchecked

import jaxunlearn as ju
from jaxunlearn.inversion import ImageAdam


def drawn_images(shape=SHAPE, n=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.2, 0.8, size=(n, *shape)).astype(np.float32)


# One object, as programs are shared by optimizers that are the same object.
STILL = optax.sgd(0.0)


# Learning rates.


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("multi-step", [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("cosine", (1 + np.cos(np.pi * np.arange(8) / 8)) / 2),
        (lambda step: 1 / (1 + step), 1 / np.arange(1, 9)),
    ],
)
def test_each_schedule_has_its_rates(schedule, expected):
    rates = ImageAdam(0.3, schedule).rates(8)
    np.testing.assert_allclose(rates, 0.3 * np.asarray(expected), rtol=1e-12)


def test_multi_step_falls_in_the_middle_of_an_odd_number_of_steps():
    rates = ImageAdam(1.0, "multi-step").rates(5)
    np.testing.assert_allclose(rates, [1, 1, 1, 0.1, 0.01])


@pytest.mark.parametrize("rate", [0.0, -0.25, float("nan"), float("inf")])
def test_rates_are_positive(rate):
    """And named as they were given, not in pixels."""
    words = f"learning_rate must be positive and finite; it is {rate}"
    with pytest.raises(ValueError, match=words):
        ImageAdam(rate)


def test_covarnav_inverts_at_the_default_rate():
    assert ju.CovarNav().image_adam("noise") == ImageAdam()


def test_an_unknown_schedule_is_refused():
    words = "schedule must be one of cosine, multi-step, constant.* 'linear'"
    with pytest.raises(ValueError, match=words):
        unchecked(ImageAdam)(1.0, "linear")


def test_a_schedule_that_is_not_finite_names_its_step():
    words = "schedule must return finite factors; at step 2 it returns nan"
    with pytest.raises(ValueError, match=words):
        ImageAdam(schedule=lambda step: np.nan if step == 2 else 1.0).rates(3)


def test_a_rate_is_no_optimizer():
    with pytest.raises(TypeError, match="optimizer must be .* it is a float"):
        unchecked(run)(small(), optimizer=0.1)


@pytest.mark.parametrize(("bounds", "width"), [((-4.0, 6.0), 10), (None, 2)])
def test_the_first_step_of_adam_is_the_rate_in_units_of_the_box(bounds, width):
    """Every pixel that has a gradient moves by it."""
    start = drawn_images()
    options = {"start": start, "steps": 1, "bounds": bounds}
    images = run(small(None), optimizer=ImageAdam(0.01), **options)
    moved = np.abs(images - start)
    np.testing.assert_allclose(moved, 0.01 * width, rtol=1e-2)


def test_a_rate_of_zero_ends_an_inversion_early():
    def until_five(step):
        return 1.0 if step < 5 else 0.0

    classifier = small()
    one = run(classifier, steps=12, optimizer=ImageAdam(schedule=until_five))
    other = run(classifier, steps=5, optimizer=ImageAdam(schedule="constant"))
    np.testing.assert_array_equal(one, other)


def test_what_only_changes_numbers_compiles_nothing():
    classifier = small()
    run(classifier, optimizer=None, start=drawn_images())
    run(classifier, optimizer=None)
    with compilations() as compiled:
        run(
            classifier,
            [2, 0, 0, 2, 1, 2],
            optimizer=ImageAdam(0.2, "multi-step"),
            steps=37,
            key=jax.random.key(77),
            bounds=(0.1, 0.7),
        )
        run(
            classifier,
            optimizer=ImageAdam(schedule=lambda step: 1.0),
            start=drawn_images(seed=5),
        )
    assert not compiled


# The start.


def test_images_begin_at_the_start():
    start = drawn_images(n=5)
    labels = [0, 1, 2, 2, 1]
    options = {"start": start, "batch_size": 3}
    still = run(small(), labels, optimizer=STILL, steps=2, **options)
    np.testing.assert_array_equal(still, start)
    slow = ImageAdam(1e-3, "constant")
    near = run(small(), labels, optimizer=slow, steps=4, **options)
    assert 0 < np.abs(near - start).max() < 5e-3


def test_a_start_outside_of_the_bounds_is_cut_off():
    start = 2 * drawn_images() - 0.5  # as far as pixels may lie by rounding
    images = run(small(), start=start, optimizer=STILL, steps=2)
    np.testing.assert_array_equal(images, np.clip(start, 0, 1))


@pytest.mark.parametrize("start", [None, drawn_images() - 0.5])
def test_a_box_without_a_lid_holds_from_the_first_image_on(start):
    options = {"bounds": (0.0, np.inf), "start": start, "optimizer": STILL}
    images = run(small(None), steps=1, key=KEY, **options)
    assert images.min() >= 0
    assert images.max() > 0
