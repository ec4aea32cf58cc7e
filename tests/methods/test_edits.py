"""The baselines that change parameters once, beside their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import methods
from jaxunlearn.methods.importance import squared_gradients

KEY = jax.random.key(3)
D, H, K = 6, 5, 4
rng = np.random.default_rng(0)


def linear(params, state, images):
    return images.reshape(len(images), -1) @ params["kernel"] + params["bias"][None]


def two_layers(params, state, images):
    hidden = linear(params["body"], None, images)
    return linear(params["head"], None, jax.nn.relu(hidden))


def draw(d, k):
    shapes = {"kernel": (d, k), "bias": (k,)}
    return {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}


SHALLOW = ju.freeze(ju.Function(linear, draw(D, K)))
DEEP = ju.freeze(ju.Function(two_layers, {"body": draw(D, H), "head": draw(H, K)}))


def samples(n, labels):
    images = rng.normal(size=(n, D, 1, 1)).astype(np.float32)
    return ju.Data(images, rng.choice(labels, size=n))


TASK = ju.Task(samples(70, [3]), samples(130, [0, 1, 2]), [3], num_classes=K)


def flat(data):
    return np.asarray(data.images, np.float64).reshape(len(data), -1)


def hidden(params, x):
    return np.maximum(x @ params["body"]["kernel"] + params["body"]["bias"], 0)


def numbers(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def squares(x, labels):
    """Of each sample's gradient of a linear classifier's cross-entropy, summed."""
    p = numbers(SHALLOW.params)
    residual = softmax(x @ p["kernel"] + p["bias"]) - np.eye(K)[labels]
    gradient = x[:, :, None] * residual[:, None, :]
    return {"kernel": (gradient**2).sum(0), "bias": (residual**2).sum(0)}


def assert_near(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("n", [1, 63, 64, 130])
def test_squared_gradients_are_those_of_each_sample(n):
    x, labels = TASK.retain.images[:n], TASK.retain.labels[:n]
    found = squared_gradients(SHALLOW, x, labels)
    expected = squares(flat(TASK.retain)[:n], labels)
    assert_near(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("alpha", "dampening"), [(2.0, 1.0), (1.2, 0.3), (10.0, 1.0)])
def test_ssd_is_its_closed_form(alpha, dampening):
    method = methods.SSD(alpha=alpha, dampening=dampening)
    found = method(SHALLOW, TASK, key=KEY).classifier.params
    ours, theirs = (squares(flat(s), s.labels) for s in (TASK.forget, TASK.retain))
    for name, theta in numbers(SHALLOW.params).items():
        f = ours[name] / len(TASK.forget)
        i = (ours[name] + theirs[name]) / (len(TASK.forget) + len(TASK.retain))
        chosen = f > alpha * i
        factor = np.where(chosen, np.minimum(dampening * i / f, 1), 1)
        np.testing.assert_allclose(found[name], theta * factor, rtol=1e-4)
        np.testing.assert_array_equal(found[name] == SHALLOW.params[name], ~chosen)


@pytest.mark.long
def test_fisher_noise_follows_the_diagonal():
    """Over many keys the noise of each parameter has the variance that its F asks."""
    method = methods.Fisher(alpha=1e-4, zero_row=False)
    measured = method.measured(SHALLOW, TASK, KEY)
    fisher, changes = numbers(measured), []
    for key in jax.random.split(KEY, 200):
        params = method.edited(SHALLOW, TASK, key, measured)
        changes.append(numbers(jax.tree.map(jnp.subtract, params, SHALLOW.params)))
    for name in fisher:
        variance = np.square([change[name] for change in changes]).mean(axis=0)
        expected = 1e-4 / np.maximum(fisher[name], 1e-3)
        np.testing.assert_allclose(variance, expected, rtol=0.6)
        assert np.corrcoef(variance.ravel(), expected.ravel())[0, 1] > 0.8


def test_the_fisher_information_is_over_labels_of_the_model():
    draws = [
        numbers(methods.Fisher().measured(SHALLOW, TASK, key))
        for key in jax.random.split(KEY, 100)
    ]
    for name, exact in squares_of_the_model(flat(TASK.retain)).items():
        mean = np.mean([draw[name] for draw in draws], axis=0)
        np.testing.assert_allclose(mean, exact, rtol=0.2)


def squares_of_the_model(x):
    """The Fisher information's diagonal, its expectation over labels in full."""
    p = numbers(SHALLOW.params)
    chance = softmax(x @ p["kernel"] + p["bias"])
    total = {name: 0.0 for name in p}
    for label in range(K):
        residual = chance - np.eye(K)[label]
        gradient = x[:, :, None] * residual[:, None, :]
        weights = chance[:, label] / len(x)
        total["kernel"] += np.tensordot(weights, gradient**2, 1)
        total["bias"] += np.tensordot(weights, residual**2, 1)
    return total


