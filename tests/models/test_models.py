"""The networks: sizes as documented, layers as the program shows them, and NNX."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from nnx_resnet import ResNet18
from normalised import drawn
from oracles import by_path

import jaxunlearn as ju
from jaxunlearn import models
from jaxunlearn.models.layers import normalised
from jaxunlearn.tasks import Data
from jaxunlearn.training import Recipe, fit

KEY = jax.random.key(0)
COLOUR, GREY, IMAGENET = (32, 32, 3), (32, 32, 1), (224, 224, 3)


@functools.cache
def shapes(model, image_shape):
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    return jax.eval_shape(model.init, KEY, images)


def classifier(name, image_shape, **options):
    """Drawn, not initialised: that takes no compilation."""
    model = models.create(name, num_classes=3, **options)
    return ju.freeze(model, drawn(shapes(model, image_shape), np.float32))


def images(n, image_shape, seed=1):
    values = np.random.default_rng(seed).normal(size=(n, *image_shape))
    return jnp.asarray(values, jnp.float32)


def count(params):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(params))


# Sizes.

LARGE = {"num_classes": 1000, "patch": 16}
LONG = pytest.mark.long
STEM = {"stem": "imagenet", "num_classes": 1000}


@pytest.mark.parametrize(
    ("name", "options", "image_shape", "parameters"),
    [
        ("lenet5", {}, GREY, 61_706),
        ("lenet5", {}, (28, 28, 1), 61_706),
        ("smallcnn", {}, (8, 8, 1), 24_058),
        ("allcnn", {}, COLOUR, 406_810),
        pytest.param("efficientnet", {}, COLOUR, 371_454, marks=LONG),
        ("alexnet", {}, GREY, 6_526_848),
        ("alexnet", {}, (28, 28, 1), 6_526_848),
        ("vgg11", {}, COLOUR, 28_149_514),
        pytest.param("vgg16", {}, COLOUR, 33_646_666, marks=LONG),
        ("vgg11", {"pool": 7, "num_classes": 1000}, IMAGENET, 132_868_840),
        pytest.param(
            "vgg16", {"pool": 7, "num_classes": 1000}, IMAGENET, 138_365_992, marks=LONG
        ),
        ("resnet18", {}, COLOUR, 11_173_962),
        pytest.param("resnet34", {}, COLOUR, 21_282_122, marks=LONG),
        pytest.param("resnet50", {}, COLOUR, 23_520_842, marks=LONG),
        ("resnet18", STEM, IMAGENET, 11_689_512),
        pytest.param("resnet34", STEM, IMAGENET, 21_797_672, marks=LONG),
        pytest.param("resnet50", STEM, IMAGENET, 25_557_032, marks=LONG),
        pytest.param("vit", {"size": "tiny", **LARGE}, IMAGENET, 5_717_416, marks=LONG),
        pytest.param(
            "vit", {"size": "small", **LARGE}, IMAGENET, 22_050_664, marks=LONG
        ),
        pytest.param(
            "vit", {"size": "base", **LARGE}, IMAGENET, 86_567_656, marks=LONG
        ),
    ],
)
def test_networks_have_as_many_parameters_as_documented(
    name, options, image_shape, parameters
):
    model = models.create(name, **{"num_classes": 10, **options})
    assert count(shapes(model, image_shape)["params"]) == parameters
    assert f"{parameters:,}" in type(model).__doc__


def test_the_nnx_network_has_as_many_parameters_as_documented():
    module = nnx.eval_shape(lambda: ResNet18(10, rngs=nnx.Rngs(0)))
    parameters = count(nnx.state(module, nnx.Param))
    assert f"{parameters:,} parameters" in ResNet18.__doc__


def test_each_docstring_cites_a_source():
    documented = {type(models.create(name, num_classes=2)) for name in models.names()}
    for kind in (documented | {ResNet18}) - {models.SmallCNN}:
        assert "Source: " in kind.__doc__


@pytest.mark.long
@pytest.mark.parametrize("name", models.names())
def test_logits_are_one_row_for_each_image(name):
    model = models.create(name, num_classes=5)
    for train in (False, True):
        call = functools.partial(model.apply, train=train, mutable=["batch_stats"])
        variables = shapes(model, COLOUR)
        x = jax.ShapeDtypeStruct((2, *COLOUR), jnp.float32)
        logits, _ = jax.eval_shape(call, variables, x, rngs={"dropout": KEY})
        assert logits.shape == (2, 5)
        assert logits.dtype == jnp.float32


@pytest.mark.long
@pytest.mark.parametrize("name", models.names())
def test_batch_norm_follows_short_trainings(name):
    found = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm):
            found.add((context.module.momentum, context.module.epsilon))
        return call(*args, **kwargs)

    model = models.create(name, num_classes=5)
    with nn.intercept_methods(note):
        x = jax.ShapeDtypeStruct((1, *COLOUR), jnp.float32)
        variables = jax.eval_shape(lambda x: model.init(KEY, x), x)
    assert found == ({(0.9, 1e-5)} if "batch_stats" in variables else set())


# GroupNorm in place of BatchNorm.


@pytest.mark.long
@pytest.mark.parametrize("channels", [8, 32, 24])
def test_groups_are_of_sixteen_channels_or_of_all(channels):
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return normalised(x, "group", True, "bn")

    x = np.random.default_rng(0).normal(size=(3, 4, 5, channels)) * 7 + 2
    groups = 2 if channels == 32 else 1
    parts = x.reshape(3, 20, groups, -1)
    mean, var = (f(parts, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    expected = ((parts - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    scale, bias = np.random.default_rng(1).normal(size=(2, channels))
    params = {"bn": {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}}
    found = Norm().apply({"params": params}, jnp.float32(x))
    np.testing.assert_allclose(found, expected * scale + bias, atol=1e-4)


@pytest.mark.long
def test_a_resnet_of_group_norm_keeps_no_statistics():
    plain = models.create("resnet18", num_classes=3, width=4)
    model = models.create("resnet18", num_classes=3, width=4, norm="group")
    assert models.recognise(model)["options"] == {"width": 4, "norm": "group"}
    found, others = (shapes(m, COLOUR) for m in (model, plain))
    assert "batch_stats" not in found
    assert count(found["params"]) == count(others["params"])
    with pytest.raises(ValueError, match="one of 'batch', 'group'; it is 'layer'"):
        models.create("resnet18", num_classes=3, norm="layer")
    with pytest.raises(TypeError, match='with norm="batch"; this one has "group"'):
        models.torch_weights.to_torch(model, found)


# Images that do not fit.

LEAST = {
    "lenet5": (8, {}),
    "allcnn": (4, {}),
    "alexnet": (19, {}),
    "resnet18": (8, {}),
    "resnet50": (32, {"stem": "imagenet"}),
    "vgg11": (32, {}),
    "efficientnet": (8, {}),
}


@pytest.mark.parametrize("name", LEAST)
def test_images_that_are_too_small_are_refused(name):
    least, options = LEAST[name]
    model = models.create(name, num_classes=5, **options)
    shapes(model, (least, least, 3))
    sentence = (
        f"needs images of {least} x {least} pixels or more; these are "
        f"{least} x {least - 1}. Resize them"
    )
    with pytest.raises(ValueError, match=sentence):
        shapes(model, (least, least - 1, 3))


def test_a_vision_transformer_wants_whole_patches():
    model = models.create("vit", num_classes=5, patch=16)
    with pytest.raises(ValueError, match="patches of 16 x 16 pixels, and 32 x 28"):
        shapes(model, (32, 28, 3))


def test_a_vgg_pools_in_equal_tiles():
    model = models.create("vgg11", num_classes=5, pool=7)
    with pytest.raises(ValueError, match="map of 3 x 3 to 7 x 7.*multiples of 224"):
        shapes(model, (96, 96, 3))


@pytest.mark.long
@pytest.mark.parametrize(
    ("side", "pool", "tiles"), [(32, 2, 1), (64, 1, 2), (128, 2, 2), (64, 2, 1)]
)
def test_a_vgg_averages_its_last_map_or_repeats_it(side, pool, tiles):
    model = models.create("vgg11", num_classes=5, width=2, features=4, pool=pool)
    rows = shapes(model, (side, side, 3))["params"]["fc0"]["kernel"].shape[0]
    assert rows == 16 * pool**2
    whole = np.random.default_rng(0).normal(size=(1, side // 32, side // 32, 16))
    found = models.vgg._pooled(jnp.asarray(whole, jnp.float32), pool)
    for i in range(pool):
        for j in range(pool):
            h, w = (min(k * tiles, side // 32 - 1) for k in (i, j))
            tile = whole[:, h : h + tiles, w : w + tiles].mean((1, 2))
            np.testing.assert_allclose(found[:, i, j], tile, rtol=1e-5, atol=1e-6)


# Dropout.

DROPPING = {
    "allcnn": ((4, 4, 3), {"width": 0.1, "dropout": 0.5}),
    "alexnet": ((19, 19, 1), {"features": 8}),
    "vgg11": (COLOUR, {"width": 2, "features": 32}),
    "vit": ((8, 8, 3), {"depth": 1, "dropout": 0.5}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", DROPPING)
def test_values_are_dropped_in_training_alone(name):
    image_shape, options = DROPPING[name]
    original, x = classifier(name, image_shape, **options), images(4, image_shape)

    @jax.jit
    def train(key):
        return original.network.apply_train(original.params, original.state, x, key)[0]

    one, again, another = train(KEY), train(KEY), train(jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - another).max() > 1e-3
    # Evaluation asks for no key at all.
    logits = jax.jit(lambda c, x: c(x))(original, x)
    assert np.isfinite(logits).all()


def test_all_cnn_drops_nothing_by_default():
    model = models.create("allcnn", num_classes=3, width=0.1)
    call = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    x = jax.ShapeDtypeStruct((2, *COLOUR), jnp.float32)
    jax.eval_shape(call, shapes(model, COLOUR), x)  # without a key


# Options.


@pytest.mark.parametrize(
    ("name", "options", "error", "sentence"),
    [
        ("resnet19", {}, ValueError, "one of .*'resnet18'.*; it is 'resnet19'"),
        ("lenet5", {"width": 3}, TypeError, "lenet5 has no option 'width'; .*: none"),
        ("vit", {"width": 3}, TypeError, "it has: size, patch, depth, dropout"),
        (
            "resnet18",
            {"blocks": (1,)},
            TypeError,
            "no option 'blocks'",
        ),
        ("resnet18", {"width": "wide"}, TypeError, "must be of type int; it is 'wide'"),
        ("resnet18", {"width": 8.0}, TypeError, "must be of type int; it is 8.0"),
        ("resnet18", {"width": True}, TypeError, "must be of type int; it is True"),
        (
            "resnet18",
            {"width": 0},
            ValueError,
            r"positive, below 2\*\*31; it is 0",
        ),
        (
            "resnet18",
            {"stem": "c"},
            ValueError,
            "one of 'cifar', 'imagenet'; it is 'c'",
        ),
        ("vit", {"size": 3}, ValueError, "one of 'tiny', 'small', 'base'; it is 3"),
        ("vit", {"size": np.ones(3)}, ValueError, r"'base'; it is float64\[3\]"),
        ("vit", {"x" * 10**5: 1}, TypeError, "vit has no option 'xxx.*it has: size"),
        ("x" * 10**5, {}, ValueError, "'vit'; it is 'xxx"),
        ("vgg11", {"batch_norm": 1}, TypeError, "must be of type bool; it is 1"),
        ("vgg11", {"dropout": 1.0}, ValueError, r"must be in \[0, 1\); it is 1.0"),
        (
            "allcnn",
            {"width": -0.5},
            ValueError,
            r"positive, below 2\*\*31; it is -0.5",
        ),
        ("allcnn", {"width": math.nan}, ValueError, "of the model allcnn .* is nan"),
        ("allcnn", {"width": math.inf}, ValueError, "of the model allcnn .* is inf"),
        ("allcnn", {"width": [0.5]}, TypeError, r"of type float; it is \[0.5\]"),
        ("vgg11", {"dropout": -0.1}, ValueError, r"in \[0, 1\); it is -0.1"),
        ("vgg11", {"dropout": math.nan}, ValueError, r"in \[0, 1\); it is nan"),
        ("vit", {"depth": 2**70}, ValueError, r"below 2\*\*31; it is 1180591620717411"),
        ("vit", {"depth": 10**5000}, ValueError, r"below 2\*\*31; it is <int>"),
        ("vit", {"num_classes": 0}, ValueError, "at least 1; it is 0"),
        (
            "vit",
            {"num_classes": 2**70},
            ValueError,
            r"num_classes must be at most 2147483647; it is",
        ),
        ("vit", {"num_classes": "3"}, TypeError, "an integer; .*3|Type-check"),
        ("vit", {"num_classes": True}, TypeError, "be an integer; it is True"),
        # Counted before anything of this size is made.
        ("resnet18", {"width": 99_999_999}, ValueError, "ResNet would take .* GB of"),
        ("smallcnn", {"width": 2**31 - 1}, ValueError, "SmallCNN would take .* GB and"),
        ("allcnn", {"width": 1e9}, ValueError, "AllCNN would take .* are free: lower"),
        ("vit", {"depth": 10**7}, ValueError, "ViT would take 17,794.6 GB and"),
        ("vit", {"patch": 10**9}, ValueError, "ViT would take .* GB"),
        ("resnet18", {"num_classes": 10**9}, ValueError, "take 2,052.0 GB and .* free"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        models.create(name, **{"num_classes": 3, **options})
    assert len(str(raised.value)) < 1000


def test_networks_that_are_larger_than_usual_and_fit_are_made():
    assert models.create("vit", num_classes=20_000, size="tiny", depth=200).depth == 200
    assert models.create("allcnn", num_classes=3, width=2.0).width == 2


def test_options_are_read_from_texts():
    texts = ["width=2", "batch_norm=false", "dropout=0.1", "features=8"]
    options = models.parse_options("vgg11", texts)
    assert options == {
        "width": 2,
        "batch_norm": False,
        "dropout": 0.1,
        "features": 8,
    }
    assert not models.create("vgg11", num_classes=3, **options).batch_norm
    assert models.parse_options("resnet18", ["stem=imagenet"]) == {"stem": "imagenet"}
    assert models.parse_options("allcnn", ["width=1"]) == {"width": 1}
    assert models.parse_options("lenet5", []) == {}


@pytest.mark.parametrize(
    ("texts", "error", "sentence"),
    [
        (["width"], ValueError, "An option is NAME=VALUE, each name once; 'width'"),
        (["=3"], ValueError, "NAME=VALUE, each name once; '=3'"),
        (["width=3", "width=4"], ValueError, "each name once; 'width=4'"),
        (["width=wide"], TypeError, "must be of type int; it is 'wide'"),
        (["width=" + "[" * 10**5], TypeError, r"must be of type int; it is '\[\[\[\["),
        (["width=1e999"], TypeError, "must be of type int; it is inf"),
        (["width=NaN"], TypeError, "must be of type int; it is nan"),
        (["width=99999999999999999999"], ValueError, r"below 2\*\*31; it is 99"),
        (["width=1.5"], TypeError, "must be of type int; it is 1.5"),
        (["depth=3"], TypeError, "no option 'depth'"),
        (["stem=3"], ValueError, "one of 'cifar', 'imagenet'; it is 3"),
    ],
)
def test_texts_that_are_no_options_are_refused(texts, error, sentence):
    with pytest.raises(error, match=sentence):
        models.parse_options("resnet18", texts)


# Layers, as the program shows them.

TINY = {
    "alexnet": ((28, 28, 1), {"features": 8}),
    "allcnn": ((8, 8, 3), {"width": 0.1}),
    "efficientnet": ((8, 8, 3), {"width": 0.13}),
    "lenet5": ((28, 28, 1), {}),
    "resnet18": ((8, 8, 3), {"width": 2}),
    "resnet34": ((32, 32, 3), {"width": 2, "stem": "imagenet"}),
    "resnet50": ((8, 8, 3), {"width": 2}),
    "smallcnn": ((8, 8, 1), {"width": 2}),
    "vgg11": ((32, 32, 3), {"width": 2, "features": 4, "pool": 7}),
    "vgg16": ((64, 64, 3), {"width": 2, "features": 4}),
    "vit": ((8, 8, 3), {"depth": 2}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", models.names())
def test_every_kernel_is_a_layer_and_nothing_else_is(name):
    image_shape, options = TINY[name]
    original = classifier(name, image_shape, **options)
    table = ju.layer_table(original, images(1, image_shape))
    assert {r.path for r in table} == set(by_path(original.params))
    for record in table:
        if record.path.endswith("kernel"):
            assert record.reason is None, record.path
            *fan_in, out = record.shape
            sizes = (record.g, record.d, record.out)
            groups = out if "depthwise" in record.path else 1
            assert sizes == (groups, np.prod(fan_in), out // groups), record.path
            assert record.kind == ("conv" if len(fan_in) == 3 else "dense")
        else:
            assert record.d is None, record.path
            assert record.reason, record.path


FAN_INS = {
    "lenet5": {"conv1": 25, "conv2": 150, "fc1": 400, "fc2": 120, "fc3": 84},
    "alexnet": {
        "conv0": 16, "conv1": 576, "conv2": 512, "fc0": 1024, "fc1": 2048, "fc2": 2048,
    },
    "allcnn": {
        "conv0": 27, "conv1": 432, "conv2": 432, "conv3": 864, "conv4": 864,
        "conv5": 864, "conv6": 864, "conv7": 96, "fc": 96,
    },
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", FAN_INS)
def test_fan_ins_at_full_size(name):
    image_shape = (32, 32, 3) if name == "allcnn" else (28, 28, 1)
    table = ju.layer_table(classifier(name, image_shape), images(1, image_shape))
    found = {r.path.removesuffix("/kernel"): r.d for r in table if r.d is not None}
    assert found == FAN_INS[name]


@pytest.mark.long
def test_each_position_and_each_token_is_a_row():
    image_shape, options = TINY["resnet18"]
    original = classifier("resnet18", image_shape, **options)
    rows = {r.path: r.rows for r in ju.layer_table(original, images(1, image_shape))}
    assert rows["conv1/kernel"] == 64
    assert rows["layer2_0/shortcut_conv/kernel"] == 16
    assert rows["layer4_1/conv2/kernel"] == rows["fc/kernel"] == 1
    original = classifier("vit", (8, 8, 3), depth=1)
    rows = {r.path: r.rows for r in ju.layer_table(original, images(1, (8, 8, 3)))}
    assert rows["patch_embed/kernel"] == 4
    assert rows["block0/attn/qkv/kernel"] == rows["block0/fc2/kernel"] == 5
    assert rows["head/kernel"] == 1


# The NNX network goes the same way as the linen one.

SHAPE, CLASSES, WIDTH = (8, 8, 3), 3, 4
LOGITS = jax.jit(lambda classifier, images: classifier(images))
CALL = nnx.jit(lambda module, images: module(images))


def nnx_module(seed=0):
    """Drawn, not initialised: that takes no compilation."""
    build = functools.partial(ResNet18, CLASSES, width=WIDTH)
    graph, state = nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
    return nnx.merge(graph, drawn(state, np.float32, seed))


def as_linen(original):
    """The linen ResNet-18 with the leaves of the NNX one."""
    model = models.create("resnet18", num_classes=CLASSES, width=WIDTH)

    def leaf(path, _):
        collection, *names, last = [key.key for key in path]
        if names[0].startswith("layer"):
            stage, number = names[0].removeprefix("layer").split("_")
            names[:1] = ["blocks", 2 * (int(stage) - 1) + int(number)]
        tree = original.params if collection == "params" else original.state
        return functools.reduce(lambda tree, name: tree[name], [*names, last], tree)

    variables = jax.tree_util.tree_map_with_path(leaf, shapes(model, SHAPE))
    return ju.freeze(model, variables)


def toy():
    """Three classes, each about an image of its own."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % CLASSES
    centres = rng.normal(size=(CLASSES, *SHAPE))
    pixels = centres[labels] + 0.3 * rng.normal(size=(24, *SHAPE))
    return Data(pixels.astype(np.float32), labels)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_goes_there_and_back(classifier, images):
    module = ju.thaw(classifier)
    assert isinstance(module, ResNet18)
    assert_same(ju.freeze(module), classifier)
    module.eval()
    np.testing.assert_allclose(
        CALL(module, images), LOGITS(classifier, images), atol=1e-5
    )


