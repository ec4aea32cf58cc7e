"""AlexNet for images of 28 x 28 or 32 x 32: UNSC's network for Fashion-MNIST."""

import flax.linen as nn
from jaxtyping import Array, Float

from jaxunlearn.models.layers import check_side, halve

# (channels, side of the kernel, dropout) of the three convolutions.
_CONVOLUTIONS = ((64, 4, 0.2), (128, 3, 0.2), (256, 2, 0.5))


class AlexNet(nn.Module):
    """Three convolutions without padding, two wide linear layers, a linear head.

    No weight layer has a bias. BatchNorm, ReLU and dropout follow each but the last,
    max-pooling follows each convolution. 6,526,848 parameters for grey images of
    28 x 28 or 32 x 32 and ten classes.

    Attributes:
      num_classes: how many logits.
      features: of the two wide linear layers.

    Source: the Fashion-MNIST network of UNSC (arXiv 2404.13588), after Krizhevsky,
    Sutskever, Hinton: ImageNet classification with deep convolutional neural networks,
    2012.
    """

    num_classes: int
    features: int = 2048

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n k"]:
        """Logits; `train` takes batch statistics and drops out."""
        check_side("AlexNet", images, 19)

        def finish(x, number, dropout):
            x = nn.BatchNorm(not train, momentum=0.9, name=f"bn{number}")(x)
            return nn.Dropout(dropout, deterministic=not train)(nn.relu(x))

        x = images
        for number, (channels, side, dropout) in enumerate(_CONVOLUTIONS):
            kernel = (side, side)
            conv = nn.Conv(
                channels, kernel, padding="VALID", use_bias=False, name=f"conv{number}"
            )
            x = halve(finish(conv(x), number, dropout))
        x = x.reshape(len(x), -1)
        for number in range(2):
            dense = nn.Dense(self.features, use_bias=False, name=f"fc{number}")
            x = finish(dense(x), 3 + number, 0.5)
        return nn.Dense(self.num_classes, use_bias=False, name="fc2")(x)
