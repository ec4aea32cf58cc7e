"""Saved classifiers come back bit by bit, and damaged files are refused by name."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import jaxunlearn as ju
from jaxunlearn import models
from jaxunlearn.classifier.classifier import Preprocess, freeze
from jaxunlearn.models.files import (
    Card,
    load,
    load_classifier,
    read_card,
    save,
    save_classifier,
)
from jaxunlearn.models.tensors import read_tensors, write_tensors

CARD = Card(
    model="smallcnn",
    num_classes=3,
    options={"width": 2},
    image_shape=(8, 8, 1),
    name="original",
    dataset="digits",
    split_seed=4,
    forgotten=(1,),
    class_names=("ant", "bee", "cat"),
)
KERNEL = "params/Dense_0/kernel"
ONE = jnp.ones(1)


def classifier(preprocess=None, card=CARD):
    """Random parameters of the network's shapes, without running its initialisers."""
    model = models.create(card.model, num_classes=card.num_classes, **card.options)
    network = freeze(model, {"params": {}}).network
    shapes = jax.eval_shape(
        lambda key: network.init(key, card.image_shape), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    params, state = jax.tree.map(
        lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes
    )
    return freeze(model, {"params": params, **state}, preprocess=preprocess)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a.safetensors"
    save_classifier(path, classifier(Preprocess(0.3, 0.4)), CARD)
    return path


def altered(saved, folder, *, tensors=None, header=None, **fields):
    """A file with other tensors, or other entries of its card, and their checksum."""
    found, card = read_tensors(saved)
    found, card = {**found, **(tensors or {})}, {**card, **fields}
    for entries in (found, card):
        for name in [n for n, value in entries.items() if value is ...]:
            del entries[name]
    path = folder / "altered.safetensors"
    write_tensors(path, found, card)
    if header is not None:
        save_file(found, path, {"jaxunlearn": header})
    return path


@pytest.mark.core
@pytest.mark.parametrize("preprocess", [None, Preprocess((0.1,), (0.7,))])
def test_a_classifier_comes_back_bit_by_bit(tmp_path, preprocess):
    before = classifier(preprocess)
    save_classifier(tmp_path / "a.safetensors", before, CARD)
    after, card = load_classifier(tmp_path / "a.safetensors")
    assert card == CARD
    # Equal in all that is static, so that what was compiled for one serves the other.
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_card_needs_only_what_rebuilds_the_network(tmp_path):
    card = Card(model="smallcnn", num_classes=3, image_shape=(8, 8, 1))
    save_classifier(tmp_path / "a.safetensors", classifier(card=card), card)
    assert load_classifier(str(tmp_path / "a.safetensors"))[1] == card


def test_a_classifier_of_another_network_is_not_saved(tmp_path):
    card = dataclasses.replace(CARD, num_classes=4, class_names=None)
    with pytest.raises(
        ValueError, match=r"Dense_0/bias is float32\[3\] .* float32\[4\]"
    ):
        save_classifier(tmp_path / "a.safetensors", classifier(), card)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(saved, tmp_path, share):
    whole = saved.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut.safetensors is no whole safetensors"):
        load_classifier(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            load_classifier(path)


def test_files_of_other_writers_are_refused(saved, tmp_path):
    path = tmp_path / "b.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(ValueError, match="does not say which network"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({KERNEL: ...}, f"of the network. Missing: {KERNEL} float32"),
        (
            {KERNEL: np.zeros((8, 5), np.float32)},
            rf"{KERNEL} is float32\[8,5\] and should be float32\[8,3\]",
        ),
        ({KERNEL: np.zeros((8, 3))}, f"{KERNEL} is float64, which JAX rounds unless"),
        ({KERNEL: np.zeros((8, 3), np.int32)}, r"is int32\[8,3\] and .* float32"),
        ({"params/more": np.zeros(1, "f4")}, r"Extra: params/more float32\[1\]"),
        ({"x" * 10**5: np.zeros(1, "f4")}, r"Extra: x{80} float32\[1\]"),
        ({"state/batch_stats/BatchNorm_0/mean": ...}, "Missing: .*BatchNorm_0/mean"),
    ],
)
def test_tensors_must_be_those_of_the_network(saved, tmp_path, tensors, sentence):
    path = altered(saved, tmp_path, tensors=tensors)
    with pytest.raises(ValueError, match=sentence) as raised:
        load_classifier(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": "gone"}, "must be one of .*'smallcnn'.*; it is 'gone'"),
        ({"model": ...}, "No model is given"),
        ({"num_classes": ...}, "for each of the 0 classes; there are 3"),
        ({"model": 3}, "model must be a string; it is 3"),
        ({"num_classes": "ten"}, "num_classes must be an integer; it is 'ten'"),
        (
            {"num_classes": 5, "class_names": None},
            r"float32\[3\] and should be float32\[5\]",
        ),
        ({"options": {"depth": 3}}, "no option 'depth'"),
        ({"options": 3}, "options must be an object"),
        ({"class_names": ["ant", "bee"]}, "for each of the 3 classes; there are 2"),
        ({"class_names": "ant"}, "class_names must be a list with a string .* or null"),
        ({"image_shape": [8, 8]}, "image_shape must be a list of 3"),
        ({"image_shape": [0, 8, 1]}, "image_shape must be positive"),
        ({"image_shape": [8, 8, 2]}, r"float32\[3,3,1,2\] .* float32\[3,3,2,2\]"),
        ({"novel": 1}, "There is no novel"),
        ({"model": "vit", "options": {"depth": 10**7}}, "would take .* GB of memory"),
        ({"options": {"width": "2"}}, "width of the model smallcnn .* it is '2'"),
        ({"options": {"width": 2**70}}, r"below 2\*\*31; it is 118"),
        ({"image_shape": [10**9, 10**9, 3]}, r"float32\[3,3,1,2\] and .*\[3,3,3,2\]"),
        ({"preprocess": {"mean": [1]}}, "preprocess.std is missing"),
        ({"preprocess": {"mean": [1], "std": [0]}}, "std must be positive"),
        ({"preprocess": 3}, "preprocess must be an object; it is 3"),
        ({"preprocess": {"mean": ["1"], "std": [1]}}, "preprocess.mean must be a list"),
    ],
)
def test_a_card_must_describe_a_network(saved, tmp_path, fields, sentence):
    path = altered(saved, tmp_path, **fields)
    with pytest.raises(ValueError, match=sentence) as raised:
        load_classifier(path)
    assert str(raised.value).startswith(f"{path} holds no classifier")


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("{", "is no JSON"),
        ("[]", "must hold a JSON object; it holds a list"),
        ('{"options": ' * 100_000 + "1" + "}" * 100_000, "is nested too deep"),
        ('{"num_classes": NaN}', "is no JSON .*NaN"),
        ("{}", "is damaged: its checksum is not that of its content"),
    ],
)
def test_a_card_must_be_whole(saved, tmp_path, header, sentence):
    path = altered(saved, tmp_path, header=header)
    for read in (load_classifier, read_card):
        with pytest.raises(ValueError, match=f"altered.safetensors {sentence}"):
            read(path)


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "none" / "a.safetensors"
    with pytest.raises(FileNotFoundError, match=f"There is no folder {path.parent}"):
        save_classifier(path, classifier(), CARD)


