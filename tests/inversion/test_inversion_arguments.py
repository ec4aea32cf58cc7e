"""What an inversion refuses, in a sentence and before anything is computed."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_inversion import PREPROCESS, SHAPE, run, small
from typecheck import unchecked

import jaxunlearn as ju
from jaxunlearn.inversion import ImageAdam, ImagePrior, invert

KEY = jax.random.key(0)


def refused(error, words, classifier=None, labels=(0, 1), **options):
    given = {"image_shape": SHAPE, "key": KEY, "steps": 2} | options
    classifier = small(None) if classifier is None else classifier
    with pytest.raises(error, match=words) as caught:
        unchecked(invert)(classifier, labels, **given)
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classifier": nn.Dense(3)}, "classifier must be a Classifier; it is a Dense"),
        ({"prior": {"l2": 1.0}}, "prior must be a ImagePrior; it is a dict"),
        ({"student": "s"}, "student must be a Classifier or None; it is a str"),
        ({"key": 0}, r"key must be one jax.random.key\(seed\); it is int"),
        ({"steps": "10"}, "steps must be an integer; it is '10'"),
        ({"steps": True}, "steps must be an integer; it is True"),
        ({"batch_size": 2.0}, "batch_size must be an integer; it is 2.0"),
        ({"callback": 1}, "callback must be a function or None; it is a int"),
        ({"finished": ()}, "finished must be a MutableSequence or None; it is a tuple"),
        ({"optimizer": 0.1}, "optimizer must be an optax transformation"),
        ({"labels": ["a", "b"]}, "labels must be"),
    ],
)
def test_another_type_is_named(options, words):
    refused(TypeError, words, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 2**70}, "steps must be at most"),
        ({"labels": np.ma.masked_array([0, 1], [0, 1])}, "labels are a masked array"),
        ({"jitter": True}, "jitter must be 0 or more pixels; it is True"),
        (
            {"bounds": 1.0},
            "bounds must be .low, high. .* they are 1.0",
        ),
        ({"bounds": "01"}, "bounds must be .* they are '01'"),
        ({"bounds": (0, None)}, r"bounds must be .* they are \(0, None\)"),
        ({"bounds": (1e300, 1e301)}, "bounds must be .* they are"),
        ({"bounds": np.ma.masked_array([0.0, 1.0], [0, 1])}, "bounds must be"),
        ({"image_shape": 4}, r"image_shape must be \(h, w, c\); it is 4"),
        ({"image_shape": "442"}, "image_shape must be .* it is '442'"),
        ({"image_shape": (True, 4, 2)}, "image_shape must be .* it is .True, 4, 2"),
        (
            {"image_shape": (2**40, 2**20, 1)},
            "images of image_shape .* bytes",
        ),
        (
            {"start": [[1.0]]},
            r"start must be floating-point images of .*float64.1, 1.\.$",
        ),
        ({"prior": ImagePrior(moment=1.0)}, "moment is 1.0, and there are no moments"),
        (
            {"classifier": small(), "bounds": (-2.0, 2.0)},
            r"bounds are \(-2.0, 2.0\), and the classifier has a Preprocess, for which",
        ),
        (
            {"classifier": small(), "start": np.full((2, *SHAPE), 255, np.float32)},
            r"pixels in \[0, 1\]; these images range from 255 to 255",
        ),
        ({"image_shape": (4, 4, 3)}, r"cannot take images of image_shape \(4, 4, 3\)"),
    ],
)
def test_another_value_is_named(options, words):
    refused(ValueError, words, **options)


def test_lists_of_different_lengths_are_no_labels():
    refused((ValueError, TypeError), "labels must be one", labels=[[0], [1, 2]])


def test_inside_a_transformation_it_cannot_run():
    def inverted(key):
        return invert(small(None), [0, 1], image_shape=SHAPE, key=key, steps=2)

    with pytest.raises(TypeError, match="invert runs many programs .* inside jax.jit"):
        jax.jit(inverted)(KEY)


@pytest.mark.parametrize("value", ["0.1", True, (1.0,), np.zeros((9, 9))])
def test_weights_and_rates_are_numbers(value):
    with pytest.raises(TypeError, match="l2 must be a number; it is .{,99}$"):
        unchecked(ImagePrior)(l2=value)
    with pytest.raises(ValueError, match="learning_rate must be positive .{,99}$"):
        unchecked(ImageAdam)(value)


def test_a_schedule_that_returns_no_number_names_its_step():
    words = "at step 1 it returns nan"
    with pytest.raises(ValueError, match=words):
        ImageAdam(1.0, lambda step: "x" if step == 1 else 1.0).rates(3)


# Statistics that are not read.


class Written(nn.Module):
    """Divides by the variance and not by its root, which no BatchNorm does."""

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)
        x = (x - mean.value[None, None, None]) / variance.value[None, None, None]
        return nn.Dense(3)(x.reshape(len(x), -1))


def written():
    variables = Written().init(KEY, jnp.ones((1, *SHAPE)))
    return ju.freeze(Written(), variables, preprocess=PREPROCESS)


def test_statistics_that_are_not_read_are_named():
    with pytest.warns(
        UserWarning, match="leaves out batch_stats/mean, batch_stats/var"
    ):
        run(written(), steps=2)


def test_statistics_that_are_read_or_have_no_weight_are_no_matter():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(small(), steps=2)
        run(written(), steps=2, prior=ImagePrior(feature=0.0, total_variation=0.1))


@pytest.mark.long
def test_without_compilation_it_finds_the_same_images():
    compiled = run(small(), steps=2)
    with jax.disable_jit():
        plain = run(small(), steps=2)
    np.testing.assert_allclose(compiled, plain, atol=1e-5)


def test_a_start_may_be_a_tensor():
    torch = pytest.importorskip("torch")
    given = {"labels": [0], "image_shape": SHAPE, "key": jax.random.key(0), "steps": 1}
    start = torch.full((1, *SHAPE), 0.5, requires_grad=True)
    images = unchecked(invert)(small(), **given, start=start)
    same = invert(small(), **given, start=np.full((1, *SHAPE), 0.5, np.float32))
    np.testing.assert_array_equal(images, same)
