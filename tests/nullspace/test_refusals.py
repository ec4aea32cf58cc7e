"""What people pass by mistake, in place of each argument: read rightly or refused."""

import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from malformed_core import IMAGES, KEY, LABELS, classifier, data, moments

import jaxunlearn as ju
from jaxunlearn.nullspace.memory import class_passes

# Images and streams.


def sizes(tree):
    return [float(leaf.rows) for leaf in (tree["body"], tree["head"])]


class Loader:
    """Batches of pairs, again and again, as a DataLoader gives them."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return (self.make(IMAGES[a:b], LABELS[a:b]) for a, b in ((0, 2), (2, 6)))


STREAMS = {
    "tuples": lambda x, y: (x, y),
    "lists": lambda x, y: [x, y],
    "image and label": lambda x, y: {"image": x, "label": y},
    "images and labels": lambda x, y: {"images": x, "labels": y, "index": y},
    "lists of labels": lambda x, y: (x, y.tolist()),
    "big-endian": lambda x, y: (x.astype(">f4"), y.astype(">i4")),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_pairs_and_dicts_stream_into_moments(kind):
    whole = jax.tree.leaves(moments())
    found = ju.class_moments(classifier(), Loader(STREAMS[kind]), None, num_classes=3)
    for ours, expected in zip(jax.tree.leaves(found), whole, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert sizes(ju.second_moments(classifier(), Loader(STREAMS[kind]))) == [6, 6]


def test_tensors_and_their_loaders_stream_into_moments():
    torch = pytest.importorskip("torch")
    images, labels = torch.from_numpy(IMAGES), torch.from_numpy(LABELS)
    images.requires_grad_()
    loader = Loader(lambda x, y: [torch.from_numpy(x), torch.from_numpy(y)])
    whole = jax.tree.leaves(moments())
    for given in ((loader, None), (images, labels)):
        found = ju.class_moments(classifier(), *given, num_classes=3)
        for ours, expected in zip(jax.tree.leaves(found), whole, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert classifier()(images).shape == (6, 3)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda x, y: {"x": x, "y": y}, TypeError, "dicts with 'image'.*yielded.*'x'"),
        (lambda x, y: (x, y, y), TypeError, "must yield .images, labels. or dicts"),
        (lambda x, y: x[0], ValueError, r"\[n, h, w, c\].*leading axis"),
        (lambda x, y: x[:, : len(x)], ValueError, r"alike.*\[2, 4, 3\].*\[4, 4, 3\]"),
        (
            lambda x, y: x if len(x) == 2 else x.astype(np.float16),
            ValueError,
            "alike.*float32.*float16",
        ),
    ],
)
def test_batches_that_do_not_fit_together_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        ju.second_moments(classifier(), Loader(make))


def test_a_stream_cannot_be_read_while_it_is_traced():
    stream = [IMAGES, IMAGES]
    with pytest.raises(TypeError, match="stream.*inside a transformation"):
        jax.jit(lambda c: ju.second_moments(c, stream))(classifier())


def test_a_batch_larger_than_memory_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at most 2147483647"):
        ju.second_moments(classifier(), [IMAGES], batch_size=2**70)
    with pytest.raises(ValueError, match=f"batch_size is {2**30}: .* bytes.*Lower"):
        ju.second_moments(classifier(), [IMAGES], batch_size=2**30)
    # Of an array no more than there are.
    assert sizes(ju.second_moments(classifier(), IMAGES, batch_size=2**30)) == [6, 6]


def every_use(c, images):
    labels = LABELS[: len(images)]
    return {
        "call": lambda: c(images),
        "evaluate": lambda: ju.evaluate(c, ju.Data(images, labels), [1]),
        "second_moments": lambda: ju.second_moments(c, images),
        "class_moments": lambda: ju.class_moments(c, images, labels, num_classes=3),
        "row_subspaces": lambda: ju.row_subspaces(c, images, rank=1),
        "layer_inputs": lambda: ju.layer_inputs(c, images),
        "layer_table": lambda: ju.layer_table(c, images),
    }


@pytest.mark.parametrize("use", every_use(None, IMAGES))
def test_images_of_other_channels_are_refused_in_words_about_images(use):
    grey = every_use(classifier(), IMAGES[..., :1])[use]
    with pytest.raises(ValueError, match=r"shape \(4, 4, 1\): .* takes 3 channels"):
        grey()
    first = every_use(classifier(), IMAGES.transpose(0, 3, 1, 2))[use]
    with pytest.raises(ValueError, match=r"shape \(3, 4, 4\): .*transpose\(0, 2, 3, 1"):
        first()


@pytest.mark.long
@pytest.mark.parametrize("use", every_use(None, IMAGES))
def test_one_pixel_is_an_image_and_none_is_not(use):
    every_use(classifier(), IMAGES[:, :1, :1])[use]()
    with pytest.raises(ValueError, match=r"must have pixels.*0, 4, 3\)"):
        every_use(classifier(), IMAGES[:, :0])[use]()


# Networks.


def test_a_network_of_which_no_weight_has_an_input_is_refused():
    def apply(params, state, images):
        kernel = params["v"] / jnp.linalg.norm(params["v"])
        return images.mean((1, 2)) @ kernel

    normed = ju.freeze(ju.Function(apply, {"v": jnp.ones((3, 2))}))
    for call in (
        lambda: ju.second_moments(normed, IMAGES),
        lambda: ju.class_moments(normed, IMAGES, LABELS % 2, num_classes=2),
        lambda: ju.row_subspaces(normed, IMAGES, rank=1),
        lambda: class_passes(normed, IMAGES, 2),
    ):
        with pytest.raises(ValueError, match="No weight .* has an input.*v: it"):
            call()


@pytest.mark.parametrize("use", every_use(None, IMAGES))
@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (lambda x: (x, x), "returned a tuple.*logits alone"),
        (lambda x: {"logits": x}, "returned a dict.*logits alone"),
        (lambda x: jnp.stack([x, x]), r"of shape \[n, classes\]"),
    ],
)
def test_a_network_of_two_outputs_is_refused(use, outputs, words):
    def apply(params, state, images):
        return outputs(images.mean((1, 2)) @ params)

    both = ju.freeze(ju.Function(apply, jnp.ones((3, 3))))
    with pytest.raises((TypeError, ValueError), match=words):
        every_use(both, IMAGES)[use]()


def test_evaluate_inside_jit_is_refused():
    with pytest.raises(TypeError, match="traced.*outside jit"):
        jax.jit(lambda c: ju.evaluate(c, data(), [1]).retained)(classifier())


@pytest.mark.long
def test_everything_works_without_jit():
    whole = ju.second_moments(classifier(), IMAGES)
    with jax.disable_jit():
        for use, call in every_use(classifier(), IMAGES).items():
            assert call() is not None, use
        found = ju.second_moments(classifier(), IMAGES)
        subspaces = ju.subspaces(found, rank=1)
        tx, params = ju.project_to_null_space(subspaces), classifier().params
        updates, _ = tx.update(params, tx.init(params))
        leaked = ju.leakage(updates, subspaces, relative_to=params)
    assert max(map(float, jax.tree.leaves(leaked))) < 1e-6
    for ours, expected in zip(*map(jax.tree.leaves, (found, whole)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.long
def test_a_scanned_weight_keeps_its_input_without_jit():
    def apply(params, state, images):
        def step(x, kernel):
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(step, images.mean((1, 2)), params)[0]

    scanned = ju.freeze(ju.Function(apply, jnp.ones((2, 3, 3))))
    with jax.disable_jit():
        found = ju.second_moments(scanned, IMAGES)
    np.testing.assert_allclose(
        found.gram, ju.second_moments(scanned, IMAGES).gram, rtol=1e-5
    )


def frozen_with(argument, **options):
    """A network that gives ones in inference mode, twos in training."""
    source = f"""
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, {argument}):
        kernel = self.param("kernel", nn.initializers.ones, (3, 2))
        return x.mean((1, 2)) @ kernel * ({argument.partition("=")[0]} in TRAINING)