def test_an_altered_byte_is_found(saved, tmp_path):
    path, content = tmp_path / "b.safetensors", bytearray(saved.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its checksum is not that of its content"):
        load_classifier(path)


# Saved and loaded by their public names.


def equal(before, after):
    assert jax.tree.structure(after) == jax.tree.structure(before)

    def data(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert data(x).tobytes() == data(y).tobytes()


@pytest.mark.core
@pytest.mark.parametrize("image_shape", [None, (8, 8, 1)])
def test_a_network_that_is_known_by_name_needs_no_model(tmp_path, image_shape):
    before = classifier(Preprocess((0.1,), (0.7,)))
    path = tmp_path / "a.safetensors"
    ju.save(path, before, image_shape=image_shape)
    equal(before, ju.load(path))
    if image_shape is None:
        with pytest.raises(ValueError, match="does not say the shape of its images"):
            load_classifier(path)
    else:
        card = Card(model="smallcnn", num_classes=3, options={"width": 2})
        expected = dataclasses.replace(card, image_shape=image_shape)
        assert load_classifier(path)[1] == expected


def test_any_linen_module_comes_back_with_what_it_is_made_of(tmp_path):
    model = nn.Sequential([nn.BatchNorm(use_running_average=True), nn.Dense(3)])
    variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
    bfloat16 = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    before, path = freeze(model, bfloat16), tmp_path / "a.safetensors"
    save(path, before)
    equal(before, load(path, model))
    with pytest.raises(ValueError, match="No model is given"):
        load(path)


class Noisy(nnx.Module):
    def __init__(self, *, features=3, rngs):
        self.layers = nnx.List([nnx.Linear(4, features, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images):
        return self.layers[0](self.dropout(images.reshape(len(images), -1)))


def test_an_nnx_module_comes_back_with_its_random_state(tmp_path):
    before, path = freeze(Noisy(rngs=nnx.Rngs(0))), tmp_path / "a.safetensors"
    save(path, before)
    other = Noisy(rngs=nnx.Rngs(1))
    equal(before, load(path, other))
    with pytest.raises(ValueError, match=r"layers/0/bias is float32\[3\] and .*\[5\]"):
        load(path, Noisy(features=5, rngs=nnx.Rngs(0)))


def test_nothing_is_replaced_unasked(tmp_path):
    before, path = classifier(), tmp_path / "a.safetensors"
    save(path, before)
    with pytest.raises(FileExistsError, match="already .*overwrite=True"):
        save(path, before)
    save(path, before, overwrite=True)
    with pytest.raises(ValueError, match=r"must end in .safetensors; it is .*a\.npz"):
        save(tmp_path / "a.npz", before)
    with pytest.raises(ValueError, match="BatchNorm_0|Conv_0"):
        save(path, before, image_shape=(8, 8, 3), overwrite=True)


class Stack(nn.Module):
    width: int = 2
    depth: int = 2

    @nn.compact
    def __call__(self, images, train=False):
        x = images
        for _ in range(self.depth):
            x = nn.BatchNorm(not train)(nn.Conv(self.width, (3, 3))(x))
        if train:
            nn.Dense(2, name="auxiliary")(x.mean((1, 2)))
        return nn.Dense(3)(x.mean((1, 2)))


class Coloured(Stack):
    @nn.compact
    def __call__(self, images, train=False):
        if images.shape[-1] != 3:
            raise NotImplementedError
        return Stack(name="stack")(images, train)


class Flat(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(images.reshape(len(images), -1))


def frozen(model, shape, **options):
    images = jnp.ones((1, *shape))
    return freeze(model, model.init(jax.random.key(0), images, **options))


@pytest.mark.long
def test_a_linen_module_of_other_leaves_is_refused_by_their_names(tmp_path):
    path, before = tmp_path / "a.safetensors", frozen(Stack(), (8, 8, 2))
    save(path, before)
    equal(before, load(path, Stack()))
    for other, sentence in (
        (Stack(width=3), r"Conv_1/bias is float32\[2\] and .*\[3\]|, and 9 more"),
        (Stack(depth=1), "Extra: params/BatchNorm_1/bias"),  # silently left out by Flax
        (Stack(depth=3), "Missing: state/batch_stats/BatchNorm_2/mean"),
        (Flat(), "Extra: params/BatchNorm_0/bias"),
        (Stack, "must be a Flax linen or NNX module"),
        (before, "it is a Classifier"),
        (None, "No model is given"),
    ):
        with pytest.raises(ValueError, match=f"{path} holds no .*{sentence}") as raised:
            load(path, other)
        assert len(str(raised.value)) < 1000


@pytest.mark.long
def test_heads_of_training_alone_and_unusual_images_are_taken(tmp_path):
    path = tmp_path / "a.safetensors"
    for model, before in (
        (Stack(), frozen(Stack(), (8, 8, 2), train=True)),
        (Coloured(), frozen(Coloured(), (8, 8, 3), train=True)),
        (Flat(), frozen(Flat(), (5, 7, 2))),
    ):
        save(path, before, overwrite=True)
        equal(before, load(path, model))
    save(path, before, image_shape=(5, 7, 2), overwrite=True)
    equal(before, load(path, Flat()))
    with pytest.raises(ValueError, match=r"is float32\[70,3\] and .*\[105,3\]"):
        save(path, before, image_shape=(5, 7, 3), overwrite=True)


def test_half_precision_and_sharded_leaves_come_back(tmp_path):
    path, before = tmp_path / "a.safetensors", classifier()
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), before)
    save(path, halves, image_shape=(8, 8, 1))
    equal(halves, load(path))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), "d")
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "d"))

    def place(leaf):
        return jax.device_put(leaf, split) if leaf.shape[1:] == (4,) else leaf

    save(path, jax.tree.map(place, before), overwrite=True)
    equal(before, load(path))


