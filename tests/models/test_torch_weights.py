"""Weights go from PyTorch to our networks and back, and neither loses anything."""

import dataclasses
import functools
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from normalised import drawn
from safetensors.numpy import save_file

import jaxunlearn as ju
from jaxunlearn import models
from jaxunlearn.models.torch_weights import from_torch, to_torch

pytestmark = pytest.mark.long

CLASSES = 7
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install torch"
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, the name of its twin in `torch_networks` with arguments, and images.

    Attributes:
      asks: whether the way back needs the images' shape.
    """

    naming: str
    model: nn.Module
    twin: str
    arguments: dict[str, Any]
    image_shape: tuple[int, int, int]
    asks: bool = False

    def build(self):
        import torch_networks

        made = getattr(torch_networks, self.twin)(**self.arguments, classes=CLASSES)
        return torch_networks.draw(made)

    def to_torch(self, variables):
        shape = self.image_shape if self.asks else None
        naming = self.naming
        return to_torch(self.model, variables, naming=naming, image_shape=shape)


def case(twin, name, options, image_shape, naming, *, asks=False, **arguments):
    model = models.create(name, num_classes=CLASSES, **options)
    return Case(naming, model, twin, arguments, image_shape, asks)


def resnet(name, blocks, naming, *, side=8, bottleneck=False, **options):
    twin = {"torchvision": "ResNet", "unsc": "ResNetUNSC"}[naming]
    shape, arguments = (side, side, 3), {"blocks": blocks, "bottleneck": bottleneck}
    options = {"width": 4, **options}
    return case(twin, name, options, shape, naming, **arguments, **options)


def vgg(name, convolutions, naming, *, side=32, pool=1, norm=True):
    options = {"width": 2, "features": 24, "pool": pool, "batch_norm": norm}
    head = {"torchvision": "classifier", "unsc": "fc"}[naming]
    arguments = {"width": 2, "features": 24, "pool": pool, "norm": norm, "head": head}
    shape = (side, side, 3)
    arguments["convolutions"] = convolutions
    return case("VGG", name, options, shape, naming, **arguments)


def alexnet(image_shape, rows, *, asks=False):
    arguments = {"channels": image_shape[2], "rows": rows, "features": 24}
    options = {"features": 24}
    return case(
        "AlexNet", "alexnet", options, image_shape, "unsc", asks=asks, **arguments
    )


def vit(h, w, **options):
    arguments = {"patches": h // 4 * (w // 4), "patch": 4, "depth": 2, **options}
    sizes = {"patch": 4, "depth": 2}
    if options.get("features") == 384:
        sizes["size"] = "small"
    return case("ViT", "vit", sizes, (h, w, 3), "timm", **arguments)


EIGHTEEN, THIRTY_FOUR = (2, 2, 2, 2), (3, 4, 6, 3)
ELEVEN, SIXTEEN = (1, 1, 2, 2, 2), (2, 2, 3, 3, 3)

CASES = {
    "ResNet-18": resnet("resnet18", EIGHTEEN, "torchvision"),
    "ResNet-18 of UNSC": resnet("resnet18", EIGHTEEN, "unsc"),
    "ResNet-34 with ImageNet's stem": resnet(
        "resnet34", THIRTY_FOUR, "torchvision", side=40, stem="imagenet"
    ),
    "ResNet-50": resnet("resnet50", THIRTY_FOUR, "torchvision", bottleneck=True),
    "ResNet-50 in UNSC's names": resnet(
        "resnet50", THIRTY_FOUR, "unsc", bottleneck=True
    ),
    "VGG-11": vgg("vgg11", ELEVEN, "torchvision"),
    "VGG-11 of UNSC": vgg("vgg11", ELEVEN, "unsc"),
    "VGG-11 without BatchNorm": vgg("vgg11", ELEVEN, "torchvision", norm=False),
    "VGG-11, a map of 2 x 2 averaged": vgg("vgg11", ELEVEN, "torchvision", side=64),
    "VGG-11, a map of 1 x 1 repeated": vgg("vgg11", ELEVEN, "torchvision", pool=7),
    "VGG-16 on ImageNet's images": vgg(
        "vgg16", SIXTEEN, "torchvision", side=224, pool=7
    ),
    "All-CNN": case(
        "AllCNN", "allcnn", {"width": 0.1}, (16, 16, 3), "unsc", few=9, many=19
    ),
    "AlexNet": alexnet((32, 32, 3), 1024),
    "AlexNet on grey images of 28 x 28": alexnet((28, 28, 1), 1024),
    "AlexNet on a map of 1 x 1": alexnet((20, 20, 3), 256),
    "AlexNet on a map of 1 x 3": alexnet((20, 36, 3), 768, asks=True),
    "AlexNet on a map of 4 x 1": alexnet((44, 20, 3), 1024, asks=True),
    "ViT": vit(16, 16),
    "ViT, small, on upright images": vit(16, 8, features=384, heads=6),
}

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def images(case, n=2):
    return np.random.default_rng(1).normal(size=(n, *case.image_shape)).astype("f4")


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, images):
    return model.apply(variables, images)


def twin_logits(torch, twin, images):
    with torch.no_grad():
        return twin(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


@functools.cache
def shapes(model, image_shape):
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x)


def draw(case):
    """Variables of the network, drawn."""
    return drawn(shapes(case.model, case.image_shape), np.float32)


def assert_agree(ours, theirs):
    assert np.std(theirs) > 1e-2  # or agreement would say nothing
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@each_case
def test_logits_agree_in_both_directions(torch, case):
    twin, x = case.build(), images(case)
    read = from_torch(case.model, twin.state_dict(), image_shape=case.image_shape)
    assert_agree(apply(case.model, read, x), twin_logits(torch, twin, x))
    variables = draw(case)
    written = case.to_torch(variables)
    assert list(written) == list(twin.state_dict())
    # Strictly: each name that there is, and no other.
    twin.load_state_dict({n: torch.from_numpy(a) for n, a in written.items()})
    assert_agree(apply(case.model, variables, x), twin_logits(torch, twin, x))


@each_case
def test_there_and_back_is_the_identity(case):
    variables = draw(case)
    written = case.to_torch(variables)
    again = from_torch(case.model, written, image_shape=case.image_shape)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(variables), strict=True):
        assert isinstance(x, jax.Array)
        assert x.dtype == jnp.float32
        np.testing.assert_array_equal(x, y)
    assert {a.dtype.name for a in written.values()} <= {"float32", "int64"}


SMALL = CASES["All-CNN"]
RESNET = CASES["ResNet-18"]


def weights(case=SMALL):
    return case.to_torch(draw(case))


def read(source, case=SMALL, **options):
    return from_torch(case.model, source, image_shape=case.image_shape, **options)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("ResNet-18 of UNSC", "conv1.weight", "fc.bias"),
        ("VGG-11 of UNSC", "features.0.weight", "classifier.6.bias"),
        ("All-CNN", "features.0.0.weight", "fc.0.bias"),
        ("AlexNet", "features.0.weight", "fc.8.weight"),
        ("ViT", "cls_token", "head.bias"),
    ],
)
def test_a_network_is_written_in_its_usual_naming(name, first, last):
    case = CASES[name]
    names = list(to_torch(case.model, draw(case)))
    assert (names[0], names[-1]) == (first, last)


def test_rows_of_a_flattened_map_go_from_channels_first_to_channels_last():
    case = CASES["AlexNet"]
    written = weights(case)
    # Their unit 0 looks at channel 5 of the pixel in row 1, column 0.
    matrix = np.zeros((24, 256, 2, 2), np.float32)
    matrix[0, 5, 1, 0] = 1
    written["fc.0.weight"] = matrix.reshape(24, 1024)
    kernel = np.asarray(read(written, case)["params"]["fc0"]["kernel"])
    assert kernel.reshape(2, 2, 256, 24)[1, 0, 5, 0] == 1
    assert kernel.sum() == 1


# What a source may be.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: OrderedDict(state),
        lambda state: {f"module.{name}": array for name, array in state.items()},
        lambda state: {f"_orig_mod.module.{n}": array for n, array in state.items()},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {n: a for n, a in state.items() if "num_batches" not in n},
        lambda state: {n: jnp.asarray(a, jnp.float32) for n, a in state.items()},
    ],
    ids=[
        "ordered", "parallel", "compiled", "state_dict", "model", "no counts", "jax",
    ],
)  # fmt: skip
def test_wrappings_of_a_state_dict_are_opened(wrap):
    assert_same(read(wrap(weights())), draw(SMALL))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_are_read_as_float32(tmp_path, dtype):
    narrow = {n: a.astype(dtype) for n, a in weights().items() if a.ndim}
    variables = read(narrow)
    assert {x.dtype.name for x in jax.tree.leaves(variables)} == {"float32"}
    kernel = np.asarray(narrow["fc.0.weight"], np.float32).T
    np.testing.assert_array_equal(variables["params"]["fc"]["kernel"], kernel)
    save_file(narrow, tmp_path / "a.safetensors")
    assert_same(read(tmp_path / "a.safetensors"), variables)


def test_tensors_may_require_gradients_and_be_of_bfloat16(torch):
    state = {n: torch.from_numpy(a).bfloat16() for n, a in weights().items()}
    narrow = {n: t.float().numpy() for n, t in state.items()}
    leaves = {n: t.requires_grad_() for n, t in state.items()}
    assert_same(read(leaves), read(narrow))


def test_what_is_read_and_written_shares_no_memory(torch):
    state = {n: torch.from_numpy(a) for n, a in weights().items()}
    variables = read(state)
    for tensor in state.values():
        tensor.zero_()
    assert_same(variables, draw(SMALL))
    before = draw(SMALL)
    for array in to_torch(SMALL.model, before).values():
        array.fill(0)
    assert_same(before, draw(SMALL))


@pytest.mark.parametrize("suffix", ["pt", "pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_read(torch, tmp_path, suffix, zipped):
    state = {n: torch.from_numpy(a) for n, a in weights().items()}
    path = tmp_path / f"a.{suffix}"
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=zipped)
    assert_same(read(path), draw(SMALL))
    assert_same(read(str(path)), draw(SMALL))


def test_safetensors_need_no_torch(tmp_path):
    save_file(weights(), tmp_path / "a.safetensors")
    code = f"""
