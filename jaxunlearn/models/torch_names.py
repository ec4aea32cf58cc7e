"""What PyTorch code calls the layers of these networks.

Layers are named by what stands before `.weight`; ours by their path, as in
`layer1_0/conv1`. Names come in the order in which PyTorch lists them.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn

from jaxunlearn.models.alexnet import AlexNet
from jaxunlearn.models.allcnn import AllCNN
from jaxunlearn.models.resnet import ResNet
from jaxunlearn.models.vgg import VGG
from jaxunlearn.models.vit import SIZES, ViT

Names = Iterator[tuple[str, str]]
Shape = tuple[int, ...]


def namings(model: Any) -> dict[str, dict[str, str]]:
    """For each naming that a network has, the default first: our path -> their name.

    "torchvision" and "timm" are these packages' names, "unsc" those of the code
    published with arXiv 2404.13588.
    """
    for kind, functions in _NAMINGS.items():
        if isinstance(model, kind):
            if getattr(model, "norm", "batch") != "batch":
                msg = (
                    f"PyTorch weights are converted for a {kind.__name__} with norm="
                    f'"batch"; this one has "{model.norm}", of whose groups weights '
                    "say nothing."
                )
                raise TypeError(msg)
            if isinstance(model, ResNet) and model.stem == "imagenet":
                # UNSC's code has no such network.
                functions = {"torchvision": functions["torchvision"]}
            return {name: dict(function(model)) for name, function in functions.items()}
    having = ", ".join(kind.__name__ for kind in _NAMINGS)
    msg = f"PyTorch weights are converted for the models {having}; this is a {type(model).__name__}."  # noqa: E501
    raise TypeError(msg)


def _resnet(
    model: ResNet,
    stem: tuple[str, str],
    block: Callable[[int, int], str],
    layers: list[tuple[str, str]],
    shortcut: str,
) -> Names:
    """Their names of the stem, a stage's block, its layers (with norms), a shortcut."""
    yield from zip(("conv1", "bn1"), stem, strict=True)
    for stage, count in enumerate(model.blocks, start=1):
        for number in range(count):
            ours, theirs = f"layer{stage}_{number}", block(stage, number)
            for i, (conv, norm) in enumerate(layers[: 2 + model.bottleneck], start=1):
                yield f"{ours}/conv{i}", f"{theirs}.{conv}"
                yield f"{ours}/bn{i}", f"{theirs}.{norm}"
            if number == 0 and (stage > 1 or model.bottleneck):
                yield f"{ours}/shortcut_conv", f"{theirs}.{shortcut}.0"
                yield f"{ours}/shortcut_bn", f"{theirs}.{shortcut}.1"
    yield "fc", "fc"


_resnet_torchvision = functools.partial(
    _resnet,
    stem=("conv1", "bn1"),
    block="layer{}.{}".format,
    layers=[(f"conv{i}", f"bn{i}") for i in (1, 2, 3)],
    shortcut="downsample",
)

_resnet_unsc = functools.partial(
    _resnet,
    stem=("features.0", "features.1"),
    block=lambda stage, number: f"features.{stage + 2}.{number}",
    # Between them lie activations.
    layers=[
        (f"residual_function.{i}", f"residual_function.{i + 1}") for i in (0, 3, 6)
    ],
    shortcut="shortcut",
)


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
    VGG: {
        "torchvision": functools.partial(_vgg, head="classifier"),
        "unsc": functools.partial(_vgg, head="fc"),
    },
    ViT: {"timm": _vit_timm},
}


def shown_fields(model: nn.Module, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """What tensors of these shapes, by PyTorch's names, say of a network's fields."""
    for names in namings(model).values():
        *_, head = names.values()
        weights = {ours: shapes.get(f"{n}.weight", ()) for ours, n in names.items()}
        try:
            classes, _ = shapes[f"{head}.weight"]
            fields = _FIELDS[type(model)](model, weights, shapes)
            return {"num_classes": classes, **fields}
        except (IndexError, KeyError, ValueError):
            continue  # other names, or too little to tell
    return {}


def _allcnn_fields(model, weights, shapes):
    del shapes
    channels, *_ = weights["conv2"]
    fits = int(192 * model.width) == channels
    # Rounded up, as channels are rounded down.
    return {"width": model.width if fits else math.ceil(channels / 0.0192) / 1e4}


def _alexnet_fields(model, weights, shapes):
    del model, shapes
    return {"features": weights["fc0"][0]}


def _resnet_fields(model, weights, shapes):
    del model, shapes
    width, _, side, _ = weights["conv1"]
    return {"stem": "imagenet" if side == 7 else "cifar", "width": width}


def _vgg_fields(model, weights, shapes):
    (width, *_), (features, columns) = weights["conv0"], weights["fc0"]
    channels = width * min(2 ** (len(model.convolutions) - 1), 8)
    return {
        "width": width,
        "features": features,
        "pool": math.isqrt(columns // channels),
        "batch_norm": "features.1.running_mean" in shapes,
    }


def _vit_fields(model, weights, shapes):
    del model
    features, _, patch, _ = weights["patch_embed"]
    size = {width: size for size, (width, _) in SIZES.items()}[features]
    depth = sum(name.endswith(".attn.qkv.weight") for name in shapes)
    return {"size": size, "patch": patch, "depth": depth}


_FIELDS: dict[type[nn.Module], Callable[..., dict[str, Any]]] = {
    AllCNN: _allcnn_fields,
    AlexNet: _alexnet_fields,
    ResNet: _resnet_fields,
    VGG: _vgg_fields,
    ViT: _vit_fields,
}
