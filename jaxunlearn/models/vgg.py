"""VGG with BatchNorm."""

import flax.linen as nn
from jaxtyping import Array, Float

from jaxunlearn.models.layers import check_side, halve


class VGG(nn.Module):
    """Stages of 3 x 3 convolutions and max-pooling, then 4096, 4096 and the classes.

    Convolutions have biases, as in torchvision. Five stages halve the image, so that
    32 x 32 pixels end as one. For colour images of 32 x 32 and ten classes VGG-11 has
    28,149,514 parameters and VGG-16 33,646,666; with `pool=7` for images of 224 x 224
    and 1,000 classes 132,868,840 and 138,365,992.

    Attributes:
      num_classes: how many logits.
      convolutions: how many each stage has: (1, 1, 2, 2, 2) is VGG-11 and (2, 2, 3, 3,
        3) VGG-16.
      width: channels of the first stage, doubled up to eight times as many.
      features: of the two wide linear layers.
      pool: side of the map that the linear layers see: 1 here, 7 in the paper. A larger
        map is averaged over equal tiles, a smaller one is repeated.
      batch_norm: after each convolution.
      dropout: after each of the two wide linear layers.

    Source: Simonyan, Zisserman: Very deep convolutional networks for large-scale image
    recognition, arXiv 1409.1556.
    """

    num_classes: int
    convolutions: tuple[int, ...]
    width: int = 64
    features: int = 4096
    pool: int = 1
    batch_norm: bool = True
    dropout: float = 0.5

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n k"]:
        """Logits; `train` takes batch statistics and drops out."""
        check_side("VGG", images, 2 ** len(self.convolutions))
        x, number = images, 0
        for stage, count in enumerate(self.convolutions):
            for _ in range(count):
                channels = self.width * min(2**stage, 8)
                x = nn.Conv(channels, (3, 3), padding=1, name=f"conv{number}")(x)
                if self.batch_norm:
                    x = nn.BatchNorm(not train, momentum=0.9, name=f"bn{number}")(x)
                x, number = nn.relu(x), number + 1
            x = halve(x)
        x = _pooled(x, self.pool).reshape(len(x), -1)
        for number in range(2):
            x = nn.relu(nn.Dense(self.features, name=f"fc{number}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="fc2")(x)


def _pooled(x, side):
    """A map of `side` x `side`, as adaptive average pooling makes it."""
    n, h, w, c = x.shape
    if side % h == side % w == 0:
        return x.repeat(side // h, axis=1).repeat(side // w, axis=2)
    if h % side or w % side:
        msg = (
            f"VGG cannot pool its last map of {h} x {w} to {side} x {side} in equal "
            f"tiles: give images whose sides are multiples of {32 * side}, or another "
            "pool."
        )
        raise ValueError(msg)
    return x.reshape(n, side, h // side, side, w // side, c).mean(axis=(2, 4))