"""
    scope = {"nn": nn, "TRAINING": ("train", 7)}
    exec(source, scope)
    return ju.freeze(
        scope["Net"](), {"params": {"kernel": jnp.ones((3, 2))}}, **options
    )


def test_an_argument_without_a_known_value_is_asked_for():
    with pytest.raises(TypeError, match=r"needs stage.*freeze\(\.\.\., stage="):
        frozen_with("stage")
    frozen_with("stage=3")
    assert np.any(frozen_with("stage", stage=7)(IMAGES))


class Sowing(nnx.Module):
    """Holds a flag of its own, and sows."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.is_training = True

    def __call__(self, x):
        x = x.mean((1, 2))
        self.sow(nnx.Intermediate, "hidden", x)
        return self.linear(x) + 100 * self.is_training


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_an_nnx_module_sows_is_no_state_and_its_flags_are_those_of_inference():
    module = Sowing(nnx.Rngs(0))
    fresh = ju.freeze(module)
    module(IMAGES)
    used = ju.freeze(module)
    assert jax.tree.structure(used.state) == jax.tree.structure(fresh.state)
    assert np.abs(used(IMAGES)).max() < 50
    assert module.is_training
    assert sizes({"body": m, "head": m} if (m := _only(used)) else {}) == [6, 6]


