"""A projected method that ends by its certificate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju

KEY = jax.random.key(1)


def logits(params, state, images):
    x = jnp.tanh(images.reshape(len(images), -1) @ params["first"])
    return x @ params["last"] + params["bias"][None]


@functools.cache
def problem():
    """A network as it was drawn, and a class of four to forget."""
    rng = np.random.default_rng(0)
    shapes = {"first": (12, 8), "last": (8, 4), "bias": (4,)}
    params = {
        name: jnp.asarray(rng.normal(size=shape) / 2, jnp.float32)
        for name, shape in shapes.items()
    }
    images = rng.normal(size=(40, 3, 4, 1)).astype(np.float32)
    data = ju.Data(images, np.arange(40) % 4)
    classifier = ju.freeze(ju.Function(logits, params))
    forget, retain = ju.split_by_class(data, [3])
    return classifier, data, ju.Task(forget, retain, [3], num_classes=4)


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize(
    "options",
    [
        {"projection": "ridge"},
        {"subspace": "pooled", "energy": None, "rank": 4},
    ],
)
def test_steps_end_by_the_moments_of_the_retained_inputs(options):
    """Whatever the projection; biases stay, so that nothing is left uncertified."""
    classifier, _, task = problem()
    method = ju.UNSC(learning_rate=0.3, steps=60, damping=0.1, **options)
    free, result = (
        m(classifier, task, key=KEY)
        for m in (method, method.replace(drift_budget=0.05))
    )
    moments = ju.second_moments(classifier, task.retain.images)
    ends = [
        max(
            map(
                float,
                jax.tree.leaves(
                    ju.drift(moments, classifier.params, r.classifier.params)
                ),
            )
        )
        for r in (free, result)
    ]
    assert ends[1] <= 0.05 < ends[0]
    trace = result.trace
    assert max(trace.drift.values()) == pytest.approx(ends[1], rel=1e-4)
    made = len(trace.losses)
    assert 0 < made < 60
    assert trace.ended.startswith(f"After {made} steps: with one more, the drift of ")
    np.testing.assert_allclose(trace.losses, free.trace.losses[:made], rtol=1e-4)
    # New labels ask for a pass over the forgotten samples, too.
    assert trace.samples_read["forget"] == 10 + 10 * (made + 1)
    assert not np.any(result.classifier.params["bias"] - classifier.params["bias"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"drift_budget needs the moments.*\(projection=\"hard\"\).*\"pooled\""),
        ({"projection": "none"}, "drift_budget needs the moments"),
        ({"subspace": "pooled", "drift_budget": 0.0}, "drift_budget must be positive"),
    ],
)
def test_a_method_that_keeps_no_moments_takes_no_budget(options, words):
    with pytest.raises(ValueError, match=words):
        ju.UNSC(**{"drift_budget": 0.1, **options})


def test_several_requests_with_a_budget_are_refused_before_anything_is_computed():
    classifier, data, _ = problem()
    method = ju.UNSC(projection="ridge", drift_budget=0.1)
    with pytest.raises(ValueError, match="one request at a time, and there are 2"):
        ju.forget(method, classifier, data, [[0], [1]], key=KEY)
