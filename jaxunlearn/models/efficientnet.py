"""A small network of EfficientNet's kind, for small images."""

import functools

import flax.linen as nn
from jaxtyping import Array, Float

from jaxunlearn.models.layers import check_side

# Of each stage: how much a block widens its channels, the channels that it gives at
# width 1, how many blocks, the stride of the first, the side of the depthwise kernels.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 2, 2, 3),
    (6, 112, 1, 1, 5),
)
_STEM, _HEAD = 32, 320
# Of a block's input channels, how many the squeeze leaves.
_SQUEEZE = 4

_conv = functools.partial(nn.Conv, use_bias=False)


class InvertedBottleneck(nn.Module):
    """Widen (1 x 1), depthwise convolution, squeeze and excite, narrow (1 x 1).

    All three convolutions have BatchNorm, the first two swish after it. Where input and
    output are of one shape they are added. Without expansion the first is left out.
    """

    channels: int
    expansion: int
    stride: int
    side: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool
    ) -> Float[Array, "n i j d"]:
        """The block's outputs."""
        norm = functools.partial(nn.BatchNorm, not train, momentum=0.9)
        before = x.shape[-1]
        wide, y = self.expansion * before, x
        if self.expansion > 1:
            y = _conv(wide, (1, 1), name="expand")(y)
            y = nn.swish(norm(name="bn_expand")(y))
        y = _conv(
            wide,
            (self.side, self.side),
            self.stride,
            padding=self.side // 2,
            feature_group_count=wide,
            name="depthwise",
        )(y)
        y = nn.swish(norm(name="bn_depthwise")(y))
        gate = y.mean(axis=(1, 2))
        gate = nn.swish(nn.Dense(max(1, before // _SQUEEZE), name="squeeze")(gate))
        gate = nn.sigmoid(nn.Dense(wide, name="excite")(gate))
        y = y * gate[:, None, None]
        y = norm(name="bn_project")(_conv(self.channels, (1, 1), name="project")(y))
        return x + y if x.shape == y.shape else y


class EfficientNet(nn.Module):
    """Stages of inverted bottlenecks with depthwise convolutions and channel gates.

    A 3 x 3 convolution, five stages of which three halve the image, a 1 x 1
    convolution, global average pooling, a linear head. Smaller than EfficientNet-B0 and
    without its strides for large images, its dropout and its stochastic depth: for
    colour images and ten classes 371,454 parameters.

    Attributes:
      num_classes: how many logits.
      width: factor of all numbers of channels, each rounded down.

    Source: Tan, Le: EfficientNet: rethinking model scaling for convolutional neural
    networks, arXiv 1905.11946; blocks of Sandler et al. (MobileNetV2), arXiv
    1801.04381, with the gates of Hu et al., arXiv 1709.01507.
    """

    num_classes: int
    width: float = 1.0

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n k"]:
        """Logits; `train` takes BatchNorm's statistics from the batch."""
        check_side("EfficientNet", images, 8)
        norm = functools.partial(nn.BatchNorm, not train, momentum=0.9)
        x = _conv(self._scaled(_STEM), (3, 3), padding=1, name="stem")(images)
        x = nn.swish(norm(name="bn_stem")(x))
        for stage, (expansion, channels, count, stride, side) in enumerate(_STAGES):
            for number in range(count):
                x = InvertedBottleneck(
                    self._scaled(channels),
                    expansion,
                    stride if number == 0 else 1,
                    side,
                    name=f"stage{stage}_{number}",
                )(x, train)
        x = _conv(self._scaled(_HEAD), (1, 1), name="last")(x)
        x = nn.swish(norm(name="bn_last")(x))
        return nn.Dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))

    def _scaled(self, channels: int) -> int:
        return max(1, int(channels * self.width))
