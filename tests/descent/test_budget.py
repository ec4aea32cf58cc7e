"""A descent with a drift budget ends where the last step within it ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.descent.budget import Budget, CertificateWarning

KEY = jax.random.key(3)
# More than one chunk.
STEPS = 40


def logits(params, state, images):
    x = jnp.tanh(images.reshape(len(images), -1) @ params["first"])
    return x @ params["last"]


@functools.cache
def problem():
    """A network without biases, images, new labels, and moments of other images."""
    rng = np.random.default_rng(0)
    params = {"first": rng.normal(size=(6, 5)), "last": rng.normal(size=(5, 4))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) / 2, params)
    images = rng.normal(size=(30, 2, 3, 1)).astype(np.float32)
    classifier = ju.freeze(ju.Function(logits, params))
    moments = ju.second_moments(classifier, images[12:])
    return classifier, images[:12], np.arange(12) % 4, moments


def run(steps=STEPS, eps=None, moments=None, **options):
    classifier, images, labels, own = problem()
    options.setdefault("optimizer", optax.sgd(0.05, momentum=0.9))
    if eps is not None:
        options["drift_budget"] = (own if moments is None else moments, eps)
    optimizer = options.pop("optimizer")
    given = {"steps": steps, "key": KEY, "batch_size": 4}
    return ju.unlearn(classifier, images, labels, optimizer, **given, **options)


def worst(result):
    classifier, _, _, moments = problem()
    drifts = ju.drift(moments, classifier.params, result.classifier.params)
    return max(map(float, jax.tree.leaves(drifts)))


def same(found, expected):
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    return all(np.allclose(*pair, rtol=1e-5, atol=1e-6) for pair in pairs)


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("path", ["steps", "loop"])
@pytest.mark.parametrize("eps", [0.05, 0.4])
def test_steps_end_before_the_budget_is_exceeded(eps, path, monkeypatch):
    """On the step, wherever in a chunk that is; the classifier is that step's."""
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: path == "steps")
    result = run(eps=eps)
    made = len(result.trace.losses)
    assert 0 < made < STEPS
    assert worst(result) <= eps
    assert result.trace.drift.keys() == {"first", "last"}
    assert max(result.trace.drift.values()) == worst(result)
    before, beyond = run(made), run(made + 1)
    assert same(result.classifier.params, before.classifier.params)
    np.testing.assert_allclose(result.trace.losses, before.trace.losses, rtol=1e-5)
    assert worst(beyond) > eps
    assert result.trace.ended.startswith(f"After {made} steps: with one more, ")
    assert f"have been {worst(beyond):.3g}"[:-1] in result.trace.ended
    assert result.trace.ended.endswith(f"and the budget is {eps}.")
    assert result.trace.samples_read == {"forget": 4 * (made + 1), "retain": 0}


@pytest.mark.core
def test_a_budget_that_is_not_used_up_changes_nothing():
    result, free = run(7, eps=1e3), run(7)
    assert same(result.classifier.params, free.classifier.params)
    assert result.trace.ended == free.trace.ended == ""
    assert free.trace.drift == {}
    assert max(result.trace.drift.values()) == worst(result) > 0
    assert len(result.trace.losses) == 7


def test_a_first_step_beyond_the_budget_is_not_made():
    result = run(eps=1e-3, optimizer=optax.sgd(10.0))
    assert same(result.classifier.params, problem()[0].params)
    assert result.trace.ended.startswith("After 0 steps: ")
    assert len(result.trace.losses) == 0


def test_only_steps_that_are_made_are_told_of():
    told, stages = [], []
    result = run(
        eps=0.05,
        callback=lambda step, loss: told.append(step),
        progress=lambda *stage: stages.append(stage),
    )
    assert told == list(range(len(result.trace.losses)))
    assert stages[-1] == ("steps", STEPS, STEPS)


@pytest.mark.core
def test_rounding_does_not_break_the_promise():
    """A layer a little beyond is scaled back, another stays as it is to the bit."""
    classifier, _, _, moments = problem()
    moved = {
        name: leaf + jnp.float32(0.01) * np.float32(name == "first")
        for name, leaf in classifier.params.items()
    }
    moved["last"] = moved["last"] * jnp.float32(1.001)
    first = ju.drift(moments, classifier.params, moved)["first"]
    eps = float(first) * (1 - 1e-5)
    settled, drifts = Budget((moments, eps), classifier.params).settled(moved)
    assert eps * (1 - 1e-4) < drifts["first"] <= eps
    assert np.array_equal(settled["last"], moved["last"])
    assert np.allclose(settled["first"], moved["first"], rtol=1e-4, atol=1e-6)


@pytest.mark.core
def test_a_weight_without_a_moment_that_moves_is_warned_of_once():
    moments = {**problem()[3], "last": None}
    with pytest.warns(CertificateWarning, match="last moved, of which no") as record:
        result = run(eps=0.05, moments=moments)
    assert len(record) == 1
    assert result.trace.drift.keys() == {"first"}


@pytest.mark.long
def test_projected_steps_leave_the_rest_as_it_is():
    """Where a projection comes last nothing else moves, and nothing is warned of."""
    moments = {**problem()[3], "last": None}
    ridge = ju.shrink_to_null_space(moments, damping=1e-2)
    optimizer = optax.chain(optax.sgd(0.5), ridge)
    result = run(eps=0.05, moments=moments, optimizer=optimizer)
    assert result.trace.ended
    assert 0 < result.trace.drift["first"] <= 0.05


@pytest.mark.long
def test_several_devices_end_at_the_same_step():
    result, one = run(eps=0.05, mesh=jax.make_mesh((2,), ("i",))), run(eps=0.05)
    assert len(result.trace.losses) == len(one.trace.losses)
    assert worst(result) <= 0.05


@pytest.mark.long
def test_moments_by_class_are_each_within_the_budget():
    classifier, images, labels, _ = problem()
    by_class = ju.class_moments(classifier, images, labels, num_classes=4)
    result = run(eps=0.05, moments=by_class)
    drifts = ju.drift(by_class, classifier.params, result.classifier.params)
    assert drifts["first"].shape == (4,)
    assert max(float(x.max()) for x in drifts.values()) <= 0.05
    assert result.trace.ended


@pytest.mark.core
def test_a_loss_that_is_not_finite_is_an_error_as_always():
    def loss(logits, targets):
        return jnp.full(len(logits), jnp.nan)

    with pytest.raises(FloatingPointError, match="The loss is nan at step 0"):
        run(eps=0.05, loss=loss)


@pytest.mark.parametrize(
    ("budget", "error", "words"),
    [
        (0.1, TypeError, r"drift_budget must be a pair \(moments, eps\); it is 0.1"),
        (("moments", "much"), TypeError, "eps must be a number; it is 'much'"),
        (("moments", 0), ValueError, "eps of drift_budget must be positive; it is 0"),
        (
            ("moments", 1e-5),
            ValueError,
            "which resolves drifts down to 0.00035",
        ),
        (({}, 0.1), ValueError, "moments must hold at least one Moment"),
    ],
)
def test_what_is_no_budget_is_refused(budget, error, words):
    classifier, images, labels, moments = problem()
    if isinstance(budget, tuple) and budget[0] == "moments":
        budget = (moments, budget[1])
    with pytest.raises(error, match=words):
        ju.unlearn(
            *(classifier, images, labels, optax.sgd(0.1)),
            steps=1,
            key=KEY,
            drift_budget=budget,
        )
