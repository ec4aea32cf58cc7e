"""LeNet-5."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.models.layers import check_side


class LeNet5(nn.Module):
    """Two 5 x 5 convolutions with average pooling, then 120, 84 and the classes.

    Images smaller than 32 x 32 get a border of zeros, as digits of 28 x 28 do in the
    paper. As usual its subsampling layers have no trainable coefficients, its second
    convolution sees all channels, and its output is linear. 61,706 parameters for grey
    images of 32 x 32 and ten classes.

    Attributes:
      num_classes: how many logits.

    Source: LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document
    recognition, Proceedings of the IEEE 86, 1998.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n k"]:
        """Logits; training and evaluation are the same."""
        del train
        check_side("LeNet-5", images, 8)
        x = _with_border(images, 32)
        for number, channels in enumerate((6, 16), start=1):
            x = nn.Conv(channels, (5, 5), padding="VALID", name=f"conv{number}")(x)
            x = nn.avg_pool(nn.tanh(x), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for number, features in enumerate((120, 84), start=1):
            x = nn.tanh(nn.Dense(features, name=f"fc{number}")(x))
        return nn.Dense(self.num_classes, name="fc3")(x)


def _with_border(images, side):
    """Zeros on all sides, as many on the one as on the other, or one more."""
    lacking = [max(side - length, 0) for length in images.shape[1:3]]
    rows, columns = [(n // 2, n - n // 2) for n in lacking]
    return jnp.pad(images, ((0, 0), rows, columns, (0, 0)))
