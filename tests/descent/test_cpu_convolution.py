"""Convolutions differentiated in pieces, against loops over places in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.descent import cpu_convolution
from jaxunlearn.descent.cpu_convolution import PiecewiseConvolution, in_pieces
from jaxunlearn.training import Recipe

pytestmark = [pytest.mark.core, pytest.mark.long]

# Name: images, map, channels, kernel, outputs, and the convolution.
CASES = {
    "same": (6, (7, 5), 17, (3, 3), 4, PiecewiseConvolution((1, 1), ((1, 1), (1, 1)))),
    "valid": (4, (6, 6), 2, (2, 3), 3, PiecewiseConvolution((1, 1), ((0, 0), (0, 0)))),
    "strided": (
        5,
        (8, 7),
        3,
        (3, 3),
        2,
        PiecewiseConvolution((2, 2), ((0, 1), (1, 1))),
    ),
    "one tap, strided": (
        *(4, (6, 6), 3, (1, 1), 2),
        PiecewiseConvolution((2, 2), ((0, 0), (0, 0))),
    ),
    "dilated": (
        *(3, (9, 8), 2, (3, 2), 2),
        PiecewiseConvolution((1, 2), ((2, 2), (0, 1)), (2, 1)),
    ),
    "padded beyond the kernel": (
        *(3, (5, 5), 2, (2, 2), 3),
        PiecewiseConvolution((1, 1), ((3, 2), (2, 3))),
    ),
}


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of an image or two, however small the arrays."""
    monkeypatch.setattr(parallel, "product_bytes", lambda: 64)


