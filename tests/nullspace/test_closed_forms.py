"""Closed forms against the explicit normal equations, in float64, and their limits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import Case
from oracles import by_path, double, relative_error

import jaxunlearn as ju
from jaxunlearn.capture.grams import layouts
from jaxunlearn.capture.layout import View
from jaxunlearn.nullspace import Moment


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return jnp.tanh(nn.Dense(x.shape[-1], name="layer")(x)), None


class Mixed(nn.Module):
    """A grouped strided convolution, a normalisation, a scan and a head."""

    @nn.compact
    def __call__(self, images):
        conv = nn.Conv(4, (2, 2), 2, feature_group_count=2, name="conv")
        x = nn.LayerNorm(name="norm")(conv(images)).reshape(images.shape[0], -1, 2)
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True},
                       length=2)  # fmt: skip
        x, _ = scan(name="blocks")(x, None)
        return nn.Dense(3, name="head")(x.reshape(images.shape[0], -1))


MIXED = Case("mixed", Mixed, None, (4, 4, 2))
WEIGHTS = {"conv/kernel", "blocks/layer/kernel", "head/kernel"}


@functools.cache
def mixed():
    """Parameters in float64, fresh ones, and moments of drawn rows on both sides."""
    rng = np.random.default_rng(0)

    def drawn(side):
        def moment(layout):
            width = layout.fan_in if side == "inputs" else layout.fan_out
            rows = rng.normal(size=(layout.groups, 9, width)) * np.arange(1, width + 1)
            gram = jnp.asarray(rows.swapaxes(1, 2) @ rows)
            return Moment(gram, jnp.asarray(9.0), layout, side=side)

        return moment

    with jax.enable_x64(True):
        classifier = MIXED.classifier(np.float64)
        fresh = MIXED.classifier(np.float64, seed=3).params
        read = layouts(classifier, MIXED.images(1, np.float64))
        moments, outputs = (
            jax.tree.map(drawn(side), read) for side in ("inputs", "outputs")
        )
    return classifier.params, fresh, moments, outputs


def normal_equations(C, B, Wo, W0, damping):
    """The minimiser by one system of `d o` equations."""
    (d, o), B = Wo.shape, np.eye(Wo.shape[1]) if B is None else B
    ridge = damping * np.trace(C) / d * np.trace(B) / o
    curvature = np.kron(B, C)
    right = curvature @ Wo.ravel(order="F") + ridge * W0.ravel(order="F")
    solved = np.linalg.solve(curvature + ridge * np.eye(d * o), right)
    return solved.reshape(d, o, order="F")


@pytest.mark.core
@pytest.mark.parametrize("damping", [1e-2, 1.0, 30.0])
@pytest.mark.parametrize("shaped", [True, False])
def test_a_reset_solves_the_normal_equations(shaped, damping):
    """Of every group and slice, whether or not gradients shape it."""
    params, fresh, moments, outputs = mixed()
    given = (params, fresh, moments, outputs if shaped else None)
    with jax.enable_x64(True):
        found = by_path(ju.reset_toward(*given, damping=damping))
    old, new, inputs, gradients = map(by_path, (params, fresh, moments, outputs))
    assert {path for path, moment in inputs.items() if moment is not None} == WEIGHTS
    for path, leaf in found.items():
        if path not in WEIGHTS:
            np.testing.assert_array_equal(leaf, old[path])
            continue
        layout = inputs[path].layout
        Wo, W0, W = (double(layout.to_matrix(x)) for x in (old[path], new[path], leaf))
        for g in range(layout.groups):
            # As means over rows.
            C, B = (
                double(m.gram)[g] / double(m.rows)
                for m in (inputs[path], gradients[path])
            )
            B = B if shaped else None
            truth = normal_equations(C, B, Wo[g], W0[g], damping)
            assert relative_error(W[g], truth) <= 1e-10, path


@pytest.mark.core
def test_without_damping_the_old_weight_stays_where_it_is_seen():
    """And is fresh on the null space; with all damping it is fresh everywhere."""
    rng = np.random.default_rng(0)
    rows, (Wo, W0) = rng.normal(size=(2, 4)), rng.normal(size=(2, 4, 3))
    layout = View((4, 3)).layout("dense", (), (0,), (1,))
    with jax.enable_x64(True):
        moment = Moment(jnp.asarray(rows.T @ rows)[None], jnp.asarray(2.0), layout)
        reset = functools.partial(ju.reset_toward, {"w": Wo}, {"w": W0}, {"w": moment})
        near, far = (double(reset(damping=x)["w"]) for x in (1e-8, 1e13))
        assert relative_error(rows @ near, rows @ Wo) <= 1e-6
        null = np.linalg.svd(rows)[2][2:]
        assert relative_error(null @ near, null @ W0) <= 1e-6
        assert relative_error(far, W0) <= 1e-10
        nothing = Moment(jnp.zeros((1, 4, 4)), jnp.zeros(()), layout)
        unseen = ju.reset_toward({"w": Wo}, {"w": W0}, {"w": nothing}, damping=1e-9)
        np.testing.assert_array_equal(unseen["w"], W0)


def test_leaves_without_a_moment_keep_their_values_and_all_their_dtypes():
    params, fresh, moments, _ = mixed()
    single = [jax.tree.map(np.float32, tree) for tree in (params, fresh)]
    part = {**moments, "head": {"kernel": None, "bias": None}}
    found = ju.reset_toward(*single, part, damping=1.0)
    for path, leaf in by_path(found).items():
        assert leaf.dtype == np.float32
        same = np.array_equal(leaf, by_path(single[0])[path])
        assert same == (path not in WEIGHTS - {"head/kernel"}), path


@pytest.mark.core
def test_a_projected_change_is_the_closed_form_and_drifts_less():
    """In the moment's eigenbasis direction i keeps `damping / (c_i + damping)`."""
    params, fresh, moments, _ = mixed()
    damping = 1e-2
    with jax.enable_x64(True):
        found = ju.project_change(params, fresh, moments, damping=damping)
        drifts, raw = (
            by_path(ju.drift(moments, params, after)) for after in (found, fresh)
        )
    old, new, inputs, found = map(by_path, (params, fresh, moments, found))
    for path, leaf in found.items():
        if path not in WEIGHTS:
            np.testing.assert_array_equal(leaf, old[path])
            continue
        layout, moved, whole = inputs[path].layout, 0, 0
        before, after, W = (
            double(layout.to_matrix(x)) for x in (old[path], new[path], leaf)
        )
        for g, C in enumerate(double(inputs[path].gram)):
            values, U = np.linalg.eigh(C)
            kept = damping / (values / values.sum() + damping)
            change = kept[:, None] * (U.T @ (after[g] - before[g]))
            assert relative_error(W[g], before[g] + U @ change) <= 1e-10
            moved += np.sum(values[:, None] * change**2)
            whole += np.sum(values[:, None] * (U.T @ before[g]) ** 2)
        assert np.isclose(float(drifts[path]), np.sqrt(moved / whole), rtol=1e-6)
        assert float(drifts[path]) < 0.2 * float(raw[path])


