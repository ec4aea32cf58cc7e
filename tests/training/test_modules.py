"""Modules as people write them: what each has its own way of saying is training."""

import functools
import logging

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from test_training import KEY, assert_same, toy

import jaxunlearn as ju
from jaxunlearn.classifier.flax_network import LinenNetwork
from jaxunlearn.training import Recipe, fit

pytestmark = pytest.mark.long

RECIPE = Recipe(epochs=10, batch_size=10, learning_rate=0.1)


def hidden(images):
    return nn.Dense(6, name="hidden")(images.reshape(len(images), -1))


def logits(images, training, **options):
    """The network of all of them: with batch statistics in training alone."""
    x = nn.BatchNorm(not training, name="norm", **options)(hidden(images))
    return nn.Dense(3, name="last")(x)


class Train(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return logits(images, train)


class IsTrain(nn.Module):
    @nn.compact
    def __call__(self, images, is_train=True):
        return logits(images, is_train)


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, images, *, is_training):
        return logits(images, is_training)


class Training(nn.Module):
    @nn.compact
    def __call__(self, images, training: bool):
        return logits(images, training)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, images, deterministic=None):
        return logits(images, not deterministic)


class UsesAverage(nn.Module):
    @nn.compact
    def __call__(self, images, use_running_average):
        return logits(images, not use_running_average)


class Mode(nn.Module):
    @nn.compact
    def __call__(self, images, mode="train"):
        return logits(images, mode == "train")


class ModeWithoutDefault(nn.Module):
    @nn.compact
    def __call__(self, images, mode):
        return logits(images, mode == "train")


class ModeOfTest(nn.Module):
    @nn.compact
    def __call__(self, images, mode="test"):
        return logits(images, mode != "test")


class Axis(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return logits(images, train, axis_name="batch")


OTHERS = (
    *(IsTrain, IsTraining, Training, Deterministic, UsesAverage),
    *(Mode, ModeWithoutDefault, ModeOfTest, Axis),
)


@functools.cache
def plain_one():
    return fit(Train(), toy(), recipe=RECIPE, key=KEY)


@pytest.mark.parametrize("build", OTHERS)
def test_training_is_told_in_the_network_s_own_words(build):
    """So that batch statistics are taken in training and kept in evaluation."""
    model, plain = build(), plain_one()
    found = fit(model, toy(), recipe=RECIPE, key=KEY)
    assert_same(found, plain, rtol=1e-5, atol=1e-6)
    for a, b in zip(
        jax.tree.leaves(found.state), jax.tree.leaves(plain.state), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    images = toy(9, 1).images
    np.testing.assert_allclose(found(images), plain(images), rtol=1e-4, atol=1e-5)
    again = ju.freeze(model, ju.thaw(found))
    np.testing.assert_array_equal(again(images), found(images))


class Pooling(nn.Module):
    @nn.compact
    def __call__(self, images, mode="max"):
        assert mode == "max"
        return nn.Dense(3)(images.reshape(len(images), -1))


def test_a_mode_that_means_something_else_is_left_alone():
    model = Pooling()
    classifier = fit(model, toy(), recipe=Recipe(epochs=1), key=KEY)
    assert isinstance(classifier.network, LinenNetwork)
    assert classifier.network.training == classifier.network.evaluation == ()


class NNXAxis(nnx.Module):
    def __init__(self, rngs, axis_name):
        self.hidden = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, axis_name=axis_name, rngs=rngs)
        self.last = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.hidden(images.reshape(len(images), -1)))
        return self.last(x)


def test_an_nnx_network_may_name_an_axis_too():
    named, plain = (
        fit(NNXAxis(nnx.Rngs(0), name), toy(), recipe=RECIPE, key=KEY)
        for name in ("devices", None)
    )
    assert_same(named, plain, rtol=1e-5, atol=1e-6)
    assert abs(np.asarray(named.state["norm"]["mean"])).max() > 0.1


# What is returned and sown beside the logits.


class Auxiliary(nn.Module):
    kind: type = tuple

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(hidden(images))
        logits = nn.Dense(3, name="last")(x)
        if not train:
            return logits
        extra = nn.Dense(3, name="extra")(x)
        return (
            {"main": logits, "extra": extra} if self.kind is dict else (logits, extra)
        )


class Single(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3, name="last")(nn.relu(hidden(images)))


