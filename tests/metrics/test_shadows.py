"""U-LiRA and its shadow models, against twins and models whose memory is known."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.metrics import barrier, membership, shadows

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N = 24
# Each sample is a pixel of its own, so that a linear network can know it alone.
DATA = ju.Data(np.eye(N, dtype=np.float32).reshape(N, 1, N, 1), np.arange(N) % 3)


def apply(params, state, images):
    del state
    return images.reshape(images.shape[0], -1) @ params


def memorising(data, key):
    """A network that knows the labels of these samples, and guesses the others'."""
    rows = data.images.reshape(len(data), -1)
    known = jnp.asarray(rows.T @ (5 * np.eye(3, dtype=np.float32)[data.labels]))
    return ju.freeze(ju.Function(apply, known + jax.random.normal(key, (N, 3))))


@dataclasses.dataclass
class Outcome:
    classifier: Any


def retraining(classifier, task, *, key):
    del classifier
    return Outcome(task.train(task.retain, key))


def test_u_lira_leaves_the_attacked_model_out():
    seen, fresh = RNG.normal(1, 1, (5, 4)), RNG.normal(0, 1, (4, 4))
    result = shadows.u_lira(seen, fresh, sigma="sample")

    def density(models, points):
        return norm.pdf(points, models.mean(axis=0), models.std(axis=0, ddof=1))

    others = np.delete(seen, 2, 0)
    expected = density(others, seen[2])
    expected = expected / (expected + density(fresh, seen[2]))
    np.testing.assert_allclose(result.unlearned[2], expected, rtol=1e-9)
    others = np.delete(fresh, 3, 0)
    expected = density(seen, fresh[3])
    expected = expected / (expected + density(others, fresh[3]))
    np.testing.assert_allclose(result.never_seen[3], expected, rtol=1e-9)
    caught, passed = result.unlearned > 0.5, result.never_seen <= 0.5
    assert result.accuracy == pytest.approx((caught.mean() + passed.mean()) / 2)
    assert result.by_example.mean() == pytest.approx(result.accuracy)


def test_u_lira_of_one_distribution_is_chance_and_of_two_is_not():
    draw = np.random.default_rng(1).normal(size=(3, 16, 400))
    same = shadows.u_lira(draw[0], draw[1])
    assert abs(same.accuracy - 0.5) < 0.02
    assert abs(same.auc - 0.5) < 0.02
    # Scored by models it was fitted on, the same attack claims to know.
    fitted = membership.lira(draw[0], draw[1], draw[0][0])
    assert (fitted > 0.5).mean() > 0.53
    assert shadows.u_lira(draw[0] + 4, draw[1]).accuracy > 0.95
    # The order of models means nothing.
    again = shadows.u_lira(draw[0][::-1], draw[1][::-1])
    assert again.accuracy == pytest.approx(same.accuracy)
    alike = shadows.u_lira(np.ones((3, 5)), np.ones((4, 5)))
    assert alike.accuracy == 0.5
    assert np.isfinite(alike.unlearned).all()


def test_shadows_see_complementary_halves():
    seen = shadows.half_splits(7, 8, KEY)
    assert (seen[::2] == ~seen[1::2]).all()
    assert (seen.sum(axis=0) == 4).all()
    assert len({row.tobytes() for row in seen}) == 8
    np.testing.assert_array_equal(seen, shadows.half_splits(7, 8, KEY))


@pytest.mark.long
def test_shadows_tell_memory_from_retraining():
    given = {"num_classes": 3, "count": 8, "key": KEY}
    kept = shadows.shadow_ensemble(memorising, DATA, **given)
    assert kept.unlearned.shape == kept.never_seen.shape == (4, N)
    assert (kept.unlearned.mean(axis=0) > kept.never_seen.mean(axis=0) + 1).all()
    assert shadows.u_lira(kept.unlearned, kept.never_seen).accuracy > 0.8
    again = shadows.shadow_ensemble(memorising, DATA, **given)
    np.testing.assert_array_equal(kept.unlearned, again.unlearned)
    exact = shadows.shadow_ensemble(
        memorising, DATA, method=retraining, forget_sets=3, **given
    )
    assert abs(exact.unlearned.mean() - exact.never_seen.mean()) < 0.5
    assert abs(shadows.u_lira(exact.unlearned, exact.never_seen).accuracy - 0.5) < 0.1


