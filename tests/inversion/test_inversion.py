"""The objective against NumPy, and what the optimisation over images promises."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import compilations
from normalised import CASES, CLASSES, Plain, draw_classifier
from oracles import double
from typecheck import unchecked

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.inversion import ImagePrior, inversion_terms, invert

KEY = jax.random.key(5)
SHAPE = (4, 4, 2)
PREPROCESS = ju.Preprocess(0.5, 0.25)
TERMS = jax.jit(inversion_terms, static_argnames="prior")


def objective_twin(case, classifier, images, labels):
    """The terms in NumPy: logits and BatchNorm inputs are the twin's."""
    logits, tape = case.run_twin(classifier, images)
    x, n = double(images), len(images)
    peak = logits.max(1, keepdims=True)
    log_sums = np.log(np.exp(logits - peak).sum(1)) + peak[:, 0]
    feature = 0.0
    for path, inputs in tape.inputs():
        for i in range(inputs.shape[1]) if case.scans else [None]:
            rows = inputs if i is None else inputs[:, i]
            others = tuple(a for a in range(rows.ndim) if a not in case.axes)
            for name, batch in (("mean", rows.mean(others)), ("var", rows.var(others))):
                running = tape.state[f"{path}/{name}".lstrip("/")]
                running = running if i is None else running[i]
                feature += np.linalg.norm(batch - running)
    return {
        "cross_entropy": np.mean(log_sums - logits[np.arange(n), labels]),
        "total_variation": np.abs(x[:, 1:] - x[:, :-1]).mean()
        + np.abs(x[:, :, 1:] - x[:, :, :-1]).mean(),
        "l2": np.linalg.norm(x, axis=-1).mean(),
        "feature": feature,
    }


# The objective.


@pytest.mark.core
@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case.name)
def test_the_terms_are_those_of_the_twin(case):
    labels, prior = np.array([2, 0, 1, 1, 0]), ImagePrior(0.3, 0.2, 0.7)
    with jax.enable_x64(True):
        classifier, images = case.classifier(), case.images(5)
        found = TERMS(classifier, images, jnp.asarray(labels), prior)
        assert found["total"].dtype == np.float64
    expected = objective_twin(case, classifier, images, labels)
    # The smoothed roots hold 1e-12, and bfloat16 layers a hundredth.
    tolerance = max(1e-6, 10 * case.error)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance)
    total = expected["cross_entropy"] + (
        0.3 * expected["total_variation"] + 0.2 * expected["l2"]
    )
    np.testing.assert_allclose(
        found["total"], total + 0.7 * expected["feature"], rtol=tolerance
    )


def test_without_batch_norm_there_is_no_feature_term():
    classifier = draw_classifier(Plain, SHAPE, np.float32)
    images = jnp.ones((2, *SHAPE))
    assert "feature" not in TERMS(classifier, images, jnp.array([0, 1]))


