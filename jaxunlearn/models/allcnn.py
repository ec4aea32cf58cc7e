"""All-CNN with BatchNorm, by default at the half width of UNSC's experiments."""

import flax.linen as nn
from jaxtyping import Array, Float

from jaxunlearn.models.layers import check_side

# (channels at width 1, side of the kernel, stride) of the eight convolutions.
_LAYERS = (
    (96, 3, 1),
    (96, 3, 1),
    (192, 3, 2),
    (192, 3, 1),
    (192, 3, 1),
    (192, 3, 2),
    (192, 3, 1),
    (192, 1, 1),
)


class AllCNN(nn.Module):
    """Seven 3 x 3 convolutions, two of stride 2, one 1 x 1, average, linear head.

    At the default width of 0.5, 48 and 96 channels: 406,810 parameters for colour
    images and ten classes. (All-CNN-C as published has width 1, dropout, biases instead
    of BatchNorm, and a convolution as its head.)

    Attributes:
      num_classes: how many logits.
      width: factor of 96 and 192 channels.
      dropout: share of the channels' values dropped before the fourth and the seventh
        convolution.

    Source: Springenberg, Dosovitskiy, Brox, Riedmiller: Striving for simplicity, arXiv
    1412.6806; in the form of UNSC, arXiv 2404.13588.
    """

    num_classes: int
    width: float = 0.5
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n k"]:
        """Logits; `train` takes batch statistics and drops out."""
        check_side("All-CNN", images, 4)
        x = images
        for number, (channels, side, stride) in enumerate(_LAYERS):
            if self.dropout and number in (3, 6):
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.Conv(
                max(1, int(channels * self.width)),
                (side, side),
                stride,
                # As many zeros on all sides: "SAME" has one less at stride 2.
                padding=side // 2,
                use_bias=False,
                name=f"conv{number}",
            )(x)
            x = nn.BatchNorm(not train, momentum=0.9, name=f"bn{number}")(x)
            x = nn.relu(x)
        return nn.Dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))
