"""Random malformed calls, from a seed: right, refused in a sentence, or raw.

    python tests/malformed_requests.py SEED COUNT

Prints the raw ones, and how many calls of each kind went how.
"""

import collections
import random
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sentences import outcome

import jaxunlearn as ju

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4, 4, 2)).astype(np.float32)
Y = np.arange(12) % 3
PARAMS = {"w": jnp.asarray(RNG.normal(size=(32, 3)), "float32"), "b": jnp.zeros(3)}


def logits(params, state, images):
    return images.reshape(len(images), -1) @ params["w"] + params["b"][None]


C = ju.freeze(ju.Function(logits, PARAMS))
DATA = ju.Data(X, Y)
NAMED = ju.Data(X, Y, ("ant", "bee", "wasp"))
TASK = ju.Task(*ju.split_by_class(DATA, [0]), [0], num_classes=3)
SGD = optax.sgd(0.1)

# What nobody asked for, in place of anything.
ODD = [
    *(None, True, "x", "37", 3, -1, 0, 2**70, 10**400, 1.7, float("nan"), 1j, b"x"),
    *([], (), {}, object(), len, int, ju, [None], {"images": 1}, range(10**9)),
    *(np.ones(3), np.ones((12, 4, 4, 2)), jnp.ones((2, 2)), np.array(["a"])),
    *(np.array([None]), np.datetime64("2020"), "long" * 1000),
]
# What people plausibly mean.
LIKELY = {
    "classifier": [
        *(PARAMS, logits, (C, C), C.replace(params={}), C.replace(params=None)),
        C.replace(params={"w": PARAMS["w"] * np.nan, "b": PARAMS["b"]}),
        C.replace(params={"w": PARAMS["w"][:5], "b": PARAMS["b"]}),
        ju.freeze(ju.Function(lambda p, s, x: (x, x), PARAMS)),
        ju.freeze(ju.Function(logits, PARAMS), preprocess=ju.Preprocess(0.5, 0.5)),
    ],
    "images": [
        *(X[..., :1], X[0], X.astype(int), X.tolist(), X.astype(">f4"), X * np.nan),
        *(X[:0], X.transpose(0, 3, 1, 2), X.astype(complex), X[:, :3], (X, Y), DATA),
        *(np.ma.masked_array(X, X > 0), X.astype(object), "cat.png", X[:, :0]),
    ],
    "targets": [
        *(Y.tolist(), Y[:5], Y + 1, Y - 1, Y.astype(float), np.eye(3)[Y], Y[:, None]),
        *(np.eye(4)[Y], Y > 0, Y.astype(object), 2**32 + Y, ["0"] * 12, DATA),
        *(Y.astype(">i4"), np.full((12, 3), np.nan), np.ma.masked_array(Y, Y > 0)),
    ],
    "optimizer": [
        *(optax.sgd, optax.MultiSteps(SGD, 2), optax.contrib.sam(SGD, SGD), "adam"),
        *((SGD, SGD), optax.masked(SGD, {"w": True}), optax.sgd("0.1")),
        optax.GradientTransformation(len, len),
    ],
    "key": [0, jax.random.PRNGKey(0), jax.random.split(KEY), np.zeros(2, "u4")],
    "steps": ["3", 2.0, 2**70, np.int64(2)],
    "batch_size": ["3", 2**70, 2.5, 10**9],
    "loss": [lambda x, t: x.mean(), lambda x: x, lambda x, t: None, lambda x, t: 1 / 0],
    "augment": [lambda x: x, lambda k, x: x[:1], lambda k, x: None, "crop-flip"],
    "train": [(X, Y), X, {"images": X}, ju.Data(X[:0], Y[:0]), ju.Data(X, Y + 5)],
    "requests": [
        *("each", "bee", [True], [[1.7]], [["37"]], [[0, 0]], ["bee"], ["bee", "ant"]),
        *([0, 1], [[0], [0]], [[0, 1, 2]], [[]], [[-1]], [[2**70]], [["hornet"]]),
        *([range(10**9)], [["number:1"]], [b"bee"], np.array([[0], [1]])),
    ],
    "method": [ju.UNSC, "unsc", ju.Retrain(), lambda c, t, key: c],
    "validation": [(X, Y), DATA, ju.Data(X[:, :3], Y), ju.Data(X, Y + 1)],
    "grid": [[0.1], "0.1", 0.1, [None, 0.1], [-1], ["a"], [[0.1, 0.2]]],
    "mesh": [jax.devices(), "data"],
    "progress": ["bars", 3],
    "task": [(X, Y), DATA, C],
    "learning_rate": ["0.1", -1, np.float32(0.1)],
    "projection": ["soft", "ridge"],
    "energy": ["0.9", 0, 2],
    "rank": ["3", 2.5],
    "damping": ["1", 0],
    "subspace": ["pooled", "x"],
    "how": ["vmap", "pmap"],
    "images_per_class": ["3", 0],
    "inversion_steps": ["3", 2.0],
    "inversion_rate": ["0.1", 0],
    "prior": [{"l2": 1.0}, ju.ImagePrior(l2=1.0)],
    "jitter": ["1", -1],
    "stand_in": ["uniform", "retained", "augmented"],
    "start": ["forget", "auto", "images", None],
}


