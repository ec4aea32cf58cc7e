"""Files of PyTorch's weights as people have them, and ours for PyTorch."""

import argparse
import functools
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from normalised import drawn
from safetensors.numpy import save_file

import jaxunlearn as ju
from jaxunlearn import models
from jaxunlearn.classifier.classifier import Preprocess
from jaxunlearn.models.files import Card, load, read_card
from jaxunlearn.models.shapes import variable_shapes
from jaxunlearn.models.torch_files import load_torch, save_torch
from jaxunlearn.models.torch_source import read_tensors
from jaxunlearn.models.torch_weights import from_torch, to_torch

SHAPE = (32, 32, 3)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install torch"
    )


@functools.cache
def network(name, num_classes=4, **options):
    model = models.create(name, num_classes=num_classes, **options)
    channels = 1 if name == "alexnet" else 3
    shapes = variable_shapes(model, (32, 32, channels))
    flat = drawn(shapes, np.float32)
    return model, models.shapes.nested(flat)


def weights(name="allcnn", **options):
    return to_torch(*network(name, **{"width": 0.02, **options}))


def tensors(torch):
    return {name: torch.from_numpy(array) for name, array in weights().items()}


def assert_read(source):
    model, variables = network("allcnn", width=0.02)
    found = from_torch(model, source, image_shape=SHAPE)
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED = {
    "net, acc, epoch": lambda s: {"net": s, "acc": np.float64(93.1), "epoch": 3},
    "history": lambda s: {"state_dict": s, "losses": np.ones(3), "best": np.int64(1)},
    "ema": lambda s: {"ema": {"model_state": s}, "optimizer": {"state": {0: {}}}},
    "state_dict_ema": lambda s: {"state_dict_ema": prefixed("module.", s)},
    "weights": lambda s: {"weights": OrderedDict(s), "epoch": None},
    "module.": lambda s: prefixed("module.", s),
    "backbone.": lambda s: {"model": prefixed("backbone.", s)},
    "model.": lambda s: {"state_dict": prefixed("model.", s), "callbacks": {}},
    "_orig_mod.module.": lambda s: prefixed("_orig_mod.module.", s),
    "averaged": lambda s: {
        "n_averaged": s["features.0.1.num_batches_tracked"],
        **prefixed("module.", s),
    },
}


