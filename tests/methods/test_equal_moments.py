"""UNSC with moments of trace 1: what is protected is of every class alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import by_path, double, relative_error

import jaxunlearn as ju
from jaxunlearn.methods import equal_moments, forget
from jaxunlearn.methods.equal_moments import EqualMoments

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
CLASSES = 5
# Of class 2 there is no sample, and of class 4 a single one.
LABELS = RNG.permutation(np.repeat([0, 1, 3, 4], [40, 12, 5, 1]))
IMAGES = RNG.normal(size=(len(LABELS), 2, 3, 1)).astype(np.float32)
DATA = ju.Data(IMAGES * (1 + LABELS[:, None, None, None]), LABELS)


@functools.cache
def classifier():
    def apply(params, state, images):
        x = jnp.tanh(images.reshape(len(images), -1) @ params["body"])
        return x @ params["head"]

    drawn = np.random.default_rng(1)
    shapes = {"body": (6, 4), "head": (4, CLASSES)}
    params = {n: jnp.float32(drawn.normal(size=s)) for n, s in shapes.items()}
    return ju.freeze(ju.Function(apply, params))


def explicit(retained):
    """`sum_c C_c / tr C_c` and how many rows, from the rows themselves in float64."""
    body = double(classifier().params["body"])
    found = {"body": 0.0, "head": 0.0}
    for c in retained:
        rows = double(DATA.images[c == LABELS]).reshape(-1, 6)
        for name, x in (("body", rows), ("head", np.tanh(rows @ body))):
            found[name] += x.T @ x / np.trace(x.T @ x)
    return found, np.isin(LABELS, retained).sum()


def check(moments, retained):
    grams, rows = explicit(retained)
    for name, moment in by_path(moments).items():
        assert relative_error(moment.gram[0], grams[name]) <= 1e-5
        assert float(moment.rows) == rows


@pytest.mark.long
@pytest.mark.parametrize("room", [5, 2])
def test_each_class_is_divided_by_its_trace(room, monkeypatch):
    groups = [tuple(range(i, min(i + room, CLASSES))) for i in range(0, CLASSES, room)]
    monkeypatch.setattr(equal_moments, "class_passes", lambda *a, **k: groups)
    several = EqualMoments(classifier(), DATA, CLASSES, [(0,), (1, 3)])
    assert several.passes == (1 if room == 5 else 6)
    check(several((0,)), [1, 3, 4])
    check(several((1, 3)), [0, 4])
    alone = EqualMoments(classifier(), ju.split_by_class(DATA, [1])[1], CLASSES, None)
    check(alone((1,)), [0, 3, 4])


def given(projection, subspace="pooled"):
    return ju.UNSC(
        projection=projection, subspace=subspace, normalise=True, steps=2, energy=0.8
    )


@pytest.mark.long
@pytest.mark.parametrize("projection", ["hard", "ridge"])
def test_what_is_protected_is_of_the_sum_of_equal_classes(projection):
    """One request by its images, by kept moments, and in a sweep."""
    method = given(projection)
    parts = ju.split_by_class(DATA, [1])
    moments = ju.class_moments(
        classifier(), DATA.images, DATA.labels, num_classes=CLASSES
    )
    known = {"forget_classes": [1], "num_classes": CLASSES}
    tasks = [
        ju.Task(*parts, **known),
        ju.Task(parts[0], class_moments=moments, **known),
    ]
    changes = [_change(method(classifier(), task, key=KEY)) for task in tasks]
    (swept,) = forget(method, classifier(), DATA, [(1,)], key=KEY)
    changes.append(_change(swept))
    for change in changes[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            change,
            changes[0],
        )
    # The rows of a change lie where the explicit sum lets them.
    grams, _ = explicit([0, 3, 4])
    for name, change in changes[0].items():
        values, vectors = np.linalg.eigh(grams[name])
        along = np.linalg.norm(vectors.T @ double(change), axis=1)
        assert along.max() > 0
        if projection == "hard":
            shares = np.cumsum(values[::-1]) / values.sum()
            rank = int(np.searchsorted(shares, method.energy)) + 1
            assert along[-rank:].max() <= 1e-5 * along.max()


@pytest.mark.long
def test_the_ridge_shrinks_by_the_sum_of_equal_classes():
    method, parts = given("ridge"), ju.split_by_class(DATA, [1])
    task = ju.Task(*parts, [1], num_classes=CLASSES)
    statistics = method.statistics(classifier(), task, key=KEY)
    step = method.projection_of(statistics, (1,))
    ones = jax.tree.map(jnp.ones_like, classifier().params)
    found, _ = step.update(ones, step.init(ones), classifier().params)
    grams, _ = explicit([0, 3, 4])
    for name, gram in grams.items():
        share = gram / np.trace(gram) + method.damping * np.eye(len(gram))
        expected = method.damping * np.linalg.solve(share, double(ones[name]))
        assert relative_error(found[name], expected) <= 1e-3


def test_where_bases_are_merged_there_is_nothing_to_weigh():
    for options in ({}, {"projection": "none", "subspace": "pooled"}):
        with pytest.raises(ValueError, match='sums none .*subspace="pooled" or proj'):
            ju.UNSC(normalise=True, **options)
    assert ju.UNSC(normalise=True, projection="ridge").keeps_moments


def _change(result):
    return jax.tree.map(
        lambda a, b: np.asarray(a - b), result.classifier.params, classifier().params
    )