@pytest.mark.long
def test_ensembles_of_classifiers_are_those_of_their_confidences(monkeypatch):
    models = [memorising(DATA, key) for key in jax.random.split(KEY, 6)]
    z = np.stack([np.asarray(model(DATA.images)) for model in models])
    looped = shadows.ensemble_logits(models, DATA.images, batch_size=7)
    np.testing.assert_allclose(looped, z, atol=1e-6)
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: False)
    for size in (7, 256):
        vmapped = shadows.ensemble_logits(models, DATA.images, batch_size=size)
        np.testing.assert_allclose(vmapped, z, atol=1e-6)
    p = np.asarray(jax.nn.softmax(z, axis=-1))
    phi = [membership.logit_scaled_confidence(row, DATA.labels) for row in p]
    result = shadows.u_lira(models[:3], models[3:], DATA)
    expected = shadows.u_lira(phi[:3], phi[3:])
    np.testing.assert_allclose(result.unlearned, expected.unlearned, atol=1e-4)


def hidden(params, state, images):
    """Two layers; the state is added to the logits."""
    body, head = params
    rows = images.reshape(images.shape[0], -1)
    return jax.nn.relu(rows @ body) @ head + state["shift"][None]


def network(body, head, shift=(0.0, 0.0, 0.0), count=0):
    state = {"shift": jnp.array(shift), "count": jnp.array(count)}
    return ju.freeze(ju.Function(hidden, (jnp.asarray(body), jnp.asarray(head)), state))


BODY = RNG.normal(size=(N, 6)).astype(np.float32)
HEAD = np.linalg.lstsq(np.maximum(BODY, 0), 9 * np.eye(3)[DATA.labels], rcond=None)[
    0
].astype(np.float32)


def test_the_line_to_a_reordered_network_crosses_a_barrier():
    order = np.array([3, 4, 5, 0, 1, 2])
    first, second = network(BODY, HEAD), network(BODY[:, order], HEAD[order])
    line = barrier.loss_barrier(first, second, DATA, points=5, batch_size=7)
    expected = []
    for t in (0, 0.25, 0.5, 0.75, 1):
        body = (1 - t) * BODY + t * BODY[:, order]
        head = (1 - t) * HEAD + t * HEAD[order]
        z = np.maximum(body, 0).astype(float) @ head
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        expected.append(-log_p[np.arange(N), DATA.labels].mean())
    np.testing.assert_allclose(line.losses, expected, rtol=1e-5)
    excess = np.array(expected) - np.linspace(expected[0], expected[-1], 5)
    assert line.barrier == pytest.approx(excess.max(), rel=1e-4)
    assert line.at == np.linspace(0, 1, 5)[excess.argmax()]
    assert line.accuracies[0] == line.accuracies[-1] > line.accuracies[2]
    assert barrier.loss_barrier(first, first, DATA).barrier == 0
    whole = barrier.loss_barrier(first, second, DATA, points=5)
    assert whole.barrier == pytest.approx(line.barrier, abs=1e-6)


def test_state_goes_along_the_line_and_counters_stay():
    first, second = network(BODY, HEAD), network(BODY, HEAD, (4.0, 0, 0), 8)
    middle = barrier.interpolated(first, second, 0.25)
    assert middle.state["shift"].tolist() == [1, 0, 0]
    assert middle.state["count"] == 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: shadows.u_lira(np.ones((2, 4)), np.ones((3, 4))), "three models"),
        (lambda: shadows.u_lira(np.ones((3, 4)), np.ones((3, 5))), "same samples"),
        (lambda: shadows.u_lira(np.full((3, 4), np.nan), np.ones((3, 4))), "12 values"),
        (
            lambda: shadows.u_lira([memorising(DATA, KEY)] * 3, np.ones((3, N))),
            "give the samples",
        ),
        (lambda: shadows.ensemble_logits([], DATA.images), "one network"),
        (
            lambda: shadows.shadow_ensemble(
                memorising, DATA, num_classes=3, count=7, key=KEY
            ),
            "count must be even",
        ),
        (
            lambda: shadows.shadow_ensemble(
                memorising,
                DATA,
                num_classes=3,
                count=6,
                key=KEY,
                method=retraining,
                forget_sets=20,
            ),
            "cannot be cut into 20 sets",
        ),
        (
            lambda: barrier.loss_barrier(
                network(BODY, HEAD), network(BODY[:, :4], HEAD[:4]), DATA
            ),
            "of one network",
        ),
        (
            lambda: barrier.loss_barrier(
                network(BODY, HEAD), network(BODY, HEAD), DATA, points=2
            ),
            "points must be 3",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_model_that_has_diverged_has_no_barrier():
    lost = network(BODY * np.nan, HEAD)
    with pytest.raises(FloatingPointError, match="diverged"):
        barrier.loss_barrier(network(BODY, HEAD), lost, DATA)
