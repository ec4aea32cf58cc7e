"""Moments, students and weights in the objective of inversion, against NumPy."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations
from flax import nnx
from networks import quick_compilation
from normalised import CASES, CLASSES, NNXConvNet, Normed, Plain, draw_classifier
from oracles import Tape as RowsTape
from oracles import double, softmax
from test_inversion import KEY, SHAPE, TERMS, run, small

import jaxunlearn as ju
from jaxunlearn.inversion import ImagePrior, inversion_terms
from jaxunlearn.inversion.objective import TERMS as TERMS_TABLE
from jaxunlearn.inversion.objective import References, Term
from jaxunlearn.nullspace.moments import Moment

LABELS = np.array([2, 0, 1, 1])


def drawn_images(n, seed, dtype=np.float32, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(size=(n, *shape)), dtype)


def into(records):
    """A callback that keeps the terms of every step."""
    return lambda step, terms: records.append(terms)


def basic(terms):
    """The objective by its default weights, less what depends on the references."""
    return terms["cross_entropy"] + 1e-3 * terms["total_variation"] + 1e-1 * terms["l2"]


# Moments.


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(x.shape[-1], name="layer")(x)), None


class Mixed(nn.Module):
    """A strided convolution, a grouped one, two scanned layers, a head."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Conv(4, (3, 3), strides=2, name="strided")(x))
        x = nn.LayerNorm(name="norm", use_scale=False, use_bias=False)(x)
        x = jnp.tanh(nn.Conv(4, (2, 2), feature_group_count=2, name="grouped")(x))
        scan = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        x, _ = scan(name="blocks")(x, None)
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