def test_pixels_are_judged_before_they_are_standardised():
    """Variation and norm are of pixels, the rest of what the network sees."""
    case = CASES[0]
    plain, images = case.classifier(np.float32), case.images(3, np.float32)
    labels = np.array([0, 1, 2])
    mean, std = (0.25, 0.5), (0.5, 0.125)
    classifier = plain.replace(preprocess=ju.Preprocess(mean, std))
    seen = (double(images) - mean) / np.asarray(std)
    expected = objective_twin(case, plain, seen, labels)
    pixels = objective_twin(case, plain, images, labels)
    found = TERMS(classifier, images, jnp.asarray(labels))
    for name in ("cross_entropy", "feature"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    for name in ("total_variation", "l2"):
        np.testing.assert_allclose(found[name], pixels[name], rtol=1e-5)


@pytest.mark.core
def test_the_gradient_is_that_of_finite_differences():
    """All terms at once, along three directions."""
    case, prior = CASES[0], ImagePrior(0.5, 0.5, 0.5)
    with jax.enable_x64(True):
        classifier, images = case.classifier(), case.images(3)
        labels = jnp.array([2, 0, 1])

        @jax.jit
        def total(images):
            return inversion_terms(classifier, images, labels, prior)["total"]

        gradient = jax.jit(jax.grad(total))(images)
        for seed in range(3):
            along = case.images(3, seed=10 + seed) - 0.5
            slope = (total(images + 1e-6 * along) - total(images - 1e-6 * along)) / 2e-6
            exact = float(jnp.vdot(gradient, along))
            np.testing.assert_allclose(float(slope), exact, rtol=1e-5)


ACTIVATIONS = {
    "relu": nn.relu,
    "relu6": jax.nn.relu6,
    "gelu": nn.gelu,
    "leaky relu": jax.nn.leaky_relu,
    "softplus": jax.nn.softplus,
}


class Kinked(nn.Module):
    """Whole weights and pixels: many units are at the activation's kink exactly."""

    activation: str

    @nn.compact
    def __call__(self, x):
        x = nn.remat(nn.Dense)(6, name="hidden")(x.reshape(x.shape[0], -1))
        x = ACTIVATIONS[self.activation](x)
        return nn.Dense(CLASSES, name="head")(x)


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_through_activations_are_those_of_the_network(name):
    rng = np.random.default_rng(0)
    model, images = Kinked(name), jnp.asarray(rng.integers(-1, 2, (4, 2, 2, 1)), float)
    shapes = jax.eval_shape(model.init, KEY, images)
    variables = jax.tree.map(
        lambda s: jnp.asarray(rng.integers(-1, 2, s.shape), jnp.float32), shapes
    )
    variables["params"]["hidden"]["bias"] *= 0
    classifier, labels = ju.freeze(model, variables), jnp.array([0, 1, 2, 0])
    hidden = double(images).reshape(4, 4) @ variables["params"]["hidden"]["kernel"]
    assert np.any(hidden == 0)

    def plain(images):
        logits = model.apply(variables, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    def ours(images):
        return inversion_terms(classifier, images, labels)["cross_entropy"]

    one, other = jax.jit(lambda x: (jax.grad(ours)(x), jax.grad(plain)(x)))(images)
    np.testing.assert_allclose(one, other, atol=1e-6)


# The optimisation.


class Small(nn.Module):
    """Quick to compile."""

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(True, name="norm")
        return nn.Dense(CLASSES, name="head")(norm(x).reshape(x.shape[0], -1))


def small(preprocess=PREPROCESS, build=Small, shape=SHAPE):
    classifier = draw_classifier(build, shape, np.float32)
    return classifier.replace(preprocess=preprocess)


# Objects of the module, as programs are shared by optimizers that are the same object.
ADAM, LEAP = optax.adam(0.05), optax.sgd(1e4)


def run(classifier, labels=(0, 1, 2), **options):
    given = {"image_shape": SHAPE, "key": KEY, "steps": 30, "jitter": 0}
    given |= {"optimizer": ADAM, "batch_size": 3} | options
    return invert(classifier, np.asarray(labels), **given)


@pytest.mark.core
@pytest.mark.parametrize(
    ("labels", "batch_size"), [([2, 0, 1, 1], 256), ([2, 0, 1, 1, 2, 0, 0], 3)]
)
def test_the_model_takes_each_image_for_its_label(labels, batch_size):
    """In the order of the labels, however many fit into a batch."""
    classifier = small()
    images = run(classifier, labels, batch_size=batch_size, steps=60)
    assert images.shape == (len(labels), *SHAPE)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(classifier(images).argmax(1), labels)


@pytest.mark.core
def test_images_take_on_the_statistics_of_batch_norm():
    """Of both layers of a convolutional network, as far as their weight says."""
    case = CASES[0]
    classifier, labels = case.classifier(np.float32), np.array([0, 1, 2])
    losses = []
    start, images = (
        run(
            classifier,
            labels,
            steps=steps,
            callback=lambda step, terms: losses.append((step, terms["total"])),
            prior=ImagePrior(0.0, 0.0, 1.0),
        )
        for steps in (1, 100)
    )
    assert [step for step, _ in losses] == [0, *range(100)]
    before, after = (
        TERMS(classifier, jnp.asarray(x), jnp.asarray(labels)) for x in (start, images)
    )
    assert after["feature"] < 0.6 * before["feature"]
    assert losses[-1][1] < 0.7 * losses[0][1]


@pytest.mark.core
@pytest.mark.parametrize(
    ("preprocess", "bounds", "box"),
    [
        (PREPROCESS, None, (0, 1)),
        (PREPROCESS, (0.25, 0.5), (0.25, 0.5)),
        (None, (-2.0, -1.0), (-2, -1)),
        (None, (-3, 5), (-3, 5)),
    ],
)
def test_images_stay_in_bounds_at_every_step(preprocess, bounds, box):
    """Each run is the next one's beginning; the steps are as long as can be."""
    classifier = small(preprocess)
    for steps in (1, 2, 3, 4):
        images = run(classifier, bounds=bounds, steps=steps, optimizer=LEAP)
        assert (images.min(), images.max()) == box


def test_without_preprocess_images_are_unbounded():
    images = run(small(None), steps=1, optimizer=LEAP)
    assert images.min() < -10
    assert images.max() > 10


@pytest.mark.parametrize("bounds", [(-20.0, 40.0), None])
def test_the_start_fills_the_box_or_is_normal(bounds):
    images = run(small(None), bounds=bounds, steps=1)
    mean, std = (10, 60 / np.sqrt(12)) if bounds else (0, 1)
    np.testing.assert_allclose(images.mean(), mean, atol=0.3 * std)
    np.testing.assert_allclose(images.std(), std, rtol=0.2)
    # The tails tell the one from the other.
    assert np.abs(images - mean).max() / std == pytest.approx(
        1.7 if bounds else 2.5, rel=0.2
    )


@pytest.mark.core
def test_the_key_decides_everything():
    classifier = small()
    one, same = (run(classifier) for _ in range(2))
    other = run(classifier, key=jax.random.key(6))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1


def test_batches_start_from_images_of_their_own():
    """Two batches of equal labels are not the same images twice."""
    images = run(small(), [0, 1, 2, 0, 1, 2])
    assert np.abs(images[:3] - images[3:]).max() > 0.1


@pytest.mark.long
def test_jitter_rolls_up_to_a_sixteenth_of_each_side():
    """One pixel decides the class: where else it is sought, the gradient shows.

    On 32 x 16 pixels that is by up to two up and down, and by one left and right.
    """
    shape = (32, 16, 1)
    classifier = small(build=Plain, shape=shape)
    kernel = np.zeros((32, 16, CLASSES), np.float32)
    kernel[5, 3] = [0, 1, 2]
    head = {"bias": jnp.zeros(CLASSES), "kernel": jnp.asarray(kernel.reshape(512, -1))}
    classifier = classifier.replace(params={"head": head})
    options = {"image_shape": shape, "prior": ImagePrior(0, 0, 0)}
    start = run(classifier, steps=1, **options)

    def touched(**given):
        images = run(classifier, steps=60, **options, **given)
        return {tuple(p) for p in np.argwhere(np.abs(images - start).max((0, 3)) > 0)}

    assert touched() == {(5, 3)}
    around = {(row, column) for row in range(3, 8) for column in (2, 3, 4)}
    assert touched(jitter=2) == touched(jitter=9) == around


def test_small_images_are_not_jittered():
    classifier = small()
    np.testing.assert_array_equal(run(classifier, jitter=2), run(classifier, jitter=0))


def test_the_classifier_is_not_modified():
    classifier = small()
    before = jax.tree.map(np.array, classifier)
    run(classifier)
    for old, new in zip(
        jax.tree.leaves(before), jax.tree.leaves(classifier), strict=True
    ):
        np.testing.assert_array_equal(old, new)


@pytest.mark.core
def test_a_second_call_of_the_same_shapes_compiles_nothing():
    """With the default optimizer; other labels, key, parameters, number of batches."""
    run(small(), [0, 1, 2], optimizer=None)
    other = jax.tree.map(lambda leaf: 0.9 * leaf, small())
    with compilations() as compiled:
        run(other, [2, 1, 1, 1, 0, 0], key=jax.random.key(1), optimizer=None)
    assert not compiled


@pytest.mark.long
@pytest.mark.core
def test_a_loop_on_the_device_gives_the_same_images(monkeypatch):
    classifier, labels = small(), [0, 1, 2, 1]
    one = run(classifier, labels)
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: False)
    np.testing.assert_allclose(run(classifier, labels), one, atol=1e-4)


@pytest.mark.core
def test_devices_share_a_batch_and_find_the_same_images():
    """BatchNorm's statistics are those of the whole batch, not of a device's share."""
    classifier, labels = small(), [0, 1, 2, 1]
    mesh = jax.make_mesh((2,), ("shard",))
    one, two = (run(classifier, labels, mesh=m, batch_size=4) for m in (None, mesh))
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("n", "batch_size"), [(3, 256), (5, 2), (9, 4)])
def test_any_number_of_labels_is_cut_over_devices(n, batch_size):
    classifier, labels = small(), np.arange(n) % 3
    mesh = jax.make_mesh((4,), ("shard",))
    images = run(classifier, labels, mesh=mesh, batch_size=batch_size, steps=60)
    assert len(images) == n
    np.testing.assert_array_equal(classifier(images).argmax(1), labels)


