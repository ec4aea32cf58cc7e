"""ResNet-8 for CIFAR-10 as others trained it, put together as a user would."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju

# Pixels of 0 to 255 become x / 127.5 - 1.
PIXELS = ju.Preprocess(0.5, 0.5)


class ResNet8(nn.Module):
    """The image classification reference of MLPerf Tiny; layers named as its weights.

    Number `n` is that of the convolution; its BatchNorm has a number of its own. At
    stride 2 SAME pads below and right alone, as TensorFlow's does.
    """

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        """Logits of images of an even side."""

        def conv(x, number, channels, stride=1, side=3, norm=None):
            name = f"conv2d_{number}"
            x = nn.Conv(channels, (side, side), stride, padding="SAME", name=name)(x)
            if norm is None:
                return x
            fixed = {"momentum": 0.9, "epsilon": 1e-3}
            name = f"batch_normalization_{norm}"
            return nn.BatchNorm(not train, **fixed, name=name)(x)

        x = nn.relu(conv(x, 0, 16, norm=0))
        x = nn.relu(x + conv(nn.relu(conv(x, 1, 16, norm=1)), 2, 16, norm=2))
        for first, norm, channels in ((3, 3, 32), (6, 5, 64)):
            y = nn.relu(conv(x, first, channels, stride=2, norm=norm))
            y = conv(y, first + 1, channels, norm=norm + 1)
            x = nn.relu(y + conv(x, first + 2, channels, stride=2, side=1))
        return nn.Dense(self.num_classes, name="dense")(x.mean(axis=(1, 2)))


def classifier_of(weights: dict[str, np.ndarray]) -> ju.Classifier:
    """The classifier of arrays with names such as `conv2d_0.kernel`."""
    kinds = {"kernel": "kernel", "bias": "bias", "gamma": "scale", "beta": "bias"}
    kinds |= {"moving_mean": "mean", "moving_variance": "var"}
    variables = {"params": {}, "batch_stats": {}}
    for name, array in weights.items():
        layer, kind = name.split(".")
        leaves = variables["batch_stats" if "moving" in kind else "params"]
        leaves.setdefault(layer, {})[kinds[kind]] = jnp.asarray(array)
    return ju.freeze(ResNet8(), variables, preprocess=PIXELS)
