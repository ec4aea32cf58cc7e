"""Maps that a network flattens: PyTorch takes channels first, we take them last."""

import math
from collections.abc import Mapping

import flax.linen as nn

from jaxunlearn.models.alexnet import AlexNet
from jaxunlearn.models.vgg import VGG
from jaxunlearn.models.vit import ViT

# Channels of the map that AlexNet flattens.
_ALEXNET = 256


def flattened(model: nn.Module, sides: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """The layers that see a flattened map, each with its (h, w, c), by image sides."""
    if isinstance(model, VGG):
        channels = model.width * min(2 ** (len(model.convolutions) - 1), 8)
        return {"fc0": (model.pool, model.pool, channels)}
    if isinstance(model, AlexNet):
        # Convolutions of 4, 3 and 2 without padding, each halved.
        for kernel in (4, 3, 2):
            sides = ((sides[0] - kernel + 1) // 2, (sides[1] - kernel + 1) // 2)
        return {"fc0": (*sides, _ALEXNET)}
    return {}


def fitting_sides(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int]:
    """Sides of images for which a network has leaves of these shapes, by path."""
    if isinstance(model, ViT):
        _, tokens, *_ = *shapes.get("params/pos_embed", ()), 2, 2
        return model.patch, model.patch * max(tokens - 1, 1)
    if isinstance(model, AlexNet):
        rows, *_ = *shapes.get("params/fc0/kernel", ()), _ALEXNET
        side = max(math.isqrt(rows // _ALEXNET), 1)
        if rows // _ALEXNET > side**2:
            msg = f"AlexNet's first linear layer has {rows} rows, which is no square map of {_ALEXNET} channels: give image_shape."  # noqa: E501
            raise ValueError(msg)
        return 8 * side + 11, 8 * side + 11
    # Any side does: what follows is pooled.
    side = 2 ** len(model.convolutions) if isinstance(model, VGG) else 32
    return side, side