def test_double_precision_is_not_rounded_in_silence(tmp_path):
    def apply(params, state, images):
        return images.mean((1, 2)) @ params

    path, function = tmp_path / "a.safetensors", ju.Function(apply, np.ones((3, 2)))
    with jax.enable_x64(True):
        save(path, freeze(function))
        assert load(path, function).params.dtype == jnp.float64
    with pytest.raises(ValueError, match="params is float64, which JAX rounds unless"):
        load(path, function)
    save(path, freeze(function), overwrite=True)  # as JAX holds it here
    assert load(path, function).params.dtype == jnp.float32


def test_any_tree_of_a_function_comes_back(tmp_path):
    def apply(params, state, images):
        return images.mean((1, 2)) @ params["layers"][0]["kernel"] * params["scale"]

    layers = [{"kernel": jnp.ones((3, 2)), "bias": None}, (jnp.zeros(()), None)]
    params = {"layers": layers, "scale": jnp.float32(2)}
    state = [None, jnp.ones((0, 3)), jax.random.key(3)]
    function = ju.Function(apply, params, state)
    before, path = freeze(function), tmp_path / "a.safetensors"
    save(path, before)
    equal(before, load(path, function))
    renamed = {"layers": layers, "factor": jnp.float32(2)}
    sentence = r"Missing: params/factor float32\[\]. Extra: params/scale float32"
    with pytest.raises(ValueError, match=sentence):
        load(path, ju.Function(apply, renamed, state))


