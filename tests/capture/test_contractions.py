"""A further kind of layer is a class and a row in the table, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import by_path, relative_error

import jaxunlearn as ju
from jaxunlearn.capture.contractions import CONTRACTIONS

IMAGES = np.random.default_rng(0).normal(size=(5, 2, 3, 1)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Scale:
    """`mul` of an input and a leaf, element by element: a group for each element."""

    size: int
    count: int = 1

    @classmethod
    def refuse(cls, params, leaf_side):
        return "it stands on the left" if leaf_side == 0 else ""

    @classmethod
    def read(cls, params, leaf_side, shapes):
        return cls(int(np.prod(shapes[leaf_side])))

    def layout(self, view):
        flat = view.then("reshape", (self.size, 1, 1))
        return flat.layout("scale", (0,), (1,), (2,))

    def rows(self, x):
        return x.reshape(-1, self.size).T[:, :, None]

    def outputs(self, y):
        return self.rows(y)

    def sums(self, x):
        return jnp.square(x.reshape(-1, self.size)).sum(0).reshape(-1, 1, 1, 1)

    def whole(self, sums):
        return sums[:, 0]


def apply(params, state, images):
    x = jnp.tanh(images.reshape(images.shape[0], -1) @ params["first"])
    return (x * params["scale"][None]) @ params["last"]


def classifier():
    shapes = {"first": (6, 4), "scale": (4,), "last": (4, 3)}
    draw = np.random.default_rng(1)
    params = {
        name: draw.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    return ju.freeze(ju.Function(lambda *given: apply(*given), params))


@pytest.mark.long
@pytest.mark.core
def test_a_kind_put_into_the_table_is_captured(monkeypatch):
    record = {r.path: r for r in ju.layer_table(classifier(), IMAGES)}["scale"]
    assert record.reason == "it multiplies elementwise, as a scale does"
    monkeypatch.setitem(CONTRACTIONS, "mul", Scale)
    network = classifier()
    record = {r.path: r for r in ju.layer_table(network, IMAGES)}["scale"]
    assert (record.kind, record.g, record.d, record.out) == ("scale", 4, 1, 1)
    assert (record.rows, record.reason) == (1, None)
    inputs = np.tanh(IMAGES.reshape(5, -1) @ network.params["first"])
    rows = by_path(ju.layer_inputs(network, IMAGES))["scale"].inputs
    assert relative_error(rows[:, :, 0].T, inputs) <= 1e-6
    moments = ju.second_moments(network, IMAGES)
    gram = by_path(moments)["scale"].gram
    assert relative_error(gram[:, 0, 0], np.square(inputs).sum(0)) <= 1e-6
    # Gradients of its outputs, by hand: of log p(0) at the logits, back through `last`.
    logits = network(IMAGES)
    slopes = np.eye(3)[0] - np.asarray(jax.nn.softmax(logits))
    truth = np.square(slopes @ network.params["last"].T).sum(0)
    given = {"key": jax.random.key(0), "labels": np.zeros(5, int)}
    gram = by_path(ju.output_moments(network, IMAGES, **given))["scale"].gram
    assert relative_error(gram[:, 0, 0], truth) <= 1e-6
    # Every direction of a fan-in of one is protected.
    tx = optax.chain(
        optax.sgd(0.1), ju.project_to_null_space(ju.subspaces(moments, rank=1))
    )
    updates, _ = tx.update(network.params, tx.init(network.params))
    assert not updates["scale"].any()
    assert jnp.abs(updates["last"]).max() > 0.01


def test_a_kind_may_refuse_in_its_own_words(monkeypatch):
    monkeypatch.setitem(CONTRACTIONS, "mul", Scale)

    def left(params, state, images):
        return params["scale"][None] * images.reshape(images.shape[0], -1)

    network = ju.freeze(ju.Function(left, {"scale": np.ones(6, np.float32)}))
    [record] = ju.layer_table(network, IMAGES)
    assert record.reason == "it stands on the left"


@pytest.mark.parametrize("kind", CONTRACTIONS.values(), ids=CONTRACTIONS.keys())
def test_every_kind_has_all_parts(kind):
    parts = ("refuse", "read", "layout", "rows", "outputs", "sums", "whole")
    assert all(callable(getattr(kind, part)) for part in parts)
    assert hasattr(kind, "count") or "count" in kind.__dataclass_fields__
