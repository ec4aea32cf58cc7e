"""What is protected exactly does not change, for any optimizer; and how it would."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from normalised import draw_classifier
from oracles import by_path, double

import jaxunlearn as ju
from jaxunlearn.descent.unlearning import cross_entropy, unlearn
from jaxunlearn.nullspace.projection import drift, project_to_null_space
from jaxunlearn.nullspace.streaming_qr import row_subspaces
from jaxunlearn.nullspace.subspace import subspaces

pytestmark = pytest.mark.core

KEY = jax.random.key(3)
ADAM = optax.adam(0.05)
RETAINED, FORGOTTEN, CLASSES = 4, 4, 3
SHAPE = (6, 6, 8)

OPTIMIZERS = {
    "sgd": optax.sgd(0.05, momentum=0.9),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "lion": optax.lion(0.005, weight_decay=0.1),
    "adafactor": optax.adafactor(0.01, min_dim_size_to_factor=8),
}


class Net(nn.Module):
    """So wide that the inputs of four images span no layer's input space."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        x = nn.Conv(16, (3, 3), 3, "VALID", name="strided")(x)  # 4 * 4 of 72
        x = nn.relu(norm(name="norm")(x))
        x = nn.Conv(24, (3, 3), padding=1, use_bias=False, name="padded")(x)  # of 144
        x = nn.gelu(norm(name="last_norm")(x)).reshape(x.shape[0], -1)
        x = nn.tanh(nn.Dense(16, name="hidden")(x))  # 4 of 96
        return nn.Dense(CLASSES, name="head")(x)  # 4 of 16


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(8, 12, (3, 3), strides=3, rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.head = nnx.Linear(48, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(x.reshape(x.shape[0], -1))


def linen_classifier(dtype):
    return draw_classifier(Net, SHAPE, dtype)


def nnx_classifier(dtype):
    return draw_classifier(NNXNet, SHAPE, dtype)


def images(n, dtype, seed):
    images = np.random.default_rng(seed).normal(size=(n, *SHAPE))
    return jnp.asarray(images, dtype)


def normals(tree, dtype, seed=5):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), tree)


LOGITS = jax.jit(lambda classifier, images: classifier(images))


def moved(before, after):
    """The change of the logits, relative to the logits."""
    return np.linalg.norm(after - before) / np.linalg.norm(before)


class Setting:
    """A classifier in float64, what it retains, what it forgets, what is protected."""

    def __init__(self, make):
        self.classifier = make(np.float64)
        self.retained = images(RETAINED, np.float64, 1)
        self.forgotten = images(FORGOTTEN, np.float64, 2)
        self.before = self.logits(self.classifier)
        self.targets = self.before["forgotten"].argmin(1)
        self.rows = row_subspaces(self.classifier, self.retained, rtol=1e-12)
        self._moments = None

    def moments(self):
        if self._moments is None:
            self._moments = ju.second_moments(self.classifier, self.retained)
        return self._moments

    def logits(self, classifier):
        both = jnp.concatenate([self.retained, self.forgotten])
        logits = double(LOGITS(classifier, both))
        return {"retained": logits[:RETAINED], "forgotten": logits[RETAINED:]}

    def unlearn(self, optimizer, steps=200, check=True):
        given = self.classifier, self.forgotten, self.targets, optimizer
        return unlearn(*given, steps=steps, key=KEY, check=check).classifier

    def changes(self, classifier):
        after = self.logits(classifier)
        return {name: moved(self.before[name], after[name]) for name in after}


@pytest.fixture(scope="module")
def linen_setting():
    with jax.enable_x64(True):
        return Setting(linen_classifier)


@pytest.fixture(scope="module")
def nnx_setting():
    with jax.enable_x64(True):
        return Setting(nnx_classifier)


# The theorem.


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "sgd" else pytest.mark.long)
        for name in OPTIMIZERS
    ],
)
def test_retained_logits_do_not_move_while_forgotten_ones_do(linen_setting, name):
    with jax.enable_x64(True):
        for protected, bound in (
            (linen_setting.rows, 1e-10),
            (subspaces(linen_setting.moments(), rtol=1e-7), 1e-8),
        ):
            projection = project_to_null_space(protected)
            chain = optax.chain(OPTIMIZERS[name], projection)
            changes = linen_setting.changes(linen_setting.unlearn(chain))
            assert changes["retained"] <= bound
            assert changes["forgotten"] > 1


def test_the_theorem_is_about_weights_that_all_move(linen_setting):
    """No weight is spanned, none stands still, and nothing else moves."""
    ranks = {p: s.basis.shape[1:] for p, s in by_path(linen_setting.rows).items() if s}
    assert ranks == {
        "strided/kernel": (72, 16),
        "padded/kernel": (144, 16),
        "hidden/kernel": (96, 4),
        "head/kernel": (16, 4),
    }
    with jax.enable_x64(True):
        projection = project_to_null_space(linen_setting.rows)
        chain = optax.chain(OPTIMIZERS["sgd"], projection)
        unlearned = linen_setting.unlearn(chain)
    before, after = (by_path(c.params) for c in (linen_setting.classifier, unlearned))
    for path in before:
        change = np.linalg.norm(after[path] - before[path])
        if path in ranks:
            assert change > 1e-2 * np.linalg.norm(before[path])
        else:
            assert change == 0
    for old, new in zip(
        jax.tree.leaves(linen_setting.classifier.state),
        jax.tree.leaves(unlearned.state),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)