def explicit(x, kernel, kind, g):
    """Outputs and both gradients: every place, every tap, every channel."""
    x, kernel, g = (np.asarray(a, np.float64) for a in (x, kernel, g))
    padded = np.pad(x, ((0, 0), *kind.padding, (0, 0)))
    outputs, d_padded, d_kernel = (np.zeros_like(a) for a in (g, padded, kernel))
    for p, q in np.ndindex(*g.shape[1:3]):
        for tap in np.ndindex(*kernel.shape[:2]):
            row, column = (
                place * stride + t * step
                for place, stride, t, step in zip(
                    (p, q), kind.strides, tap, kind.dilation, strict=True
                )
            )
            met = padded[:, row, column]
            outputs[:, p, q] += met @ kernel[tap]
            d_padded[:, row, column] += g[:, p, q] @ kernel[tap].T
            d_kernel[tap] += met.T @ g[:, p, q]
    (top, bottom), (left, right) = kind.padding
    height, width = d_padded.shape[1:3]
    inside = d_padded[:, top : height - bottom, left : width - right]
    return outputs, inside, d_kernel


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_explicit_loops(case, small_pieces):
    n, space, channels, taps, outputs, kind = CASES[case]
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (n, *space, channels))
    kernel = jax.random.normal(keys[1], (*taps, channels, outputs))
    y, pullback = jax.vjp(kind, x, kernel)
    g = jax.random.normal(keys[2], y.shape)
    for found, wanted in zip(
        (y, *pullback(g)), explicit(x, kernel, kind, g), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    program = jax.make_jaxpr(lambda g: pullback(g))(g)
    assert "scan[" in str(program)


def loops(function, *args):
    """How many loops the gradient's program has."""
    return str(jax.make_jaxpr(jax.grad(function))(*args)).count("scan[")


def test_only_large_operands_are_cut(monkeypatch):
    kind = PiecewiseConvolution((1, 1), ((1, 1), (1, 1)))
    x, kernel = jnp.ones((4, 8, 8, 2)), jnp.ones((3, 3, 2, 2))

    def total(kernel):
        return kind(x, kernel).sum()

    assert loops(total, kernel) == 0
    monkeypatch.setattr(parallel, "product_bytes", lambda: 64)
    assert loops(total, kernel) > 0


@pytest.mark.parametrize(
    ("count", "most", "pieces_of", "left"),
    [(12, 5, 4, 0), (13, 5, 5, 3), (7, 1, 1, 0)],
)
def test_pieces_are_even_where_that_is_possible(count, most, pieces_of, left):
    images = jnp.arange(2 * count).reshape(count, 2)
    (whole,), rest = cpu_convolution._cut((images,), most)
    assert whole.shape[1] == pieces_of
    assert (0 if rest is None else len(rest[0])) == left
    parts = [whole.reshape(-1, 2), *(rest or ())]
    assert jnp.array_equal(jnp.concatenate(parts), images)


class Network(nn.Module):
    """Convolutions that are replaced, and some that are not."""

    @nn.compact
    def __call__(self, x, train=False):
        """Logits of three classes."""
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(nn.Conv(4, (3, 3), 2, feature_group_count=2)(x))
        x = nn.remat(nn.Conv)(4, (3, 3))(x)
        x = jax.jit(nn.relu)(nn.Conv(3, (1, 1), 2, padding="VALID")(x))
        return x.mean(axis=(1, 2))


@pytest.fixture(scope="module")
def network():
    """The network, its variables and some images."""
    images = jax.random.uniform(jax.random.key(0), (6, 8, 8, 3))
    model = Network()
    return model, model.init(jax.random.key(1), images), images


def test_a_networks_gradients_stay_the_same(network, small_pieces):
    model, variables, images = network

    def loss(params, images):
        outputs, state = model.apply(
            {**variables, "params": params}, images, True, mutable=["batch_stats"]
        )
        return jnp.sum(outputs**2), state

    plain = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    cut = jax.value_and_grad(in_pieces(loss), argnums=(0, 1), has_aux=True)
    given = (variables["params"], images)
    for found, wanted in zip(
        *(jax.tree.leaves(f(*given)) for f in (cut, plain)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    # The grouped convolution and the one that is computed again are as they were.
    programs = [str(jax.make_jaxpr(f)(*given)) for f in (cut, plain)]
    grouped = [text.count("feature_group_count=2") for text in programs]
    assert grouped[0] == grouped[1] > 0
    assert ["scan[" in text for text in programs] == [True, False]


def test_unlearning_and_training_compute_the_same(network, monkeypatch):
    model, variables, images = network
    classifier = ju.freeze(model, variables)
    labels = np.arange(6, dtype=np.int32) % 3
    data = ju.Data(np.asarray(images), labels)

    def parameters():
        jax.clear_caches()
        given, key = (classifier, images, labels, optax.sgd(0.1)), jax.random.key(2)
        done = ju.unlearn(*given, steps=3, key=key, batch_size=5)
        recipe = Recipe(epochs=1, batch_size=3)
        fitted = ju.training.fit(model, data, recipe=recipe, key=key)
        return jax.tree.leaves((done.classifier.params, fitted.params))

    whole = parameters()
    monkeypatch.setattr(parallel, "product_bytes", lambda: 64)
    cut = parameters()
    differences = [float(jnp.abs(a - b).max()) for a, b in zip(whole, cut, strict=True)]
    assert max(differences) < 1e-5
    # Another order of summation: bits that do not differ were not computed anew.
    assert max(differences) > 0


def test_other_backends_keep_their_convolutions(monkeypatch):
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: False)
    assert in_pieces(len) is len


@pytest.mark.parametrize(
    ("dtype", "groups", "kept"),
    [(jnp.float32, 1, False), (jnp.float32, 2, True), (jnp.bfloat16, 1, True)],
)
def test_which_convolutions_are_replaced(dtype, groups, kept):
    model = nn.Conv(4, (3, 3), feature_group_count=groups, dtype=dtype)
    x = jnp.ones((2, 4, 4, 2), dtype)
    variables = model.init(jax.random.key(0), x)
    closed = jax.make_jaxpr(model.apply)(variables, x)
    (eqn,) = (
        e for e in closed.jaxpr.eqns if e.primitive.name == "conv_general_dilated"
    )
    assert (PiecewiseConvolution.read(eqn) is None) == kept