def test_the_drift_of_a_projected_change_vanishes_with_the_damping():
    params, fresh, moments, _ = mixed()
    with jax.enable_x64(True):
        worst = [
            max(map(float, jax.tree.leaves(ju.drift(moments, params, after))))
            for after in (
                ju.project_change(params, fresh, moments, damping=damping)
                for damping in (1e-1, 1e-3, 1e-6)
            )
        ]
    assert worst[0] > 10 * worst[1] > 100 * worst[2]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"damping": 0.0}, ValueError, "damping must be positive and finite; it is 0"),
        ({"damping": "1"}, TypeError, "damping must be a number; it is a str"),
        ({"moments": 3}, ValueError, "a moment of inputs is needed.*second_moments"),
        ({"outputs": 2}, ValueError, "a moment of outputs is needed.*output_moments"),
        ({"fresh": {}}, ValueError, "fresh and moments must be trees of one structure"),
    ],
)
def test_a_reset_of_what_does_not_fit_is_refused(change, error, words):
    trees = dict(zip(("params", "fresh", "moments", "outputs"), mixed(), strict=True))
    for name, value in change.items():
        trees[name] = mixed()[value] if isinstance(value, int) else value
    damping = trees.pop("damping", 1.0)
    with pytest.raises(error, match=words):
        ju.reset_toward(*trees.values(), damping=damping)


def test_moments_by_class_are_refused():
    params, fresh, moments, _ = mixed()
    stacked = jax.tree.map(lambda x: np.stack([x, x]), moments)
    for function in (ju.project_change, ju.reset_toward):
        with pytest.raises(ValueError, match="leading class axis.*sum_classes"):
            function(params, fresh, stacked, damping=1.0)
