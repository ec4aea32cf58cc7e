"""What PyTorch code calls the layers of these networks.

Layers are named by what stands before `.weight`; ours by their path, as in
`layer1_0/conv1`. Names come in the order in which PyTorch lists them.
"""

from collections.abc import Callable, Iterator

import flax.linen as nn

from jaxunlearn.models.alexnet import AlexNet
from jaxunlearn.models.allcnn import AllCNN
from jaxunlearn.models.resnet import ResNet
from jaxunlearn.models.vgg import VGG
from jaxunlearn.models.vit import ViT

Names = Iterator[tuple[str, str]]


def namings(model: nn.Module) -> dict[str, dict[str, str]]:
    """For each naming that a network has, the default first: our path -> their name.

    "torchvision" and "timm" are these packages' names, "unsc" those of the code
    published with arXiv 2404.13588.

    Raises:
      TypeError: the network has none.

    >>> namings(AllCNN(10))["unsc"]["conv3"]
    'features.4.0'
    """
    for kind, functions in _NAMINGS.items():
        if isinstance(model, kind):
            if isinstance(model, ResNet) and model.stem == "imagenet":
                # UNSC's code has no such network.
                functions = {"torchvision": functions["torchvision"]}
            return {name: dict(function(model)) for name, function in functions.items()}
    having = ", ".join(kind.__name__ for kind in _NAMINGS)
    msg = f"PyTorch weights are converted for the models {having}; this is a {type(model).__name__}."  # noqa: E501
    raise TypeError(msg)


def _resnet_blocks(model: ResNet) -> Iterator[tuple[int, int, int, bool]]:
    """(stage, number, convolutions, whether the shortcut projects)."""
    for stage, count in enumerate(model.blocks, start=1):
        for number in range(count):
            projects = number == 0 and (stage > 1 or model.bottleneck)
            yield stage, number, 2 + model.bottleneck, projects


def _resnet_torchvision(model: ResNet) -> Names:
    yield from (("conv1", "conv1"), ("bn1", "bn1"))
    for stage, number, convolutions, projects in _resnet_blocks(model):
        ours, theirs = f"layer{stage}_{number}", f"layer{stage}.{number}"
        for i in range(1, convolutions + 1):
            yield f"{ours}/conv{i}", f"{theirs}.conv{i}"
            yield f"{ours}/bn{i}", f"{theirs}.bn{i}"
        if projects:
            yield f"{ours}/shortcut_conv", f"{theirs}.downsample.0"
            yield f"{ours}/shortcut_bn", f"{theirs}.downsample.1"
    yield "fc", "fc"


def _resnet_unsc(model: ResNet) -> Names:
    yield from (("conv1", "features.0"), ("bn1", "features.1"))
    for stage, number, convolutions, projects in _resnet_blocks(model):
        ours, theirs = f"layer{stage}_{number}", f"features.{stage + 2}.{number}"
        for i in range(convolutions):
            # Between them lie activations.
            yield f"{ours}/conv{i + 1}", f"{theirs}.residual_function.{3 * i}"
            yield f"{ours}/bn{i + 1}", f"{theirs}.residual_function.{3 * i + 1}"
        if projects:
            yield f"{ours}/shortcut_conv", f"{theirs}.shortcut.0"
            yield f"{ours}/shortcut_bn", f"{theirs}.shortcut.1"
    yield "fc", "fc"


def _vgg(model: VGG, head: str) -> Names:
    place = number = 0
    for count in model.convolutions:
        for _ in range(count):
            yield f"conv{number}", f"features.{place}"
            if model.batch_norm:
                yield f"bn{number}", f"features.{place + 1}"
            place, number = place + 2 + model.batch_norm, number + 1
        place += 1  # pooling
    for i in range(3):
        yield f"fc{i}", f"{head}.{3 * i}"


def _vgg_torchvision(model: VGG) -> Names:
    return _vgg(model, "classifier")


def _vgg_unsc(model: VGG) -> Names:
    return _vgg(model, "fc")


def _allcnn_unsc(model: AllCNN) -> Names:
    del model  # all have the same layers
    # Dropout and identities take the places between.
    for i, place in enumerate((0, 1, 2, 4, 5, 6, 8, 9)):
        yield f"conv{i}", f"features.{place}.0"
        yield f"bn{i}", f"features.{place}.1"
    yield "fc", "fc.0"


def _alexnet_unsc(model: AlexNet) -> Names:
    del model  # all have the same layers
    for i in range(3):
        yield f"conv{i}", f"features.{5 * i}"
        yield f"bn{i}", f"features.{5 * i + 1}"
    for i in range(2):
        yield f"fc{i}", f"fc.{4 * i}"
        yield f"bn{3 + i}", f"fc.{4 * i + 1}"
    yield "fc2", "fc.8"


def _vit_timm(model: ViT) -> Names:
    yield from (("cls_token", "cls_token"), ("pos_embed", "pos_embed"))
    yield "patch_embed", "patch_embed.proj"
    for number in range(model.depth):
        ours, theirs = f"block{number}", f"blocks.{number}"
        for layer in ("norm1", "attn/qkv", "attn/proj", "norm2"):
            yield f"{ours}/{layer}", f"{theirs}.{layer.replace('/', '.')}"
        for layer in ("fc1", "fc2"):
            yield f"{ours}/{layer}", f"{theirs}.mlp.{layer}"
    yield from (("norm", "norm"), ("head", "head"))


_NAMINGS: dict[type[nn.Module], dict[str, Callable[..., Names]]] = {
    AllCNN: {"unsc": _allcnn_unsc},
    AlexNet: {"unsc": _alexnet_unsc},
    ResNet: {"torchvision": _resnet_torchvision, "unsc": _resnet_unsc},
    VGG: {"torchvision": _vgg_torchvision, "unsc": _vgg_unsc},
    ViT: {"timm": _vit_timm},
}