def unlearn(**changes):
    given = {"classifier": C, "images": X, "targets": Y, "optimizer": SGD}
    ju.unlearn(**{**given, "steps": 1, "key": KEY, **changes})


def forget(**changes):
    train = NAMED if changes.get("validation") is None else DATA
    given = {"classifier": C, "train": train, "requests": [[0]], "key": KEY}
    if "grid" in changes:
        given["validation"] = DATA
    ju.forget(**{"method": ju.UNSC(steps=1), **given, **changes})


def sweep(**changes):
    given = {"classifier": C, "train": NAMED, "requests": [[0], [1]], "key": KEY}
    ju.sweep(**{"method": ju.UNSC(steps=1), **given, **changes})


OWN = ("classifier", "task", "key", "mesh", "progress")


def calling(kind, **few):
    """A method of this kind, made with some of the changes and called with others."""

    def call(**changes):
        fields = {name: x for name, x in changes.items() if name not in OWN}
        given = {name: x for name, x in changes.items() if name in OWN}
        made = kind(**{**few, **fields})
        made(**{"classifier": C, "task": TASK, "key": KEY, **given})

    call.__name__ = kind.__name__
    return call


FIELDS = "learning_rate steps batch_size augment"
RULES = "projection energy rank damping"
INVERSION = (
    "images_per_class inversion_steps inversion_rate prior jitter stand_in start"
)
COVARNAV = {"steps": 1, "inversion_steps": 1, "images_per_class": 1}
ARGUMENTS = {
    unlearn: "classifier images targets optimizer key steps batch_size loss augment "
    "mesh progress",
    forget: "method classifier train requests key validation grid mesh progress",
    sweep: "method classifier train requests key mesh progress how",
    calling(ju.UNSC, steps=1): f"{' '.join(OWN)} {FIELDS} {RULES} subspace",
    calling(ju.CovarNav, **COVARNAV): f"{' '.join(OWN)} {INVERSION} {RULES}",
    calling(ju.Unprojected, steps=1): f"{' '.join(OWN)} {FIELDS}",
    calling(ju.Retrain): "classifier task key",
}


def outcomes(seed, count):
    rng = random.Random(seed)
    counts = {call.__name__: collections.Counter() for call in ARGUMENTS}
    for number in range(count):
        call = list(ARGUMENTS)[number % len(ARGUMENTS)]
        name = rng.choice(ARGUMENTS[call].split())
        value = rng.choice(LIKELY[name] if rng.random() < 0.7 else ODD)
        result = outcome(call, **{name: value})
        if result not in ("right", "sentence"):
            print(f"{call.__name__} {name}={value!r:.80}: {result}", flush=True)
            result = "raw"
        counts[call.__name__][result] += 1
    return {name: dict(counted) for name, counted in counts.items()}


if __name__ == "__main__":
    print(outcomes(*map(int, sys.argv[1:])))
