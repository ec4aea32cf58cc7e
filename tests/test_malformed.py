"""Calls drawn at random that hold something else: right, or refused in a sentence."""

import random
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sentences import outcome
from typecheck import unchecked

import jaxunlearn as ju
from jaxunlearn.inversion import ImageAdam, ImagePrior, invert
from jaxunlearn.training import Recipe, fit

KEY = jax.random.key(0)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(not train)(images.reshape(len(images), -1))
        return nn.Dense(3)(x)


def data(shape=(4, 4, 1), classes=3):
    images = np.random.default_rng(0).random((6, *shape)).astype(np.float32)
    return ju.Data(images, np.arange(6) % classes)


def classifier():
    return ju.freeze(Linear(), Linear().init(KEY, jnp.ones((1, 4, 4, 1))))


JUNK = (
    *(None, True, -1, 0, 2, 3.7, float("nan"), float("inf"), 2**31, 2**70, 1 + 2j),
    *("10", "", "abc", "x" * 5000, b"x", (), (1,), (0.0, 1.0), [], [1, 2, 3], ["a"]),
    *([[1], [1, 2]], {}, {"a": 1}, set(), object(), int, range(3), Linear, Linear()),
    *(np.zeros(3), np.zeros((2, 4, 4, 1)), np.int8(-3), np.arange(3) > 1, jnp.zeros(2)),
    *(np.ma.masked_array([1, 2], [0, 1]), np.array([2**63], np.uint64), np.array("a")),
    *(jax.random.split(KEY, 2), optax.sgd(0.1), Recipe(), ImagePrior(), data()),
    *(data((1, 1, 1)), data((3, 4, 4)), data(classes=6), ju.Preprocess([0.1, 0.2], 1)),
)
# What is given where nothing is wrong, and the options without.
CALLS = {
    Recipe: ({}, tuple(Recipe.__dataclass_fields__)),
    ImagePrior: ({}, tuple(ImagePrior.__dataclass_fields__)),
    ImageAdam: ({}, ("learning_rate", "schedule")),
    fit: (
        {"model": Linear(), "train": data(), "recipe": Recipe(epochs=1), "key": KEY},
        (
            *("preprocess", "validation", "checkpoint_every", "resume", "keep", "mesh"),
            *("callback", "log", "progress", "channels", "bath_size"),
        ),
    ),
    invert: (
        {
            "classifier": classifier(),
            "labels": [0, 1],
            "image_shape": (4, 4, 1),
            "key": KEY,
            "steps": 1,
        },
        (
            *("prior", "optimizer", "jitter", "bounds", "moments", "student", "start"),
            *("batch_size", "mesh", "transform", "finished", "progress", "callback"),
        ),
    ),
}


def draw(seed):
    """A call, one or two of whose arguments are something else."""
    rng = random.Random(seed)
    function = rng.choice([Recipe, ImagePrior, ImageAdam, *[fit, invert] * 3])
    given, options = CALLS[function]
    names = rng.sample([*given, *options], rng.choice([1, 1, min(2, len(options))]))
    return function, given | {name: rng.choice(others(name)) for name in names}


def others(name):
    """What a function of the caller's raises is the caller's."""
    called = name in ("callback", "log", "progress", "schedule")
    return [x for x in JUNK if not (called and callable(x))]


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 150, 30))
def test_what_is_no_argument_is_refused_in_a_sentence_or_right(first):
    for seed in range(first, first + 30):
        function, arguments = draw(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = outcome(unchecked(function), **arguments)
        words = f"call {seed} of {function.__name__}: {result}"
        assert result in ("right", "sentence"), words
