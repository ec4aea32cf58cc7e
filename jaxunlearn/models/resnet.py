"""ResNets with a stem for small images or for ImageNet's."""

import functools
from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Float

from jaxunlearn.models.layers import check_side, normalised

_conv = functools.partial(nn.Conv, use_bias=False)


class Block(nn.Module):
    """Two 3 x 3 convolutions, or a bottleneck (1 x 1, 3 x 3, 1 x 1), and a shortcut.

    The bottleneck ends with four times as many channels. The (first) 3 x 3 convolution
    has the stride.
    """

    channels: int
    stride: int
    bottleneck: bool
    norm: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """The block's outputs."""
        n, s = self.channels, self.stride
        layers = [(n, 3, s), (n, 3, 1)]
        if self.bottleneck:
            layers = [(n, 1, 1), (n, 3, s), (4 * n, 1, 1)]
        y = x
        for number, (features, side, stride) in enumerate(layers, start=1):
            kernel, name = (side, side), f"conv{number}"
            y = _conv(features, kernel, stride, padding=side // 2, name=name)(y)
            y = normalised(y, self.norm, train, f"bn{number}")
            y = nn.relu(y) if number < len(layers) else y
        if x.shape != y.shape:
            x = _conv(y.shape[-1], (1, 1), s, padding=0, name="shortcut_conv")(x)
            x = normalised(x, self.norm, train, "shortcut_bn")
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Four stages of residual blocks, global average pooling, a linear head.

    Parameters, with the small stem for ten classes and with ImageNet's for 1,000:
    ResNet-18 11,173,962 and 11,689,512; ResNet-34 21,282,122 and 21,797,672; ResNet-50
    23,520,842 and 25,557,032.

    Attributes:
      num_classes: how many logits.
      blocks: how many each stage has: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) ResNet-34
        and, with bottlenecks, ResNet-50.
      bottleneck: which kind of block.
      stem: "cifar", one 3 x 3 convolution, or "imagenet", a 7 x 7 convolution and
        max-pooling, both of stride 2.
      width: channels of the first stage, doubled at each further one.
      norm: "batch", or "group": GroupNorm of 16 channels a group, or of all of them
        where their number is no multiple of 16, which keeps no running statistics.

    Source: He, Zhang, Ren, Sun: Deep residual learning for image recognition, arXiv
    1512.03385; strides in the 3 x 3 convolution of a bottleneck, as in torchvision; Wu,
    He: Group normalization, arXiv 1803.08494.
    """

    num_classes: int
    blocks: tuple[int, ...]
    bottleneck: bool
    stem: Literal["cifar", "imagenet"] = "cifar"
    width: int = 64
    norm: Literal["batch", "group"] = "batch"

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n k"]:
        """Logits; `train` takes BatchNorm's statistics from the batch."""
        check_side("ResNet", images, 32 if self.stem == "imagenet" else 8)
        side, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        kernel = (side, side)
        x = _conv(self.width, kernel, stride, padding=side // 2, name="conv1")(images)
        x = nn.relu(normalised(x, self.norm, train, "bn1"))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(self.blocks):
            for number in range(count):
                stride = 2 if stage and number == 0 else 1
                name = f"layer{stage + 1}_{number}"
                channels = self.width * 2**stage
                kind = stride, self.bottleneck, self.norm
                x = Block(channels, *kind, name=name)(x, train)
        return nn.Dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))