import sys
sys.modules["torch"] = None  # importing it fails
from jaxunlearn import models
from jaxunlearn.models.torch_weights import from_torch
model = models.create("allcnn", num_classes={CLASSES}, width=0.1)
from_torch(model, {str(tmp_path / "a.safetensors")!r}, image_shape=(16, 16, 3))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pt_file_without_torch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pt").write_bytes(b"PK")
    with pytest.raises(ImportError, match=r"pip install torch"):
        read(tmp_path / "a.pt")


# What is refused, and how.


def replaced(name, value, case=SMALL):
    """The weights with another tensor, or without it."""
    state = weights(case)
    if value is None:
        del state[name]
    else:
        state[name] = value
    return state


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("fc.0.bias", None, r"Missing: fc.0.bias \[7\]"),
        ("features.9.1.running_var", None, r"Missing: features.9.1.running_var \[19\]"),
        ("fc.1.weight", np.zeros((2, 3)), r"Extra: fc.1.weight \[2,3\]"),
        (
            "features.0.0.weight",
            np.zeros((9, 1, 3, 3)),
            r"image_shape the images have 3 channels, .* of 1 \(features.0.0.weight is",
        ),
        (
            "fc.0.weight",
            np.zeros((7, 19), np.int8),
            "fc.0.weight must be of floating point; it is int8",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_both_shapes(name, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(replaced(name, value))


@pytest.mark.parametrize("name", ["ResNet-18", "VGG-11 of UNSC", "AlexNet", "ViT"])
def test_a_wrong_number_of_classes_is_told(name):
    case = CASES[name]
    wrong = case.model.clone(num_classes=100)
    sentence = r"is \[7,(\d+)\] and should be \[100,\1\].*num_classes should be 7\."
    with pytest.raises(ValueError, match=sentence):
        from_torch(wrong, weights(case), image_shape=case.image_shape)


def test_a_sentence_names_few_of_many_tensors():
    with pytest.raises(
        ValueError, match=r"Missing: conv1.*, and \d\d more\. "
    ) as error:
        read({"a": np.zeros(2)}, RESNET)
    assert "of this ResNet in the naming of torchvision" in str(error.value)
    assert "Extra: a [2]" in str(error.value)
    assert len(str(error.value)) < 400


def test_the_naming_is_recognised_also_where_a_tensor_is_missing():
    case = CASES["VGG-11 of UNSC"]
    with pytest.raises(ValueError, match=r"naming of unsc. Missing: fc.3.bias \[24\]"):
        read(replaced("fc.3.bias", None, case), case)


@pytest.mark.parametrize("name", ["lenet5", "smallcnn"])
def test_networks_without_a_naming_are_refused(name):
    model = models.create(name, num_classes=3)
    sentence = "models AllCNN, AlexNet, ResNet, VGG, ViT; this is a (LeNet5|SmallCNN)"
    with pytest.raises(TypeError, match=sentence):
        from_torch(model, {}, image_shape=(8, 8, 1))
    with pytest.raises(TypeError, match=sentence):
        to_torch(model, {})


def test_a_source_of_another_kind_is_refused(torch):
    module = torch.nn.Linear(2, 3)
    with pytest.raises(TypeError, match=r"this is a Linear. .*module.state_dict\(\)"):
        read(module)


@pytest.mark.parametrize("shape", [(16, 16, 0), (-16, 16, 3), (16, 16, 2**70)])
def test_an_image_shape_that_is_none_is_refused(shape):
    with pytest.raises(ValueError, match=r"image_shape must be \(h, w, c\)"):
        from_torch(SMALL.model, weights(), image_shape=shape)


def test_a_path_must_lead_to_a_file_of_weights(tmp_path):
    for path in ("none.pt", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"There is no file .*{path}"):
            read(tmp_path / path)


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.99])
def test_a_truncated_file_of_torch_is_refused(torch, tmp_path, share, zipped):
    state = {n: torch.from_numpy(a) for n, a in weights().items()}
    path = tmp_path / "cut.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="cut.pt is (no whole file of a|neither what)"):
        read(path)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.99])