def _only(c):
    leaves = jax.tree.leaves(
        ju.second_moments(c, IMAGES), is_leaf=lambda x: isinstance(x, ju.Moment)
    )
    return next(leaf for leaf in leaves if leaf is not None)


# Numbers.


@pytest.mark.parametrize(
    "classes",
    [[1.7], "37", [True], ["1"], [[1]], 3, [None], [np.array([1, 2])]],
    ids=repr,
)
def test_classes_that_are_no_integers_are_refused(classes):
    with pytest.raises(TypeError, match="classes must"):
        ju.sum_classes(moments(), classes)
    with pytest.raises(TypeError, match="classes must"):
        ju.class_moments(classifier(), IMAGES, LABELS, num_classes=3, classes=classes)


@pytest.mark.parametrize("count", [2, 4, 2**70])
def test_the_number_of_classes_is_that_of_the_logits(count):
    with pytest.raises(
        ValueError, match=rf"{count}.*3 logits|at most 2147483647; it is {count}"
    ):
        ju.class_moments(classifier(), IMAGES, LABELS % 2, num_classes=count)


def test_negative_moments_are_refused():
    whole = ju.second_moments(classifier(), IMAGES)
    negative = jax.tree.map(jnp.negative, whole)
    params = classifier().params
    for call in (
        lambda: ju.subspaces(negative, rank=1),
        lambda: ju.shrink_to_null_space(negative, damping=0.1).init(params),
        lambda: ju.drift(negative, params, params),
        lambda: ju.metrics.captured_energy(ju.subspaces(whole, rank=1), negative),
    ):
        with pytest.raises(ValueError, match="body: its gram is no sum of squares"):
            call()


def test_moments_and_images_may_be_closed_over_under_jit():
    whole, params = ju.second_moments(classifier(), IMAGES), classifier().params
    drift = jax.jit(lambda after: ju.drift(whole, params, after))(params)
    assert all(np.allclose(leaf, 0) for leaf in jax.tree.leaves(drift))
    images = jnp.asarray(IMAGES)

    @jax.jit
    def moments(params):
        return ju.second_moments(classifier().replace(params=params), images)

    for given, wanted in zip(
        *map(jax.tree.leaves, (moments(params), whole)), strict=True
    ):
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


def test_a_difference_of_moments_may_round_below_zero():
    whole = ju.second_moments(classifier(), IMAGES)
    nothing = jax.tree.map(lambda a, b: a - b * (1 - 1e-7), whole, whole)
    ju.subspaces(nothing, rank=1)


@pytest.mark.parametrize("side", [2**70, 10**6])
def test_noise_larger_than_memory_is_refused(side):
    with pytest.raises(ValueError, match="bytes.*fewer or smaller|at most 2147483647"):
        ju.noise_images(KEY, "uniform", 1, (side, side, 3))


@pytest.mark.parametrize("mean", [(125.3, 123.0, 113.9), -1.0, "grey", [[0.5]]])
def test_preprocess_is_in_units_of_pixels_in_the_unit_interval(mean):
    with pytest.raises(ValueError, match="Preprocess.*(by 255|one number a channel)"):
        ju.Preprocess(mean, 0.25)


# Anything in place of anything.


@pytest.mark.long
def test_malformed_calls_are_right_or_refused_in_a_sentence():
    """In a process of its own, where no test looks at types first."""
    script = Path(__file__).parents[1] / "malformed_core.py"
    done = subprocess.run(
        [sys.executable, script, "0", "117"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
