"""Calls with one or two arguments replaced by something else, drawn by their number.

`python malformed_core.py START STOP` makes them, and prints those whose error is
neither nothing nor a sentence of the library's own.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from sentences import outcome

import jaxunlearn as ju

RNG = np.random.default_rng(0)
IMAGES = RNG.random((6, 4, 4, 3), np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])
KEY = jax.random.key(0)


def network(params, state, images):
    x = jnp.tanh(images.mean((1, 2)) @ params["body"])
    return x @ params["head"]


@functools.cache
def classifier():
    drawn = np.random.default_rng(1)
    params = {
        "body": jnp.asarray(drawn.normal(size=(3, 4)), jnp.float32),
        "head": jnp.asarray(drawn.normal(size=(4, 3)), jnp.float32),
    }
    return ju.freeze(ju.Function(network, params))


@functools.cache
def moments():
    return ju.class_moments(classifier(), IMAGES, LABELS, num_classes=3)


def pooled():
    return ju.sum_classes(moments(), [0, 2])


def data():
    return ju.Data(IMAGES, LABELS)


ODD = {
    "nothing": lambda: None,
    "a number": lambda: 3,
    "a negative": lambda: -1,
    "a huge integer": lambda: 2**70,
    "a fraction": lambda: 1.7,
    "not a number": lambda: np.nan,
    "an infinity": lambda: np.inf,
    "a truth": lambda: True,
    "a string": lambda: "37",
    "an empty list": list,
    "a tuple of images": lambda: (IMAGES, IMAGES),
    "a list of pixels": lambda: IMAGES.tolist(),
    "a dict": lambda: {"image": IMAGES, "label": LABELS},
    "images": lambda: IMAGES,
    "one image": lambda: IMAGES[0],
    "images of NaN": lambda: IMAGES * np.nan,
    "masked images": lambda: np.ma.masked_less(IMAGES, 0.5),
    "objects": lambda: np.array([object()] * 6),
    "text": lambda: np.full((6, 4, 4, 3), "a"),
    "labels": lambda: LABELS,
    "data": data,
    "a classifier": classifier,
    "params": lambda: classifier().params,
    "moments": moments,
    "a function": lambda: network,
    "a key": lambda: KEY,
    "an old key": lambda: jax.random.PRNGKey(0),
    "devices": jax.devices,
}

CALLS = {
    ju.second_moments: (classifier, lambda: IMAGES, {"batch_size": 2, "mesh": None}),
    ju.class_moments: (
        *(classifier, lambda: IMAGES, lambda: LABELS),
        {"num_classes": 3, "classes": (1,), "batch_size": 2, "mesh": None},
    ),
    ju.output_moments: (
        *(classifier, lambda: IMAGES),
        {
            **{"key": KEY, "labels": LABELS, "exclude": (), "batch_size": 2},
            "mesh": None,
        },
    ),
    ju.reset_toward: (
        *(lambda: classifier().params, lambda: classifier().params, pooled),
        {"damping": 0.1},
    ),
    ju.project_change: (
        *(lambda: classifier().params, lambda: classifier().params, pooled),
        {"damping": 0.1},
    ),
    ju.row_subspaces: (classifier, lambda: IMAGES, {"rank": 1, "batch_size": 2}),
    ju.layer_inputs: (classifier, lambda: IMAGES, {}),
    ju.layer_table: (classifier, lambda: IMAGES, {}),
    ju.evaluate: (classifier, data, lambda: [1], {"batch_size": 2, "mesh": None}),
    ju.sum_classes: (moments, lambda: [1], {}),
    ju.subspaces: (moments, {"rank": 1, "mesh": None}),
    ju.shrink_to_null_space: (moments, {"damping": 0.1}),
    ju.drift: (moments, lambda: classifier().params, lambda: classifier().params, {}),
    ju.augmented_images: (
        *(classifier, lambda: IMAGES, lambda: 3),
        {"key": KEY, "bounds": (0.0, 1.0)},
    ),
    ju.noise_images: (
        *(lambda: KEY, lambda: "uniform", lambda: 2, lambda: (4, 4, 3)),
        {"preprocess": None},
    ),
    ju.freeze: (
        lambda: ju.Function(network, classifier().params),
        {"preprocess": None},
    ),
    ju.thaw: (classifier, {}),
}


def malformed(seed):
    """A call with one or two of its arguments replaced."""
    rng = np.random.default_rng(seed)
    function = list(CALLS)[seed % len(CALLS)]
    *given, options = CALLS[function]
    places = [*range(len(given)), *options]
    chosen = rng.choice(len(places), rng.integers(1, 3), replace=True)
    kinds = {places[i]: str(rng.choice(list(ODD))) for i in chosen}
    arguments = [
        ODD[kinds[i]]() if i in kinds else make() for i, make in enumerate(given)
    ]
    options = {k: ODD[kinds[k]]() if k in kinds else v for k, v in options.items()}
    return function, arguments, options, kinds


def main(start, stop):
    """Print the raw errors, and how many of each outcome there were."""
    outcomes = []
    for seed in range(start, stop):
        function, arguments, options, kinds = malformed(seed)
        outcomes.append(outcome(function, *arguments, **options))
        if outcomes[-1] not in ("right", "sentence"):
            print(f"{seed}: {function.__name__} {kinds}: {outcomes[-1]}")
    right, sentences = (outcomes.count(kind) for kind in ("right", "sentence"))
    print(f"{right} right, {sentences} sentences, of {len(outcomes)}")
    return right + sentences == len(outcomes)


if __name__ == "__main__":
    sys.exit(0 if main(*map(int, sys.argv[1:])) else 1)
