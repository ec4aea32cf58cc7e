"""ResNet-18 in NNX, layer by layer that of `resnet.py`."""

import jax
from flax import nnx
from jaxtyping import Array, Float


class Block(nnx.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, before: int, channels: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = _conv(before, channels, 3, stride, rngs)
        self.bn1 = _norm(channels, rngs)
        self.conv2 = _conv(channels, channels, 3, 1, rngs)
        self.bn2 = _norm(channels, rngs)
        self.projects = stride != 1 or before != channels
        if self.projects:
            self.shortcut_conv = _conv(before, channels, 1, stride, rngs)
            self.shortcut_bn = _norm(channels, rngs)

    def __call__(self, x: Array) -> Array:
        """The block's outputs."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.projects:
            x = self.shortcut_bn(self.shortcut_conv(x))
        return jax.nn.relu(x + y)


class ResNet18(nnx.Module):
    """Four stages of two residual blocks, with the stem for small images.

    11,173,962 parameters for colour images and ten classes.

    Args:
      num_classes: how many logits.
      width: channels of the first stage, doubled at each further one.
      channels: of the images.
      rngs: draws the parameters.

    Source: He, Zhang, Ren, Sun, arXiv 1512.03385.

    """

    def __init__(
        self, num_classes: int, *, width: int = 64, channels: int = 3, rngs: nnx.Rngs
    ):
        self.conv1 = _conv(channels, width, 3, 1, rngs)
        self.bn1 = _norm(width, rngs)
        blocks, before = [], width
        for stage in range(4):
            for stride in (2 if stage else 1, 1):
                after = width * 2**stage
                blocks.append(Block(before, after, stride, rngs=rngs))
                before = after
        self.blocks = nnx.List(blocks)
        self.fc = nnx.Linear(before, num_classes, rngs=rngs)

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """Logits; `eval()` and `train()` say whose statistics BatchNorm takes."""
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(axis=(1, 2)))


def _conv(before, after, side, stride, rngs):
    return nnx.Conv(
        before,
        after,
        (side, side),
        stride,
        padding=side // 2,
        use_bias=False,
        rngs=rngs,
    )


def _norm(channels, rngs):
    return nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)
