"""EfficientNet: its layers against a NumPy twin, their moments, what is protected."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from normalised import StatisticsTape, draw_classifier
from oracles import by_path, double, relative_error
from scipy.special import expit as sigmoid

import jaxunlearn as ju
from jaxunlearn import models
from jaxunlearn.models import efficientnet

pytestmark = pytest.mark.long

SHAPE, CLASSES = (8, 8, 2), 3
LOGITS = jax.jit(lambda classifier, images: classifier(images))
BUILD = functools.partial(
    models.create, "efficientnet", num_classes=CLASSES, width=0.13
)
# Expansion, channels at width 1, blocks, stride, side of the kernel: every kind of
# block in two stages, as five take a minute to compile. test_models.py has all sizes.
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 5))


@pytest.fixture(scope="module", autouse=True)
def two_stages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet, "_STAGES", STAGES)
        yield


def images(n, seed=1):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(n, *SHAPE)))


def swish(x):
    return x * sigmoid(x)


def conv(tape, path, x, side, features, stride=1, groups=1):
    return tape.conv(
        f"{path}/kernel",
        x,
        kernel_size=(side, side),
        features=features,
        strides=stride,
        padding=[(side // 2, side // 2)] * 2,
        feature_group_count=groups,
    )


def block(tape, name, x, expansion, channels, stride, side):
    before, y = x.shape[-1], x
    wide = expansion * before
    if expansion > 1:
        y = conv(tape, f"{name}/expand", y, 1, wide)
        y = swish(tape.norm(f"{name}/bn_expand", y))
    y = conv(tape, f"{name}/depthwise", y, side, wide, stride, groups=wide)
    y = swish(tape.norm(f"{name}/bn_depthwise", y))
    gate = swish(tape.dense(f"{name}/squeeze/kernel", y.mean(axis=(1, 2))))
    y = y * sigmoid(tape.dense(f"{name}/excite/kernel", gate))[:, None, None]
    y = tape.norm(f"{name}/bn_project", conv(tape, f"{name}/project", y, 1, channels))
    return x + y if x.shape == y.shape else y


def twin(tape, x):
    x = swish(tape.norm("bn_stem", conv(tape, "stem", x, 3, int(0.13 * 32))))
    for stage, (expansion, channels, count, stride, side) in enumerate(STAGES):
        for number in range(count):
            step, name = (stride if number == 0 else 1), f"stage{stage}_{number}"
            x = block(tape, name, x, expansion, int(0.13 * channels), step, side)
    x = swish(tape.norm("bn_last", conv(tape, "last", x, 1, int(0.13 * 320))))
    return tape.dense("fc/kernel", x.mean(axis=(1, 2)))


def opened(dtype):
    """With gates that let most through, so that images differ in their logits."""

    def wider(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("excite/bias"):
            return leaf + 3
        return 2 * leaf if name.endswith("scale") else leaf

    drawn = draw_classifier(BUILD, SHAPE, dtype)
    return drawn.replace(params=jax.tree_util.tree_map_with_path(wider, drawn.params))


@pytest.fixture(scope="module")
def original(two_stages):
    with jax.enable_x64(True):
        return opened(np.float64)


def test_logits_and_moments_are_those_of_the_explicit_rows(original):
    with jax.enable_x64(True):
        x = images(3)
        tape = StatisticsTape(original)
        logits = twin(tape, double(x))
        assert relative_error(LOGITS(original, x), logits) <= 1e-12
        moments = by_path(ju.second_moments(original, x))
    assert {path for path, m in moments.items() if m is not None} == tape.paths()
    for path in tape.paths():
        assert relative_error(moments[path].gram, tape.gram(path)) <= 1e-10, path
        assert float(moments[path].rows) == tape.count(path)
    # One group for each channel, and gates that see one row of an image.
    assert moments["stage1_0/depthwise/kernel"].gram.shape == (12, 25, 25)
    assert float(moments["stage1_0/squeeze/kernel"].rows) == 3


def test_what_is_protected_exactly_does_not_move(original):
    with jax.enable_x64(True):
        retained, forgotten = images(2), images(2, seed=2)
        rows = ju.row_subspaces(original, retained, rtol=1e-12)
        optimizer = optax.chain(optax.adam(0.02), ju.project_to_null_space(rows))
        before = [double(LOGITS(original, x)) for x in (retained, forgotten)]
        result = ju.unlearn(
            *(original, forgotten, before[1].argmin(1), optimizer),
            steps=5,
            key=jax.random.key(0),
        )
        after = [double(LOGITS(result.classifier, x)) for x in (retained, forgotten)]
    changes = [
        np.linalg.norm(b - a) / np.linalg.norm(a)
        for a, b in zip(before, after, strict=True)
    ]
    assert changes[0] <= 1e-10
    assert changes[1] >= 1e-2
