"""Coarse stages, learning rates, the best images, and where inversion begins."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import compilations
from oracles import double
from test_inversion import KEY, SHAPE, TERMS, run, small, unchecked

import jaxunlearn as ju
from jaxunlearn.inversion import ImagePrior, inversion_terms
from jaxunlearn.inversion.schedule import learning_rates, low_pass, stages

# Two sides that differ, so that rows are not taken for columns.
WIDE = (13, 6, 2)
LABELS = (0, 1, 2)


def drawn_images(shape=SHAPE, n=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.2, 0.8, size=(n, *shape)).astype(np.float32)


def filtered(images, factor):
    """In NumPy."""
    rows, columns = (double(low_pass(n, factor)) for n in images.shape[1:3])
    return np.einsum("yh,nhwc,xw->nyxc", rows, double(images), columns)


def transposed(images, factor):
    rows, columns = (double(low_pass(n, factor)) for n in images.shape[1:3])
    return np.einsum("hy,nhwc,wx->nyxc", rows, double(images), columns)


# One object each, as programs are shared by optimizers that are the same object. They
# do not move, take one step and then none, and leap until the last of four steps.
STILL = optax.sgd(0.0)
ONCE = optax.sgd(lambda count: jnp.where(count == 0, 0.5, 0.0))
LEAPS = optax.sgd(lambda count: jnp.where(count < 3, 1e4, 0.0))


# Coarse stages.


@pytest.mark.core
@pytest.mark.parametrize(("side", "factor"), [(8, 2), (8, 4), (7, 2), (5, 3), (4, 9)])
def test_low_pass_shrinks_and_grows_by_convex_weights(side, factor):
    matrix = low_pass(side, factor)
    assert matrix.dtype == np.float32
    assert matrix.min() >= 0
    np.testing.assert_allclose(double(matrix).sum(1), 1, atol=1e-6)
    rank = np.linalg.matrix_rank(double(matrix), tol=1e-5)
    assert rank == max(1, round(side / factor))
    image = np.random.default_rng(0).normal(size=(side, side, 3)).astype(np.float32)
    few = max(1, round(side / factor))
    small = jax.image.resize(image, (few, few, 3), "linear")
    expected = jax.image.resize(small, image.shape, "linear")
    found = np.einsum("yh,hwc,xw->yxc", matrix, image, matrix)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_last_stage_lets_everything_pass():
    np.testing.assert_array_equal(low_pass(5, 1), np.eye(5))


@pytest.mark.parametrize("coarse", [(4,), (3, 2)])
def test_images_come_out_of_each_coarse_stage_as_it_shows_them(coarse):
    start = drawn_images(WIDE)
    images = run(
        small(shape=WIDE),
        image_shape=WIDE,
        start=start,
        coarse=coarse,
        optimizer=STILL,
        steps=5,
    )
    expected = start
    for factor in coarse:
        expected = filtered(expected, factor)
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert np.abs(expected - start).max() > 0.1


def test_a_coarse_step_follows_the_gradient_of_coarse_images():
    """By the chain rule: through the filter, and back through its transpose."""
    start, prior = drawn_images(WIDE) - 0.5, ImagePrior(0.3, 0.2, 0.5)
    classifier = small(None, shape=WIDE)
    images = run(
        classifier,
        image_shape=WIDE,
        start=start,
        coarse=(2,),
        optimizer=ONCE,
        steps=2,
        prior=prior,
    )

    @jax.jit
    @jax.grad
    def slope(seen):
        return inversion_terms(classifier, seen, jnp.array(LABELS), prior).total

    seen = jnp.asarray(filtered(start, 2), jnp.float32)
    moved = start - 0.5 * transposed(slope(seen), 2)
    np.testing.assert_allclose(images, filtered(moved, 2), atol=1e-5)
    assert np.abs(images - filtered(start, 2)).max() > 0.01


@pytest.mark.parametrize("keep_best", [False, True])
def test_coarse_images_stay_in_bounds(keep_best):
    """Pixels leap to the corners of the box before the last step shows them."""
    images = run(
        small(shape=WIDE),
        image_shape=WIDE,
        coarse=(4, 3, 2),
        optimizer=LEAPS,
        steps=4,
        keep_best=keep_best,
    )
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_on_the_edge_of_the_box_do_not_leave_it_by_rounding(value):
    start = np.full((3, *WIDE), value, np.float32)
    images = run(
        small(shape=WIDE),
        image_shape=WIDE,
        coarse=(4,),
        optimizer=STILL,
        steps=5,
        start=start,
        keep_best=True,
    )
    assert images.min() >= 0
    assert images.max() <= 1
    np.testing.assert_allclose(images, value, atol=1e-6)


# Up the gradient, in the last of two coarse steps.
WORSE = optax.sgd(lambda count: jnp.where(count == 1, -1e-2, 0.0))


def test_the_best_of_a_coarse_stage_is_not_the_best_of_all():
    """Coarse images had a lower objective: still those of the last stage come out."""
    classifier, start = small(shape=WIDE), drawn_images(WIDE)
    options = {"image_shape": WIDE, "start": start, "coarse": (4,), "steps": 4}
    options |= {"optimizer": WORSE, "prior": ImagePrior(1e3, 0.0, 0.0)}
    images = run(classifier, keep_best=True, **options)
    np.testing.assert_allclose(images, run(classifier, **options), atol=1e-6)

    def variation(images):
        return TERMS(classifier, jnp.asarray(images), jnp.array(LABELS)).total_variation

    first = filtered(start, 4).astype(np.float32)
    assert variation(images) > 1.01 * variation(first)


@pytest.mark.parametrize("coarse", [(2, 4), (2, 2), (1,), (4, 1), (-2,), ("4",)])
def test_factors_must_fall_and_be_above_one(coarse):
    words = "coarse must be factors above 1 in descending order"
    with pytest.raises(ValueError, match=words):
        unchecked(stages)(100, coarse)


def test_stages_share_the_steps_and_need_one_each():
    assert stages(7, (8, 4)) == [(0, 2, 8), (2, 4, 4), (4, 7, 1)]
    assert stages(3, (8, 4)) == [(0, 1, 8), (1, 2, 4), (2, 3, 1)]
    words = r"steps must be at least 3, .*coarse=\(8, 4\) asks for; it is 2"
    with pytest.raises(ValueError, match=words):
        run(small(), coarse=(8, 4), steps=2)


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
    rates = learning_rates(0.3, schedule, 8)
    np.testing.assert_allclose(rates, 0.3 * np.asarray(expected), rtol=1e-12)


def test_multi_step_falls_in_the_middle_of_an_odd_number_of_steps():
    found = learning_rates(1.0, "multi-step", 5)
    np.testing.assert_allclose(found, [1, 1, 1, 0.1, 0.01])


@pytest.mark.parametrize("rate", [0.0, -0.25, float("nan"), float("inf")])
def test_rates_are_positive(rate):
    """And named as they were given, not in pixels."""
    words = f"learning_rate must be positive and finite; it is {rate}"
    with pytest.raises(ValueError, match=words):
        run(small(None), learning_rate=rate, optimizer=None)


def test_covarnav_inverts_at_the_default_rate():
    parameters = inspect.signature(ju.invert).parameters
    assert ju.CovarNav().inversion_rate == parameters["learning_rate"].default


def test_an_unknown_schedule_is_refused():
    words = "schedule must be one of cosine, multi-step, constant.* 'linear'"
    with pytest.raises(ValueError, match=words):
        unchecked(learning_rates)(1.0, "linear", 3)


def test_a_schedule_that_is_not_finite_names_its_step():
    words = "schedule must return finite factors; at step 2 it returns nan"
    with pytest.raises(ValueError, match=words):
        run(small(), schedule=lambda step: np.nan if step == 2 else 1.0)


def test_a_rate_is_no_optimizer():
    with pytest.raises(TypeError, match="optimizer must be .* it is a float"):
        unchecked(run)(small(), optimizer=0.1)


@pytest.mark.parametrize(("bounds", "width"), [((-4.0, 6.0), 10), (None, 2)])
def test_the_first_step_of_adam_is_the_rate_in_units_of_the_box(bounds, width):
    """Every pixel that has a gradient moves by it."""
    start = drawn_images()
    options = {"optimizer": None, "start": start, "steps": 1, "bounds": bounds}
    images = run(small(None), learning_rate=0.01, **options)
    moved = np.abs(images - start)
    np.testing.assert_allclose(moved, 0.01 * width, rtol=1e-2)


def test_a_rate_of_zero_ends_an_inversion_early():
    def until_five(step):
        return 1.0 if step < 5 else 0.0

    classifier, options = small(), {"optimizer": None}
    one = run(classifier, steps=12, schedule=until_five, **options)
    other = run(classifier, steps=5, schedule="constant", **options)
    np.testing.assert_array_equal(one, other)


def test_what_only_changes_numbers_compiles_nothing():
    classifier = small()
    run(classifier, optimizer=None, start=drawn_images())
    run(classifier, optimizer=None)
    with compilations() as compiled:
        run(
            classifier,
            [2, 0, 0, 2, 1, 2],
            optimizer=None,
            steps=37,
            learning_rate=0.2,
            schedule="multi-step",
            key=jax.random.key(77),
            bounds=(0.1, 0.7),
        )
        run(
            classifier,
            optimizer=None,
            start=drawn_images(seed=5),
            schedule=lambda step: 1.0,
        )
    assert not compiled


# The best images.

# Steps that overshoot, and in the end ruin what was found.
RUIN = optax.sgd(
    lambda count: jnp.array([3.0, 20, -15, 20, -12, 100, -1000, 1000])[count]
)


@pytest.mark.core
def test_the_best_images_of_all_steps_are_kept_each_for_itself():
    classifier, prior = small(None), ImagePrior(0.1, 0.1, 0.2)
    labels, start = np.array([0, 1, 2, 1]), drawn_images(n=4)
    options = {"labels": labels, "batch_size": 4, "start": start, "prior": prior}
    options["optimizer"] = RUIN
    steps = 8
    iterates = [start, *(run(classifier, steps=k, **options) for k in range(1, steps))]
    alone = ImagePrior(0.1, 0.1, 0.0)
    each = jax.jit(jax.vmap(lambda x, y: single(classifier, x, y, alone)))
    losses = []
    for images in iterates:
        shared = TERMS(classifier, jnp.asarray(images), jnp.asarray(labels)).feature
        losses.append(np.asarray(each(images, labels)) + 0.2 * float(shared))
    best = np.argmin(losses, axis=0)
    assert len(set(best.tolist())) > 1
    assert losses[-1].min() > 10 * np.min(losses)
    kept = run(classifier, steps=steps, keep_best=True, **options)
    expected = np.stack([iterates[k][i] for i, k in enumerate(best)])
    np.testing.assert_allclose(kept, expected, atol=1e-4)


def single(classifier, image, label, prior):
    return inversion_terms(classifier, image[None], label[None], prior).total


# The start.


def test_images_begin_at_the_start():
    start = drawn_images(n=5)
    labels = [0, 1, 2, 2, 1]
    options = {"start": start, "batch_size": 3}
    still = run(small(), labels, optimizer=STILL, steps=2, **options)
    np.testing.assert_array_equal(still, start)
    options |= {"learning_rate": 1e-3, "schedule": "constant", "steps": 4}
    near = run(small(), labels, optimizer=None, **options)
    assert 0 < np.abs(near - start).max() < 5e-3


def test_a_start_outside_of_the_bounds_is_cut_off():
    start = 3 * drawn_images() - 1
    images = run(small(), start=start, optimizer=STILL, steps=2)
    np.testing.assert_array_equal(images, np.clip(start, 0, 1))


@pytest.mark.parametrize("start", [None, drawn_images() - 0.5])
def test_a_box_without_a_lid_holds_from_the_first_image_on(start):
    """With one step the best image is the one that it began from."""
    options = {"bounds": (0.0, np.inf), "start": start, "optimizer": STILL}
    images = run(small(None), steps=1, keep_best=True, key=KEY, **options)
    assert images.min() >= 0
    assert images.max() > 0
