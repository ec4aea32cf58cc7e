"""What a training refuses, in a sentence and before anything is computed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import KEY, SHORT, Linear, toy
from typecheck import unchecked

import jaxunlearn as ju
from jaxunlearn.tasks import Data
from jaxunlearn.training import Recipe, fit

PREPROCESS = ju.Preprocess(0.5, 0.25)


def pixels(shape, n=6, value=0.5):
    return Data(np.full((n, *shape), value, np.float32), np.arange(n) % 3)


def refused(error, words, model=None, train=None, **options):
    given = {"recipe": SHORT, "key": KEY} | options
    with pytest.raises(error, match=words) as caught:
        unchecked(fit)(model or Linear(), train or toy(), **given)
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"train": (toy().images, toy().labels)},
            "train must be a Data; it is a tuple",
        ),
        ({"validation": toy().images}, "validation must be a Data or None; .* ndarray"),
        ({"recipe": {"epochs": 3}}, "recipe must be a Recipe; it is a dict"),
        (
            {"preprocess": (0.5, 0.25)},
            "preprocess must be a Preprocess or None",
        ),
        ({"key": 0}, r"key must be one jax.random.key\(seed\); it is int"),
        ({"callback": "bar"}, "callback must be a function or None; it is a str"),
        ({"log": {}}, "log must be a function or None; it is a dict"),
        ({"checkpoint_dir": 3}, "checkpoint_dir must be the path of a folder; it is 3"),
        ({"checkpoint_dir": ""}, "checkpoint_dir must be the path .* it is ''"),
        (
            {"checkpoint_dir": "never", "checkpoint_every": "10"},
            "checkpoint_every must be an integer; it is '10'",
        ),
        (
            {"checkpoint_dir": "never", "keep": True},
            "keep must be an int.* is True",
        ),
        ({"channels": "1"}, "channels must be an integer; it is '1'"),
        ({"model": Linear}, "model must be a Flax linen or NNX module"),
    ],
)
def test_another_type_is_named(options, words):
    refused(TypeError, words, **options)


def test_a_mesh_that_is_none_is_refused():
    refused(ValueError, r"mesh must be a jax.sharding.Mesh .* it is \(2,\)", mesh=(2,))


def test_inside_a_transformation_it_cannot_run():
    with pytest.raises(TypeError, match="fit runs many programs .* inside jax.jit"):
        jax.jit(lambda key: fit(Linear(), toy(), recipe=SHORT, key=key).params)(KEY)


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 8, 8), r"images of train must .* \(6, 3, 8, 8\).* 8 channels.*0, 2, 3, 1"),
        ((9, 9, 9), "which would be 9 channels; say channels=9 if they are"),
    ],
)
def test_an_axis_that_is_hardly_of_channels_is_refused_unless_it_is_said(shape, words):
    refused(ValueError, words, train=pixels(shape))
    fit(Linear(), pixels(shape), recipe=SHORT, key=KEY, channels=shape[-1])


def test_pixels_outside_the_range_of_a_preprocess_are_refused():
    bytes_as_floats = pixels((2, 2, 1), value=255.0)
    words = r"floats are pixels in \[0, 1\]; these images range from 255 to 255"
    refused(ValueError, words, train=bytes_as_floats, preprocess=PREPROCESS)
    given = {"validation": bytes_as_floats, "preprocess": PREPROCESS}
    refused(ValueError, words, train=pixels((2, 2, 1)), **given)


def test_validation_images_are_of_the_same_shape():
    words = r"train have shape \(2, 2, 1\) and those of validation \(4, 4, 1\)"
    refused(ValueError, words, validation=pixels((4, 4, 1)))


def test_names_of_classes_that_have_no_logit_are_refused():
    named = Data(toy().images, toy().labels, ("a", "b", "c", "d"))
    refused(ValueError, "names 4 classes and the network has 3 logits", train=named)


class Pooled(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.max_pool(nn.Conv(2, (3, 3), padding="VALID")(images), (2, 2))
        return nn.Dense(3)(x.reshape(len(x), -1))


class Pair(nn.Module):
    @nn.compact
    def __call__(self, images):
        logits = Linear()(images)
        return logits, logits


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Pooled(), r"cannot be trained on images of shape \(1, 1, 1\) \("),
        (Pair(), r"\(The network must return logits of shape .* returned a tuple.*\)"),
    ],
)
def test_a_network_that_cannot_take_the_images_is_told(model, words):
    refused(ValueError, words, model=model, train=pixels((1, 1, 1)))


def test_an_image_of_one_pixel_is_trained_on():
    classifier = fit(Linear(), pixels((1, 1, 1)), recipe=SHORT, key=KEY)
    assert classifier(jnp.zeros((2, 1, 1, 1))).shape == (2, 3)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"crop_padding": 3}, "crop_padding is 3 pixels, and the images are 2 x 2"),
        ({"epochs": 2**70}, r"which makes .*e\+\d\d steps .* at most 134,217,728"),
    ],
)
def test_a_recipe_that_the_data_do_not_bear_is_refused(recipe, words):
    refused(ValueError, words, recipe=Recipe(**recipe))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("epochs", "10", "must be an integer; it is '10'"),
        ("epochs", True, "must be an integer; it is True"),
        ("epochs", 1.5, "must be an integer; it is 1.5"),
        ("learning_rate", "0.1", "must be a number; it is '0.1'"),
        ("flip", 1, "must be true or false; it is 1"),
        ("milestones", 60, "must be a list with a number in each place; it is 60"),
        ("patience", "two", "must be an integer or None; it is 'two'"),
    ],
)
def test_a_recipe_of_other_types_is_refused(field, value, words):
    with pytest.raises(TypeError, match=f"Recipe.{field} {words}"):
        unchecked(Recipe)(**{field: value})


def test_numbers_of_numpy_are_numbers():
    given = {"epochs": np.int64(2), "learning_rate": np.float32(0.5)}
    recipe = unchecked(Recipe)(**given, milestones=[1])
    assert recipe == Recipe(epochs=2, learning_rate=0.5, milestones=(1.0,))


@pytest.mark.long
def test_without_compilation_it_trains_to_the_same_parameters():
    recipe = Recipe(epochs=1, batch_size=15, crop_padding=1, flip=True)
    compiled = fit(Linear(), toy(), recipe=recipe, key=KEY)
    with jax.disable_jit():
        plain = fit(Linear(), toy(), recipe=recipe, key=KEY)
    for a, b in zip(
        jax.tree.leaves(compiled.params), jax.tree.leaves(plain.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