@pytest.mark.long
def test_it_holds_for_nnx(nnx_setting):
    projection = project_to_null_space(nnx_setting.rows)
    with jax.enable_x64(True):
        unlearned = nnx_setting.unlearn(optax.chain(ADAM, projection))
        changes = nnx_setting.changes(unlearned)
        assert changes["retained"] <= 1e-10
        assert changes["forgotten"] > 1
        # The user's own module too.
        module = ju.thaw(unlearned)
        module.eval()
        logits = double(module(nnx_setting.retained))
    assert moved(nnx_setting.before["retained"], logits) <= 1e-10


# Its converses: each part of the rule is needed.


def test_before_adam_retained_logits_move(nnx_setting):
    projection = project_to_null_space(nnx_setting.rows)
    with jax.enable_x64(True):
        unlearned = nnx_setting.unlearn(optax.chain(projection, ADAM), check=False)
        assert nnx_setting.changes(unlearned)["retained"] > 1e-2


def test_weight_decay_after_the_projection_moves_retained_logits(nnx_setting):
    decay = optax.chain(
        optax.sgd(0.05),
        project_to_null_space(nnx_setting.rows),
        optax.add_decayed_weights(-1e-3),
    )
    with jax.enable_x64(True):
        unlearned = nnx_setting.unlearn(decay, check=False)
        assert nnx_setting.changes(unlearned)["retained"] > 1e-2


def test_biases_that_are_left_free_move_retained_logits(nnx_setting):
    """Everything else as in the theorem, the projection included."""
    free = jax.tree.map_with_path(
        lambda path, _: "bias" in jax.tree_util.keystr(path),
        nnx_setting.classifier.params,
    )
    chain = optax.partition(
        {
            True: ADAM,
            False: optax.chain(ADAM, project_to_null_space(nnx_setting.rows)),
        },
        free,
    )
    with jax.enable_x64(True):
        unlearned = nnx_setting.unlearn(chain)
        assert nnx_setting.changes(unlearned)["retained"] > 1e-2


@pytest.mark.parametrize("inside", [True, False])
def test_schedule_free_outside_the_projection_leaks_when_evaluated(nnx_setting, inside):
    """It averages iterates of its own, which no outer projection reaches."""
    projection = project_to_null_space(nnx_setting.rows)
    if inside:
        base = optax.chain(optax.sgd(0.5), projection)
        tx = optax.contrib.schedule_free(base, 0.5)
    else:
        tx = optax.chain(optax.contrib.schedule_free(optax.sgd(0.5), 0.5), projection)
    classifier, targets = nnx_setting.classifier, nnx_setting.targets

    def loss(params):
        logits = classifier.replace(params=params)(nnx_setting.forgotten)
        return cross_entropy(logits, jnp.asarray(targets)).mean()

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    with jax.enable_x64(True):
        params, state = classifier.params, tx.init(classifier.params)
        for _ in range(20):
            params, state = step(params, state)
        averaged = optax.contrib.schedule_free_eval_params(
            state if inside else state[0], params
        )
        trained = nnx_setting.changes(classifier.replace(params=params))
        evaluated = nnx_setting.changes(classifier.replace(params=averaged))
    assert trained["retained"] <= 1e-10
    assert (evaluated["retained"] <= 1e-10) == inside
    assert inside or evaluated["retained"] > 1e-2
    assert evaluated["forgotten"] > 0.1


# The certificate.


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)]
)
def test_the_drift_is_the_sum_over_explicit_rows(nnx_setting, dtype, tolerance):
    """On a network's own inputs, after an update that leaves the null space."""
    with jax.enable_x64(dtype == np.float64):
        if dtype == np.float64:
            classifier, retained = nnx_setting.classifier, nnx_setting.retained
            moments = nnx_setting.moments()
        else:
            classifier, retained = nnx_classifier(dtype), images(RETAINED, dtype, 1)
            moments = ju.second_moments(classifier, retained)
        change = normals(classifier.params, dtype)
        after = jax.tree.map(lambda p, c: p + 0.1 * c, classifier.params, change)
        found = by_path(drift(moments, classifier.params, after))
        rows = by_path(jax.jit(ju.layer_inputs)(classifier, retained))
        before, after = by_path(classifier.params), by_path(after)
        for path, record in rows.items():
            if record is None:
                assert found[path] is None
                continue
            W, V = (double(record.layout.to_matrix(w[path])) for w in (before, after))
            x = double(record.inputs)
            expected = np.linalg.norm(x @ (V - W)) / np.linalg.norm(x @ W)
            assert expected > 1e-2
            assert found[path].dtype == dtype
            np.testing.assert_allclose(found[path], expected, rtol=tolerance)


def test_after_unlearning_the_drift_is_what_the_moment_resolves(nnx_setting):
    with jax.enable_x64(True):
        chain = optax.chain(ADAM, project_to_null_space(nnx_setting.rows))
        unlearned = nnx_setting.unlearn(chain)
        pair = nnx_setting.classifier.params, unlearned.params
        on_retained = drift(nnx_setting.moments(), *pair)
        forgotten = ju.second_moments(nnx_setting.classifier, nnx_setting.forgotten)
        on_forgotten = drift(forgotten, *pair)
    assert max(map(float, jax.tree.leaves(on_retained))) <= 1e-7
    assert min(map(float, jax.tree.leaves(on_forgotten))) > 1e-2