def mixed_twin(tape, x):
    x = tape.conv("strided/kernel", x, kernel_size=(3, 3), features=4, strides=2)
    x = np.tanh(x)
    centred = x - x.mean(-1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    grouped = {"kernel_size": (2, 2), "features": 4, "feature_group_count": 2}
    x = np.tanh(tape.conv("grouped/kernel", x, **grouped))
    for i in range(2):
        x = np.tanh(tape.dense("blocks/layer/kernel", x, at=(i,)))
    return tape.dense("head/kernel", x.reshape(len(x), -1))


def mixed_means(classifier, images):
    """The twin's mean of `x xT` over the rows of each weight, and its logits."""
    tape = RowsTape(classifier.params)
    logits = mixed_twin(tape, double(images))
    return {p: tape.gram(p) / tape.count(p) for p in tape.paths()}, logits


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("kept", [None, ("grouped", "blocks")])
def test_the_moment_term_is_the_distance_of_mean_outer_products_of_rows(kept):
    """Of all weights, or of some: None leaves a weight alone."""
    prior = ImagePrior(0.3, 0.2, moment=0.7)
    with jax.enable_x64(True):
        classifier = draw_classifier(Mixed, SHAPE, np.float64)
        images, others = (drawn_images(n, n, np.float64) for n in (4, 7))
        moments = ju.second_moments(classifier, others)
        for name in classifier.params:
            if kept is not None and name not in kept:
                moments[name] = jax.tree.map(lambda _: None, classifier.params[name])
        labels = jnp.asarray(LABELS)
        found = TERMS(classifier, images, labels, prior, moments=moments)
        here, logits = mixed_means(classifier, images)
        there, _ = mixed_means(classifier, others)
        np.testing.assert_allclose(classifier(images), logits, rtol=1e-10)
    found = jax.tree.map(double, found)
    assert {len(c) for c in here.values()} == {1, 2}
    expected = sum(
        np.linalg.norm(here[path] - there[path]) / np.linalg.norm(there[path])
        for path in here
        if kept is None or path.startswith(kept)
    )
    np.testing.assert_allclose(found["moment"], expected, rtol=1e-9)
    total = found["cross_entropy"] + 0.3 * found["total_variation"] + 0.2 * found["l2"]
    np.testing.assert_allclose(found["total"], total + 0.7 * expected, rtol=1e-9)


def test_images_of_the_moments_are_at_distance_zero_and_their_gradient_is_finite():
    classifier, images = plain(), drawn_images(4, 0)
    moments = ju.second_moments(classifier, images)

    @jax.jit
    @jax.grad
    def slope(images):
        prior = ImagePrior(0.0, 0.0, moment=1.0)
        return inversion_terms(
            classifier, images, jnp.asarray(LABELS), prior, moments=moments
        )["total"]

    found = TERMS(classifier, images, jnp.asarray(LABELS), moments=moments)
    assert found["moment"] < 1e-4
    assert np.isfinite(slope(images)).all()


def norm_free(name):
    if name == "vit":
        model = ju.models.create("vit", num_classes=CLASSES, depth=1, patch=4)
        return draw_classifier(lambda: model, (8, 8, 1), np.float32), (8, 8, 1)
    return draw_classifier(lambda: Normed(nn.GroupNorm(1)), SHAPE, np.float32), SHAPE


@pytest.mark.long
@pytest.mark.parametrize("name", ["group norm", "vit"])
def test_moments_stand_in_for_batch_norm(name):
    """A network without it is drawn towards the images that the moments are of."""
    classifier, shape = norm_free(name)
    records = []
    options = {
        "prior": ImagePrior(0.0, 0.0, moment=2.0),
        "callback": into(records),
    }
    with quick_compilation():
        moments = ju.second_moments(classifier, drawn_images(6, 3, shape=shape))
        images = run(
            classifier, moments=moments, image_shape=shape, steps=60, **options
        )
    assert all("feature" not in record for record in records)
    assert records[-1]["moment"] < 0.8 * records[0]["moment"]
    np.testing.assert_array_equal(classifier(images).argmax(1), [0, 1, 2])


def test_without_any_statistics_images_still_follow_the_labels():
    classifier, shape = norm_free("group norm")
    images = run(classifier, [2, 1, 0], image_shape=shape, steps=60)
    np.testing.assert_array_equal(classifier(images).argmax(1), [2, 1, 0])


def test_an_nnx_model_has_a_feature_term_and_is_not_changed():
    model = ju.thaw(draw_classifier(NNXConvNet, SHAPE, np.float32))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    mode = model.norm.use_running_average
    records = []
    prior = ImagePrior(0.0, 0.0, 1.0)
    run(
        ju.freeze(model),
        prior=prior,
        steps=60,
        callback=into(records),
    )
    assert 0 < records[-1]["feature"] < 0.8 * records[0]["feature"]
    assert model.norm.use_running_average is mode
    after = nnx.to_pure_dict(nnx.state(model))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


# Students.


def divergence(first, second):
    """Jensen-Shannon in NumPy, of probabilities above zero."""
    p, q = softmax(double(first)), softmax(double(second))
    m = (p + q) / 2
    return ((p * np.log(p / m) + q * np.log(q / m)) / 2).sum(1)


def with_head(kernel=0.0, bias=(0.0, 0.0, 0.0)):
    classifier = draw_classifier(Plain, SHAPE, np.float32)
    head = classifier.params["head"]
    head = {"bias": jnp.asarray(bias), "kernel": kernel * head["kernel"]}
    return classifier.replace(params={"head": head})


@pytest.mark.core
def test_competition_is_one_less_the_divergence_of_the_two():
    images, labels = drawn_images(4, 0), jnp.asarray(LABELS)

    def competition(classifier, student):
        found = TERMS(classifier, images, labels, student=student)
        rest = basic(found)
        # By default it weighs as much as the cross-entropy.
        np.testing.assert_allclose(
            found["total"], rest + found["competition"], rtol=1e-5
        )
        return float(found["competition"])

    classifier, student = with_head(3.0), with_head(-2.0, (1.0, 0.0, -1.0))
    expected = 1 - divergence(classifier(images), student(images)).mean() / np.log(2)
    assert 0.1 < expected < 0.9
    assert competition(classifier, student) == pytest.approx(expected, rel=1e-5)
    assert competition(student, classifier) == pytest.approx(expected, rel=1e-5)
    assert competition(classifier, classifier) == pytest.approx(1, abs=1e-6)
    for sure in (50.0, 1e4):
        one, other = with_head(0.0, (sure, 0, 0)), with_head(0.0, (0, sure, 0))
        assert competition(one, other) == pytest.approx(0, abs=1e-6)
        assert competition(one, one) == pytest.approx(1, abs=1e-6)


def test_the_gradient_is_finite_where_two_are_sure_of_different_classes():
    """Probabilities that are zero in float32."""
    one, other = with_head(1.0, (1e4, 0, 0)), with_head(-1.0, (0, 1e4, 0))
    total = functools.partial(inversion_terms, labels=jnp.asarray(LABELS))

    @jax.jit
    @jax.grad
    def slope(images):
        return total(one, images, student=other)["competition"]

    assert np.isfinite(slope(drawn_images(4, 0))).all()


def test_a_student_s_own_preprocess_is_its_own():
    """Both see the same pixels."""
    images, labels = drawn_images(4, 0), jnp.asarray(LABELS)
    classifier, student = with_head(2.0), with_head(-2.0)
    student = student.replace(preprocess=ju.Preprocess(0.5, 0.25))
    seen = (double(images) - 0.5) / 0.25
    logits = seen.reshape(4, -1) @ double(student.params["head"]["kernel"])
    expected = 1 - divergence(classifier(images), logits).mean() / np.log(2)
    found = TERMS(classifier, images, labels, student=student)
    np.testing.assert_allclose(found["competition"], expected, rtol=1e-5)


# All of it.


@pytest.mark.long
def test_the_gradient_of_all_terms_is_that_of_finite_differences():
    """BatchNorm, moments and a student at once, along three directions."""
    case, prior = CASES[0], ImagePrior(0.5, 0.5, 0.5, 0.5, 0.5)
    with jax.enable_x64(True):
        classifier, images = case.classifier(), case.images(3)
        student = draw_classifier(case.build, case.image_shape, np.float64, seed=3)
        moments = ju.second_moments(classifier, case.images(4, seed=7))

        @jax.jit
        @jax.value_and_grad
        def objective(images):
            found = inversion_terms(
                classifier,
                images,
                jnp.array([2, 0, 1]),
                prior,
                moments=moments,
                student=student,
            )
            return found["total"]

        _, gradient = objective(images)
        for seed in range(3):
            along = case.images(3, seed=10 + seed) - 0.5
            above, below = (objective(images + e * along)[0] for e in (1e-6, -1e-6))
            exact = float(jnp.vdot(gradient, along))
            np.testing.assert_allclose((above - below) / 2e-6, exact, rtol=1e-5)


def test_terms_may_be_mapped_and_compiled():
    """As over single images, whose terms of the batch are then their own."""
    classifier, images = small(), drawn_images(4, 0)
    labels = jnp.asarray(LABELS)
    each = jax.jit(jax.vmap(inversion_terms, (None, 0, 0)))(
        classifier, images[:, None], labels[:, None]
    )
    alone = [TERMS(classifier, images[i : i + 1], labels[i : i + 1]) for i in range(4)]
    for name, value in each.items():
        expected = [terms[name] for terms in alone]
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.long
def test_a_term_without_weight_does_not_spoil_the_total():
    """A variance of infinity: the distance to it is infinite."""
    classifier = small()
    norm = classifier.state["batch_stats"]["norm"]
    broken = {"mean": norm["mean"], "var": norm["var"].at[0].set(jnp.inf)}
    classifier = classifier.replace(state={"batch_stats": {"norm": broken}})
    images, labels = drawn_images(4, 0), jnp.asarray(LABELS)
    found = TERMS(classifier, images, labels, ImagePrior(feature=0.0))
    assert np.isinf(found["feature"])
    rest = basic(found)
    np.testing.assert_allclose(found["total"], rest, rtol=1e-6)
    records = []
    images = run(
        classifier,
        prior=ImagePrior(feature=0.0),
        callback=into(records),
    )
    assert np.isfinite(images).all()
    assert np.isinf(records[-1]["feature"])
    assert records[-1]["total"] < records[0]["total"]
    with pytest.raises(FloatingPointError, match="at step 0.* because of feature"):
        run(classifier, prior=ImagePrior(feature=1.0))


# A further term.


@dataclasses.dataclass(frozen=True)
class ContrastPrior(ImagePrior):
    contrast: float | None = None


def test_a_term_is_a_function_in_the_table_and_a_weight(monkeypatch):
    """It is weighed, logged, named where it breaks down, and refused where it is not.

    The mean of squares draws grey images to black.
    """

    def contrast(inputs):
        if inputs.references.student is not None:
            return None
        return jnp.square(inputs.images).mean(axis=(1, 2, 3))

    row = Term(contrast, 1e6, "there is a student. Leave it out")
    monkeypatch.setitem(TERMS_TABLE, "contrast", row)
    classifier, prior, records = plain(), ContrastPrior(), []
    given = {"prior": prior, "callback": into(records), "bounds": (0.0, 1.0)}
    images = run(classifier, steps=60, **given)
    assert images.max() < 0.1
    first, last = records[0], records[-1]
    expected = basic(first) + 1e6 * first["contrast"]
    assert first["total"] == pytest.approx(expected, rel=1e-5)
    assert last["contrast"] < 0.1 * first["contrast"]
    start = np.full((3, *SHAPE), 1e25, np.float32)
    with pytest.raises(FloatingPointError, match="because of .*contrast"):
        run(classifier, start=start, prior=prior)
    with pytest.raises(
        ValueError, match=r"ImagePrior\.contrast is 2\.0, and there is a"
    ):
        run(classifier, student=plain(), prior=ContrastPrior(contrast=2.0))
    with pytest.raises(ValueError, match=r"ImagePrior\.contrast must be finite"):
        ContrastPrior(contrast=-1.0)
    without = run(classifier, student=plain(), prior=prior, callback=into(records))
    assert np.isfinite(without).all()
    assert "contrast" not in records[-1]


def test_every_term_but_the_cross_entropy_has_a_weight():
    assert list(ImagePrior().weights)[0] == "cross_entropy"
    assert set(ImagePrior().weights) == set(TERMS_TABLE)


# What is refused.


def plain():
    return draw_classifier(Plain, SHAPE, np.float32)


@functools.cache
def plain_moments():
    return ju.second_moments(plain(), drawn_images(3, 0))


def changed_moments(**fields):
    found = plain_moments()["head"]["kernel"]
    values = {"gram": found.gram, "rows": found.rows, "layout": found.layout} | fields
    return {"head": {"bias": None, "kernel": Moment(**values)}}


class Turned(nn.Module):
    """Reads the same leaf along its other axis."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (32, 32))
        return (x.reshape(len(x), -1) @ kernel.T)[:, :CLASSES]


class Straight(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (32, 32))
        return (x.reshape(len(x), -1) @ kernel)[:, :CLASSES]


@pytest.mark.core
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"prior": ImagePrior(feature=0.1)},
            r"ImagePrior\.feature is 0\.1, and the network has no BatchNorm .*moments=",
        ),
        (
            {"prior": ImagePrior(moment=0.2)},
            r"ImagePrior\.moment is 0\.2, and there are no moments .*moments=",
        ),
        (
            {"prior": ImagePrior(competition=0.3)},
            r"ImagePrior\.competition is 0\.3, and there is no student .*student=",
        ),
        ({"image_shape": (4, 0, 2)}, r"image_shape must be \(h, w, c\)"),
        ({"jitter": -1}, "jitter must be 0 or more pixels; it is -1"),
        (
            {"start": np.zeros((2, *SHAPE), np.float32)},
            r"start must be .* \(3, 4, 4, 2\); it is float32\[2, 4, 4, 2\]",
        ),
        (
            {"start": np.full((3, *SHAPE), np.nan, np.float32)},
            "NaN or infinite pixels: 3 of 3 images",
        ),
    ],
)
def test_what_there_is_nothing_for_is_refused_in_a_sentence(options, words):
    classifier = plain()
    jnp.asarray(np.zeros((1, *SHAPE), np.float32))  # a copy is a program in some JAX
    with compilations() as compiled, pytest.raises(ValueError, match=words):
        run(classifier, **options)
    assert not compiled


def test_images_that_the_network_cannot_take_are_refused_in_a_sentence():
    words = r"network cannot take images of image_shape \(5, 4, 2\) .*trained on"
    with pytest.raises(ValueError, match=words):
        run(plain(), image_shape=(5, 4, 2))


def test_weights_of_zero_need_nothing_to_compare_with():
    prior = ImagePrior(feature=0.0, moment=0.0, competition=0.0)
    assert prior.resolved({"total_variation", "l2"}) == prior


@pytest.mark.long
@pytest.mark.parametrize(
    ("moments", "words"),
    [
        (
            lambda: ju.class_moments(
                plain(), drawn_images(4, 0), LABELS, num_classes=CLASSES
            ),
            "hold a class axis at head/kernel: .*sum_classes",
        ),
        (
            lambda: changed_moments(gram=0 * plain_moments()["head"]["kernel"].gram),
            "moments at head/kernel are zero or not finite",
        ),
        (
            lambda: changed_moments(gram=jnp.full((1, 32, 32), jnp.nan)),
            "moments at head/kernel are zero or not finite",
        ),
        (
            lambda: changed_moments(rows=jnp.float32(0)),
            "moments at head/kernel are zero or not finite",
        ),
        (
            lambda: {"head": {"bias": None, "kernel": None}},
            "moments must hold at least",
        ),
        (
            lambda: ju.second_moments(small(None), drawn_images(3, 0)),
            "one structure; .*norm/scale",
        ),
        (
            lambda: ju.second_moments(
                draw_classifier(Plain, (2, 2, 2), np.float32),
                drawn_images(3, 0, shape=(2, 2, 2)),
            ),
            "moments at head/kernel are of a weight read as",
        ),
    ],
)
def test_moments_of_another_kind_are_refused(moments, words):
    with pytest.raises(ValueError, match=words):
        run(plain(), moments=moments())


def test_moments_of_a_weight_read_the_other_way_are_refused():
    one, other = (draw_classifier(b, SHAPE, np.float32) for b in (Straight, Turned))
    moments = ju.second_moments(one, drawn_images(3, 0))
    with pytest.raises(ValueError, match="moments at kernel are of a weight read as"):
        run(other, moments=moments)


def test_moments_must_be_moments():
    with pytest.raises(TypeError, match="moments must hold a Moment or None at head"):
        run(plain(), moments=plain().params)


class Four(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(x.reshape(x.shape[0], -1))


def test_a_student_tells_the_same_classes_apart():
    student = draw_classifier(Four, SHAPE, np.float32)
    with pytest.raises(ValueError, match="tells 4 classes apart and the classifier 3"):
        run(plain(), student=student)


def test_a_student_must_take_the_same_images():
    student = draw_classifier(Plain, (5, 4, 2), np.float32)
    words = r"student cannot take images of image_shape \(4, 4, 2\)"
    with pytest.raises(ValueError, match=words):
        run(plain(), student=student)


def test_a_start_of_integers_is_refused():
    """By its type, in `invert`; while the tests run already by its signature."""
    from jaxunlearn.inversion.arguments import checked_arguments

    start = np.zeros((1, *SHAPE), np.uint8)
    with pytest.raises(ValueError, match="start must be floating-point .*it is uint8"):
        checked_arguments(
            plain(),
            [0],
            SHAPE,
            key=KEY,
            prior=ImagePrior(),
            references=References(),
            start=start,
            jitter=0,
        )