# What it refuses.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": [0, 3]}, "labels must be classes 0 to 2; they range from 0 to 3"),
        ({"labels": [-1, 0]}, "they range from -1 to 0"),
        ({"labels": np.zeros(0, int)}, r"one integer an image, .* shape is \(0,\)"),
        ({"labels": [[0, 1]]}, r"one integer an image, .* shape is \(1, 2\)"),
        ({"bounds": (1.0, 0.0)}, r"low < high; they are \(1.0, 0.0\)"),
        ({"bounds": (0.5, 0.5)}, "low < high"),
        ({"bounds": (np.nan, 1.0)}, "low < high"),
        ({"steps": 0}, "steps must be at least 1; it is 0"),
        ({"batch_size": 0}, "batch_size must be at least 1; it is 0"),
        ({"image_shape": (4, 4)}, r"image_shape must be \(h, w, c\); it is \(4, 4\)"),
        ({"image_shape": (4.0, 4, 2)}, r"image_shape must be .*it is \(4\.0, 4, 2\)"),
        ({"bounds": (0.0,)}, r"bounds must be \(low, high\) .* they are \(0\.0,\)"),
        ({"jitter": 1.5}, r"jitter must be 0 or more pixels; it is 1\.5"),
        ({"optimizer": optax.lbfgs()}, "optimizer must get along with gradients and"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_computed(options, words):
    classifier = small(None)
    jnp.asarray(np.zeros((1, *SHAPE), np.float32))  # a copy is a program in some JAX
    with compilations() as compiled, pytest.raises(ValueError, match=words):
        unchecked(run)(classifier, **options)
    assert not compiled


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Plain()(x), x


class Mistaken(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Plain()(x) * unheard_of  # noqa: F821


def test_a_network_must_return_logits():
    model = Pair()
    classifier = ju.freeze(model, model.init(KEY, jnp.ones((1, *SHAPE))))
    with pytest.raises(ValueError, match="must return logits .* returned a tuple"):
        run(classifier)


def test_a_mistake_in_the_network_is_shown_as_it_is():
    classifier = small(None, build=Plain)
    params = {"Plain_0": classifier.params}
    with pytest.raises(NameError, match="unheard_of"):
        run(ju.freeze(Mistaken(), {"params": params}))


def test_labels_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match="labels must be integers; they are float64"):
        run(small(), labels=[0.0, 1.0])


def test_a_key_of_the_old_kind_is_refused():
    with pytest.raises(TypeError, match=r"key must be one jax.random.key\(seed\)"):
        run(small(), key=jax.random.PRNGKey(0))


@pytest.mark.parametrize("field", ["total_variation", "l2", "feature"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_of_the_prior_are_finite_and_not_negative(field, value):
    with pytest.raises(ValueError, match=rf"ImagePrior\.{field} must be finite"):
        ImagePrior(**{field: value})


def test_where_the_objective_is_not_finite_the_step_is_named():
    """The first one, with its terms; the chunk runs on to its end."""
    rates = jnp.array([0.0] * 7 + [1e38] * 23)
    optimizer = optax.sgd(lambda count: rates[count])
    words = r"not finite at step 8: \{'total': inf, .*'l2': inf"
    with pytest.raises(FloatingPointError, match=words):
        run(small(None), optimizer=optimizer)