def test_auxiliary_outputs_of_training_have_no_part_in_the_loss_and_that_is_said(
    caplog,
):
    recipe = Recipe(epochs=10, batch_size=10, weight_decay=0.0)
    found = fit(Auxiliary(), toy(), recipe=recipe, key=KEY)
    plain = fit(Single(), toy(), recipe=recipe, key=KEY)
    for name in ("hidden", "last"):
        np.testing.assert_allclose(
            found.params[name]["kernel"], plain.params[name]["kernel"], rtol=1e-5
        )
    first = Auxiliary().init(KEY, toy().images, train=True)["params"]["extra"]
    assert found.params["extra"]["kernel"].shape == first["kernel"].shape
    assert caplog.messages[0].startswith("In training the network returns 2 outputs.")


def test_outputs_without_a_first_one_are_refused():
    words = r"must return logits \[10, 3\], alone or .* returns \{'extra': 'float32\[10"
    with pytest.raises(ValueError, match=words):
        fit(Auxiliary(dict), toy(), recipe=RECIPE, key=KEY)


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(hidden(images))
        self.sow("intermediates", "hidden", x)
        self.sow("losses", "norm", (x**2).mean())
        return nn.Dense(3, name="last")(x)


class SowingNNX(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 6, rngs=rngs)
        self.last = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, images):
        x = self.hidden(images.reshape(len(images), -1))
        self.sow(nnx.Intermediate, "activations", x)
        return self.last(x)


def test_what_a_linen_network_sows_changes_nothing():
    found = fit(Sowing(), toy(), recipe=RECIPE, key=KEY)
    assert_same(found, fit(Single(), toy(), recipe=RECIPE, key=KEY))
    assert "intermediates" not in found.state
    images = toy(9, 1).images
    again = ju.freeze(Sowing(), ju.thaw(found))
    np.testing.assert_array_equal(again(images), found(images))


@pytest.mark.filterwarnings("ignore:.*sow:DeprecationWarning")
@pytest.mark.parametrize("used", [False, True])
def test_what_an_nnx_network_sows_changes_nothing(used):
    model, images = SowingNNX(nnx.Rngs(0)), toy(9, 1).images
    if used:
        model(images)
    frozen = ju.freeze(model)
    same = SowingNNX(nnx.Rngs(0))(images)
    np.testing.assert_allclose(frozen(images), same, rtol=1e-5)
    found = fit(model, toy(), recipe=RECIPE, key=KEY)
    assert ju.evaluate(found, toy(300, 1), ()).retained > 85
    assert jax.tree.structure(found) == jax.tree.structure(frozen)
    thawed = ju.thaw(found)
    np.testing.assert_allclose(thawed(images), found(images), rtol=1e-5)


# Options of the call.


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, images, scale, train=False):
        return logits(scale * images, train)


def test_call_options_are_passed_on_and_part_of_the_training(tmp_path):
    options = {"recipe": Recipe(epochs=2, batch_size=10), "key": KEY}
    found = fit(Scaled(), toy(), scale=0.5, **options)
    data = ju.Data(0.5 * toy().images, toy().labels)
    assert_same(found, fit(Train(), data, **options), rtol=1e-5, atol=1e-6)
    options |= {"checkpoint_dir": tmp_path, "resume": True}
    fit(Scaled(), toy(), scale=0.5, **options)
    with pytest.raises(ValueError, match="another training, which differs in network"):
        fit(Scaled(), toy(), scale=0.25, **options)


def test_a_missing_or_an_unknown_option_is_named():
    with pytest.raises(TypeError, match=r"needs scale, .* say it, as .*\(.*scale="):
        fit(Scaled(), toy(), recipe=RECIPE, key=KEY)
    with pytest.raises(TypeError, match="takes no argument 'epochs'"):
        fit(Train(), toy(), recipe=RECIPE, key=KEY, epochs=3)


def test_classes_without_a_sample_are_named(caplog):
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(5)(images.reshape(len(images), -1))

    data = ju.Data(toy().images, toy().labels, ("ant", "bee", "cat", "dog"))
    with caplog.at_level(logging.WARNING, logger="jaxunlearn.training"):
        fit(Wide(), data, recipe=Recipe(epochs=1), key=KEY)
    (message,) = caplog.messages
    assert "no sample of 2 of the network's 5 classes (3 (dog), 4), which" in message
