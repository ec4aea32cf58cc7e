"""Projections under optax's wrappers, which hand over masks in place of leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju

pytestmark = pytest.mark.long

SHAPES = {"body": {"bias": (3,), "kernel": (4, 3)}, "head": {"bias": (2,)}}
SHAPES["head"]["kernel"] = (3, 2)
IMAGES = np.random.default_rng(0).random((2, 2, 2, 1), np.float32)


def network(params, state, images):
    x = images.reshape(len(images), -1)
    for layer in ("body", "head"):
        x = jnp.tanh(x @ params[layer]["kernel"]) + params[layer]["bias"][None]
    return x


@functools.cache
def setting():
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    classifier = ju.freeze(ju.Function(network, params))
    moments = ju.second_moments(classifier, IMAGES)
    return params, moments, ju.subspaces(moments, rank=1)


def projections():
    _, moments, subspaces = setting()
    return {
        "hard": ju.project_to_null_space(subspaces),
        "ridge": ju.shrink_to_null_space(moments, damping=0.1),
    }


def run(tx, updates):
    params = setting()[0]
    return tx.update(updates, tx.init(params), params)[0]


def kernels(tree):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


MASKS = {
    "leaves": kernels,
    "a subtree": lambda params: {"body": True, "head": False},
    "both": lambda params: {"body": True, "head": {"bias": False, "kernel": True}},
}


@pytest.mark.parametrize("kind", ["hard", "ridge"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_masked_projects_what_it_selects_and_passes_on_the_rest(kind, mask, wrap):
    tx, updates = projections()[kind], setting()[0]
    selected = MASKS[mask](updates)
    whole = run(tx, updates)
    found = wrap(functools.partial(run, optax.masked(tx, selected)))(updates)
    every = jax.tree.map(
        lambda m, tree: jax.tree.map(lambda _: m, tree), selected, updates
    )
    for pick, ours, projected, raw in zip(
        *map(jax.tree.leaves, (every, found, whole, updates)), strict=True
    ):
        np.testing.assert_allclose(ours, projected if pick else raw, atol=1e-6)


@pytest.mark.parametrize("kind", ["hard", "ridge"])
@pytest.mark.parametrize("labels", [{"body": "a", "head": "b"}, None])
def test_multi_transform_projects_its_part(kind, labels):
    tx, updates = projections()[kind], setting()[0]
    if labels is None:
        labels = jax.tree.map(lambda k: "a" if k else "b", kernels(updates))
    parts = {"a": optax.chain(optax.sgd(1.0), tx), "b": optax.set_to_zero()}
    found = run(optax.multi_transform(parts, labels), updates)
    whole = run(optax.chain(optax.sgd(1.0), tx), updates)
    body = found["body"]["kernel"]
    np.testing.assert_allclose(body, whole["body"]["kernel"], atol=1e-6)
    assert not np.any(found["head"]["bias"])
    is_whole = labels["head"] != "b"
    expected = whole["head"]["kernel"] if is_whole else 0 * whole["head"]["kernel"]
    np.testing.assert_allclose(found["head"]["kernel"], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["hard", "ridge"])
def test_multi_steps_project_the_step_that_they_take(kind):
    tx, updates = projections()[kind], setting()[0]
    chain, params = optax.chain(optax.adam(0.1), tx), setting()[0]
    steps = optax.MultiSteps(chain, 2)
    state = steps.init(params)
    first, state = steps.update(updates, state, params)
    second, _ = steps.update(updates, state, params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(first))
    for found, expected in zip(
        *map(jax.tree.leaves, (second, run(chain, updates))), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_leakage_and_drift_leave_out_what_is_masked():
    params, moments, subspaces = setting()
    masked = {"body": params["body"], "head": optax.MaskedNode()}
    whole = ju.leakage(params, subspaces)
    for found in (
        ju.leakage(masked, subspaces),
        ju.leakage(params, subspaces, relative_to=masked),
        ju.leakage(masked, subspaces, relative_to=masked),
    ):
        assert found["head"] == {"bias": None, "kernel": None}
        np.testing.assert_allclose(found["body"]["kernel"], whole["body"]["kernel"])
    zero = jax.tree.map(jnp.zeros_like, masked)
    moved = ju.drift(moments, masked, zero)
    assert moved["head"] == {"bias": None, "kernel": None}
    np.testing.assert_allclose(moved["body"]["kernel"], 1, rtol=1e-6)


def test_a_mask_does_not_hide_another_structure():
    params, _, subspaces = setting()
    other = {"body": optax.MaskedNode(), "tail": params["head"]}
    with pytest.raises(ValueError, match="one structure.*tail"):
        ju.leakage(other, subspaces)
