"""Shifts and attacks against formulas in NumPy, and the audits made of them."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.metrics import fgsm, pgd, shifted_images
from jaxunlearn.metrics.perturbation import ascend
from jaxunlearn.metrics.rows import inputs
from jaxunlearn.metrics.shifts import SHIFTS

pytestmark = pytest.mark.core
KEY = jax.random.key(3)
RNG = np.random.default_rng(3)
WEIGHT, BIAS = RNG.normal(size=(4, 3)), np.array([0.2, -0.1, 0.0])
PIXELS = RNG.uniform(0.01, 0.99, size=(9, 4)).astype(np.float32)
LABELS = np.arange(9) % 3
SCENES = RNG.integers(0, 256, size=(3, 5, 4, 2), dtype=np.uint8)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


def linear(scale=1.0, bias=BIAS, **options):
    head = {"kernel": jnp.asarray(scale * WEIGHT), "bias": jnp.asarray(scale * bias)}
    return ju.freeze(Net(), {"params": {"head": head}}, **options)


DATA = ju.Data(PIXELS.reshape(9, 2, 2, 1), LABELS)


def slow_shift(x, shift, span, noise):
    """Pixel by pixel, in float64, neither clipped nor rounded."""
    height, width = x.shape[1:3]
    moved = np.empty(x.shape)
    for i, r, c, k in np.ndindex(*x.shape):
        if shift == "noise":
            moved[i, r, c, k] = x[i, r, c, k] + 0.06 * span * noise[i, r, c, k]
        elif shift == "blur":
            total = sums = 0.0
            for down, right in itertools.product(range(-2, 3), repeat=2):
                weight = math.exp(-(down**2 + right**2) / 0.72)
                row = min(max(r + down, 0), height - 1)
                column = min(max(c + right, 0), width - 1)
                sums += weight * float(x[i, row, column, k])
                total += weight
            moved[i, r, c, k] = sums / total
        else:
            middle = math.fsum(x[i, :, :, k].ravel().tolist()) / (height * width)
            moved[i, r, c, k] = middle + 0.5 * (float(x[i, r, c, k]) - middle)
    return moved


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_is_its_formula(shift, monkeypatch):
    # Batches of two: the noise is drawn as in one.
    monkeypatch.setattr("jaxunlearn.metrics.shifts._BATCH", 2)
    seed = np.asarray(jax.random.key_data(KEY)).ravel().tolist()
    noise = np.random.default_rng(seed).standard_normal(SCENES.shape)
    exact = np.clip(slow_shift(SCENES, shift, 255, noise), 0, 255)
    found = shifted_images(SCENES, shift, key=KEY)
    assert found.dtype == np.uint8
    assert np.abs(found - exact).max() <= 0.5 + 1e-9
    assert not np.array_equal(found, SCENES)
    np.testing.assert_array_equal(found, shifted_images(SCENES, shift, key=KEY))

    # Floats of another range, which is theirs alone.
    floats = (SCENES / 50.0 - 2).astype(np.float32)
    low, high = floats.min(), floats.max()
    exact = np.clip(slow_shift(floats, shift, high - low, noise), low, high)
    found = shifted_images(floats, shift, key=KEY)
    np.testing.assert_allclose(found, exact, atol=1e-6)


def test_noise_is_of_the_documented_size():
    grey = np.full((4, 32, 32, 1), 128, np.uint8)
    noise = shifted_images(grey, "noise", key=KEY) - 128.0
    assert noise.std() == pytest.approx(0.06 * 255, rel=0.05)
    other = shifted_images(grey, "noise", key=jax.random.key(4)) - 128.0
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        (SCENES, {"shift": "fog"}, "shift must be one of 'noise'"),
        (SCENES[0], {"shift": "blur"}, r"images must be \[n, h, w, c\]"),
    ],
)
def test_other_shifts_are_refused(images, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        shifted_images(images, key=KEY, **options)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def test_fgsm_is_the_sign_of_the_gradient_known_by_hand():
    found = fgsm(linear(), DATA, epsilon=0.05, bounds=(0, 1), batch_size=4)
    for x, y, moved, wrong in zip(
        PIXELS.astype(float), LABELS, found.images, found.reached, strict=True
    ):
        before = x @ WEIGHT + BIAS
        gradient = WEIGHT @ (softmax(before) - np.eye(3)[y])
        expected = np.clip(x + 0.05 * np.sign(gradient), 0, 1)
        np.testing.assert_allclose(moved.ravel(), expected, atol=1e-6)
        after = expected @ WEIGHT + BIAS
        assert wrong == (before.argmax() != y or after.argmax() != y)
    assert 0 < found.reached.sum() < 9


@pytest.mark.long
def test_fgsm_of_a_sure_network_goes_the_same_way():
    # Of the cross-entropy as it stands the gradient is 0 in float32.
    sure = linear(scale=1000.0)
    right = (PIXELS @ WEIGHT + BIAS).argmax(axis=1)
    data = ju.Data(DATA.images, right)
    losses = jax.grad(
        lambda x: -jax.nn.log_softmax(sure(x))[jnp.arange(9), right].sum()
    )(jnp.asarray(data.images))
    assert (np.abs(losses).max(axis=(1, 2, 3)) == 0).any()
    moved = fgsm(sure, data, epsilon=0.05, bounds=(0, 1)).images.reshape(9, 4)
    for x, y, there in zip(PIXELS.astype(float), right, moved, strict=True):
        z = x @ WEIGHT + BIAS
        z[y] = -np.inf
        # So sure that the runner-up alone counts.
        gradient = WEIGHT[:, z.argmax()] - WEIGHT[:, y]
        expected = np.clip(x + 0.05 * np.sign(gradient), 0, 1)
        np.testing.assert_allclose(there, expected, atol=1e-6)


@pytest.mark.parametrize(("goal", "toward"), [("escape", -1), ("recover", 1)])
def test_pgd_is_its_twin_and_stays_in_the_ball(goal, toward):
    epsilon, steps = 0.04, 5
    found = pgd(
        linear(),
        DATA,
        goal=goal,
        epsilon=epsilon,
        steps=steps,
        bounds=(0, 1),
        batch_size=4,
    )
    change = found.images.reshape(9, 4) - PIXELS
    assert np.abs(change).max() <= epsilon + 1e-6
    assert 0 <= found.images.min() <= found.images.max() <= 1
    for x0, y, moved, reached in zip(
        PIXELS.astype(float), LABELS, found.images, found.reached, strict=True
    ):
        x, tried = x0, [x0]
        for _ in range(steps):
            z = x @ WEIGHT + BIAS
            z[y] = -np.inf
            slope = WEIGHT[:, y] - WEIGHT[:, z.argmax()]
            x = x + toward * 2.5 * epsilon / steps * np.sign(slope)
            x = np.clip(np.clip(x, x0 - epsilon, x0 + epsilon), 0, 1)
            tried.append(x)
        np.testing.assert_allclose(moved.ravel(), x, atol=1e-6)
        right = [(t @ WEIGHT + BIAS).argmax() == y for t in tried]
        assert reached == (any(right) if goal == "recover" else not all(right))
    assert 0 < found.reached.sum() < 9


@pytest.mark.long
def test_bytes_are_attacked_as_pixels_before_the_preprocessing():
    standard = linear(preprocess=ju.Preprocess([0.3], [0.2]))
    whole = np.rint(255 * DATA.images).astype(np.uint8)
    found = pgd(standard, ju.Data(whole, LABELS))
    change = np.abs(found.images - whole / np.float32(255))
    assert change.max() == pytest.approx(8 / 255, rel=1e-4)
    assert 0 <= found.images.min() <= found.images.max() <= 1
    assert pgd(standard, ju.Data(whole[:0], LABELS[:0])).reached.size == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"goal": "escpe"}, "goal must be one of 'escape', 'recover'"),
        ({"epsilon": 0.0}, "epsilon must be"),
        ({"steps": 0}, "steps must be"),
        ({"bounds": (0.5, 1)}, "bounds must hold them"),
    ],
)
def test_other_attacks_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        pgd(linear(), DATA, **options)


def task(n=90):
    """Bright corners of bytes, so that a linear network knows its classes."""
    rng = np.random.default_rng(5)
    labels = np.arange(n) % 3
    pixels = 90 + 60 * np.eye(4)[labels] + rng.normal(scale=25, size=(n, 4))
    images = np.clip(pixels, 0, 255).astype(np.uint8).reshape(n, 2, 2, 1)
    return ju.Data(images, labels)


def reader(bias=0.0):
    """Reads one pixel for every class, with a bias against class 2."""
    weight = 8 * np.eye(4)[:, :3]
    head = {"kernel": jnp.asarray(weight), "bias": jnp.array([0.0, 0.0, bias])}
    head = jax.tree.map(lambda x: x.astype(jnp.float32), head)
    preprocess = ju.Preprocess([0.0], [1.0])
    return ju.freeze(Net(), {"params": {"head": head}}, preprocess=preprocess)


def audit(which, **options):
    given = {
        "original": reader(),
        "retrained": [reader(-99.0), reader(-98.0)],
        "train": task(),
        "test": task(),
        "forget_classes": [2],
        "key": jax.random.key(0),
        "which": which,
        **options,
    }
    return ju.audit(reader(-2.0), **given)


def test_the_audit_of_shifts_is_accuracy_on_shifted_images():
    result = audit(["shifted"])
    test, key = task(), jax.random.fold_in(jax.random.key(0), 5)
    for model, column in ((reader(-2.0), "unlearned"), (reader(), "original")):
        found = []
        for shift in SHIFTS:
            images = shifted_images(test.images, shift, key=key)
            expected = ju.evaluate(model, ju.Data(images, test.labels), [2])
            found.append((expected.retained, expected.forgotten))
            for kind, value in zip(("retained", "forgotten"), found[-1], strict=True):
                row = result[f"shifted/{shift}-{kind}"]
                assert getattr(row, column) == pytest.approx(value)
        means = np.mean(found, axis=0)
        for kind, value in zip(("retained", "forgotten"), means, strict=True):
            assert getattr(result[f"shifted/{kind}"], column) == pytest.approx(value)
    assert result["shifted/forgotten"].retrained == (0, 0)
    # Of the 30 forgotten samples, whatever the number of shifts.
    share = 2 / 34
    noise = 200 * math.sqrt(share * (1 - share) / 34)
    assert result["shifted/forgotten"].floor == pytest.approx(noise)


@pytest.mark.long
def test_the_audit_of_attacks_on_a_network_that_reads_single_pixels(monkeypatch):
    monkeypatch.setattr(inputs, "ATTACKED", 20)
    result = audit(["attacked"])
    test, reach = task(), 8 / 255
    for bias, column in ((-2.0, "unlearned"), (0.0, "original")):
        recovered, kept = [], {0: [], 1: []}
        chosen = [np.flatnonzero(test.labels == 2), np.flatnonzero(test.labels < 2)]
        chosen = [
            rows[np.linspace(0, len(rows) - 1, 20).round().astype(int)]
            for rows in chosen
        ]
        z = 8 / 255 * test.images.reshape(-1, 4)[:, :3] + [0, 0, bias]
        for i in chosen[0]:
            # Its own pixel up and the others down: 2 x 8 x 8/255.
            recovered.append(z[i, 2] - z[i, :2].max() + 16 * reach > 0)
        for i in chosen[1]:
            y = test.labels[i]
            others = np.delete(z[i], y).max()
            kept[y].append(z[i, y] - others - 16 * reach >= 0)
        back = 100 * np.mean(recovered)
        still = 100 * np.mean([np.mean(kept[0]), np.mean(kept[1])])
        assert getattr(result["attacked/forgotten"], column) == pytest.approx(back)
        for name in ("fgsm", "pgd"):
            row = result[f"attacked/{name}-retained"]
            assert getattr(row, column) == pytest.approx(still)
    row = result["attacked/forgotten"]
    assert 0 == row.retrained[0] < row.unlearned < row.original
    assert 0 < result["attacked/pgd-retained"].unlearned < 100


@pytest.mark.long
def test_an_attack_is_compiled_once_for_all_models_of_a_network():
    audit(["attacked"])
    compiled = ascend._cache_size()
    audit(["attacked"], original=reader(0.5))
    assert ascend._cache_size() == compiled


def test_both_ask_for_whole_classes():
    data = task()
    for name in ("shifted", "attacked"):
        with pytest.raises(ValueError, match=f"'{name}' asks what is left of whole"):
            audit([name], forget_classes=(), forget=data.take([0]))