class Normalised(nnx.Module):
    def __init__(self, width=4, *, rngs):
        self.conv = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, images):
        return self.head(self.norm(self.conv(images)).mean((1, 2)))


def test_an_nnx_module_with_statistics_comes_back(tmp_path):
    before, path = freeze(Normalised(rngs=nnx.Rngs(0))), tmp_path / "a.safetensors"
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), before.params)
    for kept in (before, before.replace(params=halves)):
        save(path, kept, overwrite=True)
        equal(kept, load(path, Normalised(rngs=nnx.Rngs(1))))
    with pytest.raises(ValueError, match=r"Misshaped: params/conv/bias is bf?"):
        load(path, Normalised(5, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("params", "state", "sentence"),
    [
        ({"a/b": ONE, "a": {"b": ONE}}, None, "Two leaves have the path params/a/b"),
        (
            ONE,
            np.ones(1, np.complex64),
            "state is complex64, which safetensors files",
        ),
        (ONE, jnp.ones(1, jnp.int4), "state is int4, which .*: they hold float64"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, params, state, sentence):
    function = ju.Function(lambda p, s, x: x, params, state)
    with pytest.raises(ValueError, match=sentence):
        save(tmp_path / "a.safetensors", freeze(function))
    assert not list(tmp_path.iterdir())


class Slashed(nn.Module):
    @nn.compact
    def __call__(self, images):
        return images.mean((1, 2)) @ self.param("a/b", nn.initializers.ones, (1, 2))


def test_names_that_would_not_come_back_to_a_linen_module_are_refused(tmp_path):
    with pytest.raises(ValueError, match="leaf a/b must lie in .* without a slash"):
        save(tmp_path / "a.safetensors", frozen(Slashed(), (2, 2, 1)))


def test_only_classifiers_are_saved(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(TypeError, match="a Classifier; it is a Stack|Type-check"):
        save(path, Stack())
    with pytest.raises(TypeError, match="save runs .* cannot be called inside jax.jit"):
        jax.jit(lambda kept: save(path, kept))(classifier())


@pytest.mark.parametrize("names", [("a", "b", 3), "abc"])
def test_names_of_classes_are_strings(tmp_path, names):
    sentence = "class_names must be a sequence of strings; it is|Type-check error"
    with pytest.raises(TypeError, match=sentence):
        save(tmp_path / "a.safetensors", classifier(), class_names=names)


def test_there_are_as_many_names_as_classes(tmp_path):
    path, before = tmp_path / "a.safetensors", classifier()
    with pytest.raises(ValueError, match="for each of the 3 classes; there are 2"):
        save(path, before, class_names=["ant", "bee"])
    names = ["ant", "bee", "cat"]
    save(path, before, class_names=names, image_shape=(8, 8, 1))
    card, _ = read_card(path)
    assert card.class_names == tuple(names)
