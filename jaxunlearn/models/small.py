"""A small convolutional network for small images."""

import flax.linen as nn
from jaxtyping import Array, Float


class SmallCNN(nn.Module):
    """Three 3 x 3 convolutions with BatchNorm, global average pooling, a linear head.

    The channels are `width`, `2 width` and `4 width`; the second and third convolution
    halve the image, so that it should be of 8 x 8 pixels or more. At the default width
    24,058 parameters for grey images and ten classes.

    Attributes:
      num_classes: how many logits.
      width: channels of the first convolution.
    """

    num_classes: int
    width: int = 16

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n k"]:
        """Logits; `train` takes BatchNorm's statistics from the batch."""
        x = images
        for factor, stride in ((1, 1), (2, 2), (4, 2)):
            # BatchNorm's shift makes a bias before it redundant.
            x = nn.Conv(factor * self.width, (3, 3), stride, use_bias=False)(x)
            # Over a small data set's few steps the default of 0.99 lags behind.
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))