@pytest.mark.long
def test_fisher_zeroes_the_row_if_asked():
    for zero_row in (True, False):
        method = methods.Fisher(alpha=1e-12, zero_row=zero_row)
        params = method(SHALLOW, TASK, key=KEY).classifier.params
        expected = numbers(SHALLOW.params)
        if zero_row:
            expected["kernel"][:, 3] = expected["bias"][3] = 0
        assert_near(params, expected, atol=1e-3)


@pytest.mark.long
def test_kodge_is_its_closed_form_in_every_layer():
    method = methods.Kodge(alpha_r=20.0, alpha_f=5.0)
    found = method(DEEP, TASK, key=KEY).classifier.params
    p = numbers(DEEP.params)
    rows = [flat(TASK.retain), flat(TASK.forget)]
    for layer in ("body", "head"):
        importance = []
        for x, a in zip(rows, (20.0, 5.0), strict=True):
            u, s, _ = np.linalg.svd(x.T, full_matrices=True)
            share = s**2 / (s**2).sum()
            importance.append((u * (a * share / ((a - 1) * share + 1))) @ u.T)
        m_r, m_f = importance
        change = np.eye(len(m_f)) - m_f + m_r @ m_f
        expected = change @ p[layer]["kernel"]
        np.testing.assert_allclose(found[layer]["kernel"], expected, atol=1e-5)
        np.testing.assert_array_equal(found[layer]["bias"], DEEP.params[layer]["bias"])
        # Inputs are those of the original.
        if layer == "body":
            rows = [hidden(p, x) for x in rows]


@pytest.mark.long
@pytest.mark.parametrize(("percent", "count"), [(0.1, 1), (25.0, 1), (45.0, 2)])
def test_erase_concept_leaves_the_head_features_of_a_smaller_rank(percent, count):
    result = methods.EraseConcept(percent=percent)(DEEP, TASK, key=KEY)
    p, found = numbers(DEEP.params), numbers(result.classifier.params)
    features = hidden(p, flat(TASK.forget))
    u, _, _ = np.linalg.svd(features.T, full_matrices=False)
    seen = features - features @ u[:, :count] @ u[:, :count].T
    assert np.linalg.matrix_rank(features) == H
    assert np.linalg.matrix_rank(seen, tol=1e-8) == H - count
    expected = seen @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(
        result.classifier(TASK.forget.images), expected, atol=1e-4
    )
    np.testing.assert_allclose(u[:, :count].T @ found["head"]["kernel"], 0, atol=1e-5)
    assert_near(found["body"], p["body"], rtol=0)


def test_what_has_no_head_is_refused():
    def sums(params, state, images):
        flat = images.reshape(len(images), -1)
        return flat @ params["kernel"] @ jnp.ones((H, K))

    headless = ju.freeze(ju.Function(sums, {"kernel": jnp.ones((D, H))}))
    for method in (methods.EraseConcept(), methods.MaskHead(), methods.Fisher()):
        with pytest.raises(ValueError, match="has no head"):
            method(headless, TASK, key=KEY)
    with pytest.raises(ValueError, match="has no head"):
        methods.BoundaryExpand(steps=1)(headless, TASK, key=KEY)


@pytest.mark.long
def test_samples_need_no_classes_where_none_are_named():
    task = ju.Task(samples(20, range(K)), samples(40, range(K)), (), num_classes=K)
    for method in (methods.Fisher(), methods.SSD(), methods.Kodge()):
        assert method(SHALLOW, task, key=KEY).classifier is not SHALLOW
    for method in (methods.MaskHead(), methods.UNSIR()):
        with pytest.raises(ValueError, match="no meaning where samples are forgotten"):
            method(SHALLOW, task, key=KEY)