def test_a_truncated_safetensors_file_is_refused(tmp_path, share):
    path = tmp_path / "cut.safetensors"
    save_file(weights(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut.safetensors is no whole safetensors"):
        read(path)


def test_a_pickled_module_is_not_run(torch, tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds a torch.nn.*Linear.*state_dict"):
        read(tmp_path / "a.pt")
    torch.save(torch.zeros(3), tmp_path / "b.pt")
    with pytest.raises(TypeError, match="this is a Tensor"):
        read(tmp_path / "b.pt")


def test_a_naming_that_a_network_does_not_have_is_refused():
    with pytest.raises(
        ValueError, match="AllCNN like this one must be unsc; it is 'x'"
    ):
        to_torch(SMALL.model, draw(SMALL), naming="x")
    large = CASES["ResNet-34 with ImageNet's stem"]
    with pytest.raises(ValueError, match="must be torchvision; it is 'unsc'"):
        to_torch(large.model, {}, naming="unsc")


def test_variables_of_another_network_are_refused():
    variables = draw(SMALL)
    with pytest.raises(ValueError, match=r"Missing: batch_stats/bn0/mean \[9\].*thaw"):
        to_torch(SMALL.model, {"params": variables["params"]})
    with pytest.raises(ValueError, match=r"fc/bias is \[7\] and should be \[8\]"):
        to_torch(SMALL.model.clone(num_classes=8), variables)
    with pytest.raises(ValueError, match="not those of this ResNet"):
        to_torch(RESNET.model, variables)
    classifier = ju.freeze(SMALL.model, variables)
    with pytest.raises(TypeError, match=r"this is a Classifier. .*thaw"):
        to_torch(SMALL.model, classifier)
    assert list(to_torch(SMALL.model, ju.thaw(classifier))) == list(weights())


def test_a_map_that_is_not_square_must_be_told():
    case = CASES["AlexNet on a map of 1 x 3"]
    with pytest.raises(ValueError, match="768 rows, .*: give image_shape"):
        to_torch(case.model, draw(case))
