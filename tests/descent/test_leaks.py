"""What follows a projection in a chain, told by the first update."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import compilations

import jaxunlearn as ju
from jaxunlearn.descent import LeakageWarning

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(12, 4, 4, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, 12)


def logits(params, state, images):
    hidden = images.reshape(len(images), -1) @ params["hidden"]
    hidden = hidden + params["bias"][None]
    return jnp.tanh(hidden) @ params["head"]


def make(dtype=jnp.float32):
    rng = np.random.default_rng(1)
    shapes = {"hidden": (32, 16), "bias": (16,), "head": (16, 3)}
    params = {
        name: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, dtype)
        for name, shape in shapes.items()
    }
    return ju.freeze(ju.Function(logits, params))


CLASSIFIER = make()


@functools.cache
def moments():
    return ju.second_moments(CLASSIFIER, IMAGES)


@functools.cache
def projection():
    return ju.project_to_null_space(ju.subspaces(moments(), rank=8))


WEIGHTS = {"hidden": True, "bias": False, "head": True}
KINDS = {"hidden": "moves", "bias": "stays", "head": "moves"}


def chain(*transforms):
    return optax.chain(*transforms)


def partitioned(transform):
    transforms = {"moves": transform, "stays": optax.set_to_zero()}
    return optax.partition(transforms, KINDS)


def several(transform):
    return optax.MultiSteps(transform, 3)


def injected(transform):
    """With the chain made anew in every update."""
    make = lambda rate: chain(*transform(rate))  # noqa: E731
    return optax.inject_hyperparams(make)(rate=0.01)


WARMUP = optax.linear_schedule(0.0, 0.01, 5)


def last(p):
    return chain(optax.adam(0.01), p)


def first(p):
    return chain(p, optax.adam(0.01))


RIGHT = {
    "last": last,
    "with decay": lambda p: chain(optax.adamw(0.01), p),
    "of a tiny rate": lambda p: chain(optax.adam(1e-7), p),
    "of a huge rate": lambda p: chain(optax.adam(100.0), p),
    "before linear steps": lambda p: chain(
        *(p, optax.trace(0.9), optax.ema(0.9), optax.scale(-0.1))
    ),
    "before a norm": lambda p: chain(optax.adam(0.01), p, optax.clip_by_global_norm(1)),
    "inside schedule_free": lambda p: optax.contrib.schedule_free(
        chain(optax.sgd(1.0), p), 1.0
    ),
    "inside MultiSteps": lambda p: several(last(p)),
    "inside apply_if_finite": lambda p: optax.apply_if_finite(last(p), 3),
    "inside inject_hyperparams": lambda p: injected(lambda rate: (optax.adam(rate), p)),
    "masked": lambda p: chain(optax.adam(0.01), optax.masked(p, WEIGHTS)),
    "partitioned": lambda p: partitioned(last(p)),
    "after a search": lambda p: chain(optax.lbfgs(), p),
    "after polyak_sgd": lambda p: chain(optax.polyak_sgd(), p),
    "warming up": lambda p: chain(optax.adam(WARMUP), p),
    "a ridge": lambda p: chain(
        ju.shrink_to_null_space(moments(), damping=0.01),
        optax.adam(0.01),
    ),
    "none": lambda p: optax.adam(0.01),
}
WRONG = {
    "first": first,
    "before a clip": lambda p: chain(optax.sgd(1.0), p, optax.clip(1e-3)),
    "before weight decay": lambda p: chain(
        optax.sgd(0.01), p, optax.add_decayed_weights(-1e-3)
    ),
    "before signs": lambda p: chain(p, optax.scale_by_sign(), optax.scale(-0.01)),
    "before AdamW": lambda p: chain(p, optax.adamw(1e-5)),
    "inside MultiSteps": lambda p: several(first(p)),
    "inside apply_if_finite": lambda p: optax.apply_if_finite(first(p), 3),
    "inside inject_hyperparams": lambda p: injected(lambda rate: (p, optax.adam(rate))),
    "masked": lambda p: chain(optax.masked(p, WEIGHTS), optax.adam(0.01)),
    "partitioned": lambda p: partitioned(first(p)),
    "before schedule_free": lambda p: chain(p, optax.contrib.schedule_free_adamw(0.01)),
    "warming up": lambda p: chain(p, optax.adam(WARMUP)),
}


def unlearned(make, classifier=CLASSIFIER, steps=5, **options):
    given = classifier, IMAGES, LABELS, make(projection())
    return ju.unlearn(*given, steps=steps, key=KEY, **options).classifier


def warned(call):
    """Sentences of the warnings, and the result."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    assert {w.category for w in caught} <= {LeakageWarning}
    return [str(w.message) for w in caught], result


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_said_of_a_projection(name):
    unlearned(RIGHT[name])