@pytest.mark.parametrize("suffix", ["pth.tar", "ckpt", "bin", "t7", "safetensors"])
def test_files_are_read_by_their_content(torch, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix in ("bin", "safetensors"):
        save_file(weights(), path)
    else:
        torch.save(tensors(torch), path)
    assert_read(path)
    assert read_card(path) is None


@pytest.mark.long
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_in_what_lies_about_them(torch, tmp_path, wrap, zipped):
    path = tmp_path / "a.pth"
    torch.save(wrap(tensors(torch)), path, _use_new_zipfile_serialization=zipped)
    assert_read(path)


def test_two_networks_in_one_file_are_both_named(torch, tmp_path):
    both = {"state_dict": tensors(torch), "state_dict_ema": tensors(torch)}
    torch.save(both, tmp_path / "a.pt")
    sentence = r"in .*a.pt under \['state_dict'\] and under \['state_dict_ema'\]"
    with pytest.raises(ValueError, match=sentence):
        assert_read(tmp_path / "a.pt")


def test_what_holds_no_tensors_says_what_it_holds():
    with pytest.raises(
        ValueError, match=r"no tensors under the names \['x', 'epoch'\]"
    ):
        assert_read({"x": {"y": weights()}, "epoch": 3})
    endless = {}
    endless["model"] = endless
    with pytest.raises(ValueError, match="no tensors under the names"):
        assert_read(endless)


@pytest.mark.parametrize(
    "beside", [argparse.Namespace(lr=0.1), SHAPE.__class__.__class__]
)
def test_what_only_its_writers_code_rebuilds_is_named_with_the_cure(
    torch, tmp_path, beside
):
    torch.save({"net": tensors(torch), "args": beside}, tmp_path / "a.pth")
    sentence = (
        r"a.pth holds a \S+, and .*: torch.save\(torch.load\('a.pth', "
        r"weights_only=False\)\['state_dict'\], 'weights.pt'\)"
    )
    with pytest.raises(ValueError, match=sentence) as raised:
        assert_read(tmp_path / "a.pth")
    assert "\n" not in str(raised.value)


def test_a_flipped_bit_of_an_archive_is_seen(torch, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(tensors(torch), path)
    content = bytearray(path.read_bytes())
    where = content.find(weights()["features.5.0.weight"].tobytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.pt is no whole .* checksum of .*data/\d+"):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n" + b"0" * 99])
def test_files_of_another_kind_are_refused(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match="a.bin is neither what torch.save writes nor"):
        read_tensors(tmp_path / "a.bin")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_weights_must_be_finite(value):
    state = {n: a.astype(float) for n, a in weights().items()}
    state["fc.0.bias"][1] = value
    with pytest.raises(ValueError, match=r"fc.0.bias must be finite .*; 1 of its 4"):
        assert_read(state)


def test_grey_images_for_a_colour_network_are_told_as_images():
    with pytest.raises(
        ValueError, match=r"images have 1 channels.* of 3 \(features.0.*numpy.repeat"
    ):
        from_torch(network("allcnn", width=0.02)[0], weights(), image_shape=(32, 32, 1))


# The options that weights show.

SHOWN = {
    "resnet18": {"stem": "imagenet", "width": 2},
    "vgg11": {"width": 1, "features": 6, "pool": 2, "batch_norm": False},
    "vit": {"size": "small", "patch": 16, "depth": 1},
    "alexnet": {"features": 5},
    "allcnn": {"width": 0.08},
}


@pytest.mark.long
@pytest.mark.parametrize("name", SHOWN)
def test_weights_show_the_networks_options(tmp_path, name):
    model, variables = network(name, num_classes=5, **SHOWN[name])
    path = tmp_path / "a.safetensors"
    save_file(prefixed("module.", to_torch(model, variables)), path)
    shape = (32, 32, 1 if name == "alexnet" else 3)
    pixels = Preprocess(0.3, 0.4)
    found, card = load_torch(path, name, image_shape=shape, preprocess=pixels)
    assert found.preprocess == pixels
    assert (card.model, card.num_classes, card.image_shape) == (name, 5, shape)
    if name == "allcnn":  # several widths have as many channels
        card.options["width"] = pytest.approx(SHOWN[name]["width"], abs=1 / 192)
    assert card.options == SHOWN[name]
    jax.tree.map(np.testing.assert_array_equal, ju.thaw(found), variables)


@pytest.mark.long
def test_options_that_the_weights_deny_are_refused_with_theirs(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(weights("resnet18", stem="imagenet", width=1), path)
    options = {"stem": "cifar", "num_classes": 3}
    sentence = "num_classes should be 4, stem should be 'imagenet'"
    with pytest.raises(ValueError, match=rf"^{path} holds no .*{sentence}"):
        load_torch(path, "resnet18", image_shape=SHAPE, options=options)
    with pytest.raises(ValueError, match=r"Missing: layer1.0.conv3.weight") as raised:
        load_torch(path, "resnet50", image_shape=SHAPE)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_classifier_goes_to_pytorch_and_back(torch, tmp_path, suffix):
    before, path = ju.freeze(*network("resnet18", width=1)), tmp_path / f"a.{suffix}"
    save_torch(path, before, naming="unsc")
    assert "features.0.weight" in read_tensors(path)
    after, card = load_torch(path, "resnet18", image_shape=SHAPE)
    expected = {"model": "resnet18", "num_classes": 4, "options": {"width": 1}}
    assert card == Card(**expected, image_shape=SHAPE)
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    with pytest.raises(ValueError, match="does not say which network .*from_torch"):
        load(path)


def test_only_networks_with_names_there_go_to_pytorch(tmp_path):
    function = ju.Function(lambda p, s, x: x.mean((1, 2)) @ p, jnp.ones((3, 2)))
    with pytest.raises(TypeError, match="converted for the models AllCNN"):
        save_torch(tmp_path / "a.pt", ju.freeze(function))
    assert not list(tmp_path.iterdir())
