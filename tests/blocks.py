"""A small problem for the baselines: nine classes, a bright block each."""

import functools

import flax.linen as nn
import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn.training.recipe import Recipe

CLASSES = 9
FORGOTTEN = 8
KEY = jax.random.key(7)


class Net(nn.Module):
    """Convolution, normalisation, a hidden layer, a head."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.relu(nn.Dense(24)(x.reshape(x.shape[0], -1)))
        return nn.Dense(CLASSES, name="head")(x)


def samples(seed, n=270):
    """Images of 6 x 6 pixels in [0, 1]."""
    rng = np.random.default_rng(seed)
    images, labels = rng.uniform(size=(n, 6, 6, 1)) * 0.6, np.arange(n) % CLASSES
    for image, label in zip(images, labels, strict=True):
        row, column = 2 * (label // 3), 2 * (label % 3)
        image[row : row + 2, column : column + 2] += 0.4
    return ju.Data(images.astype(np.float32), labels)


TRAIN, TEST = samples(0), samples(1)
FORGET, RETAIN = ju.split_by_class(TRAIN, [FORGOTTEN])
TASK = ju.Task(FORGET, RETAIN, [FORGOTTEN], num_classes=CLASSES)


@functools.cache
def trained():
    """A classifier that knows them all."""
    recipe = Recipe(epochs=8, batch_size=32, learning_rate=0.05)
    given = {"key": jax.random.key(0), "preprocess": ju.Preprocess(0.35, 0.25)}
    return ju.training.fit(Net(), TRAIN, recipe=recipe, **given)


def accuracies(classifier):
    """Acc_f and Acc_r on held-out samples."""
    evaluation = ju.evaluate(classifier, TEST, [FORGOTTEN])
    return evaluation.forgotten, evaluation.retained