@pytest.mark.long
def test_nnx_and_linen_give_the_same_logits():
    original, x = ju.freeze(nnx_module()), images(3, SHAPE)
    logits = LOGITS(original, x)
    assert np.std(logits) > 1e-2
    np.testing.assert_allclose(LOGITS(as_linen(original), x), logits, atol=1e-5)


def test_nnx_shows_the_same_layers():
    original, x = ju.freeze(nnx_module()), images(1, SHAPE)
    table, twin = (ju.layer_table(c, x) for c in (original, as_linen(original)))
    assert len(table) == len(twin)

    def layers(table):
        return sorted(r[1:7] for r in table if r.d is not None)

    assert layers(table) == layers(twin)
    assert len(layers(table)) == 21


@pytest.mark.long
def test_nnx_is_trained_and_its_module_left_alone():
    module, data = nnx_module(), toy()
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.01, warmup_epochs=0)
    trained, before = fit(module, data, recipe=recipe, key=KEY), ju.freeze(module)
    assert_same(before, ju.freeze(nnx_module()))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(trained), strict=True):
        assert np.abs(old - new).max() > 0
    assert_goes_there_and_back(trained, data.images[:3])


@pytest.mark.long
def test_nnx_unlearns_and_keeps_what_is_protected():
    original = ju.freeze(nnx_module())
    forget, retain = (data.images[:3] for data in ju.split_by_class(toy(), (0,)))
    protected = ju.subspaces(ju.second_moments(original, retain), rtol=1e-3)
    optimizer = optax.chain(optax.adam(0.01), ju.project_to_null_space(protected))
    targets = np.ones(len(forget), int)
    result = ju.unlearn(original, forget, targets, optimizer, steps=5, key=KEY)
    forgotten, kept = (
        np.abs(LOGITS(result.classifier, x) - LOGITS(original, x)).max()
        for x in (forget, retain)
    )
    assert forgotten > 0.1
    assert kept < 1e-3
    assert_goes_there_and_back(result.classifier, forget)