@pytest.mark.core
@pytest.mark.parametrize(
    "name",
    [
        *[*WRONG][:3],
        *(pytest.param(name, marks=pytest.mark.long) for name in [*WRONG][3:]),
    ],
)
def test_a_warning_is_given_of_a_projection(name):
    sentences, _ = warned(lambda: unlearned(WRONG[name]))
    (sentence,) = sentences
    for words in ("the first update of", "projection last", "check=False"):
        assert words in sentence.lower().replace("check=false", "check=False")


@pytest.mark.core
def test_the_number_is_that_of_leakage():
    sentences, after = warned(lambda: unlearned(first, steps=1))
    subspaces = ju.subspaces(moments(), rank=8)
    change = jax.tree.map(lambda x, y: x - y, after.params, CLASSIFIER.params)
    shares = {k: v for k, v in ju.leakage(change, subspaces).items() if v is not None}
    worst = max(shares, key=shares.get)
    assert f"The first update of {worst} (and 1 more) lies to" in sentences[0]
    assert f" {float(shares[worst]):.2g} of its norm" in sentences[0]
    assert shares[worst] > 0.2


def test_it_is_the_first_update_and_not_a_later_one():
    sentences = [warned(lambda n=n: unlearned(first, steps=n))[0] for n in (1, 40)]
    assert sentences[0] == sentences[1]


@pytest.mark.core
def test_it_can_be_silenced():
    unlearned(first, check=False)


@pytest.mark.long
@pytest.mark.core
def test_it_changes_no_bit_and_compiles_no_second_step():
    """The first step by itself is the same program."""
    silent = unlearned(first, steps=30, check=False)
    with compilations() as compiled:
        _, checked = warned(lambda: unlearned(first, steps=30))
    assert len(compiled) <= 1
    assert "_advance" not in str(compiled)
    pairs = zip(*(jax.tree.leaves(c.params) for c in (silent, checked)), strict=True)
    assert all((x == y).all() for x, y in pairs)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_types_have_thresholds_of_their_own(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        classifier = make(dtype)
        unlearned(last, classifier)
        sentences, _ = warned(lambda: unlearned(first, classifier))
        assert len(sentences) == 1


@pytest.mark.long
def test_float64_sees_what_float32_does_not():
    def sentences(dtype):
        with jax.enable_x64(dtype == jnp.float64):
            classifier = make(dtype)
            own = ju.second_moments(classifier, IMAGES.astype(dtype))
            p = ju.project_to_null_space(ju.subspaces(own, rank=8))
            decay = optax.add_decayed_weights(1e-6)
            make_chain = lambda _: chain(optax.sgd(0.1), p, decay)  # noqa: E731
            return warned(lambda: unlearned(make_chain, classifier))[0]

    assert sentences(jnp.float64)
    assert not sentences(jnp.float32)


@pytest.mark.long
def test_several_devices():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    unlearned(last, mesh=mesh)
    sentences, _ = warned(lambda: unlearned(first, mesh=mesh))
    assert sentences == warned(lambda: unlearned(first))[0]


class Careless(ju.UNSC):
    """A method whose chain is in the wrong order."""

    def optimizer(self, projection):
        return optax.chain(projection, optax.adam(0.01))


@pytest.mark.long
@pytest.mark.parametrize("how", ["one by one", "vmap"])
def test_methods_and_sweeps_are_looked_at(how):
    train = ju.Data(IMAGES, np.arange(12) % 3)
    options = {"steps": 3, "subspace": "pooled"}
    for requests in ([[0]], [[0], [1]]):
        given = CLASSIFIER, train, requests

        def swept(kind, given=given):
            method = kind(energy=None, rank=8, **options)
            return warned(lambda: ju.sweep(*given, method, key=KEY, how=how))[0]

        assert swept(ju.UNSC) == []
        assert len(swept(Careless)) == 1
