"""Images as another camera would have taken them: noisy, blurred, of low contrast.

Kinds of Hendrycks and Dietterich (arXiv 1903.12261) at one fixed severity each, but not
their files: numbers are not comparable with those of CIFAR-10-C.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxunlearn.checks import as_array, check_choice, check_key, value_range

# Standard deviation of the noise, as a share of the range of pixels.
SIGMA = 0.1
# What is left of the differences from an image's mean.
CONTRAST = 0.4

# Images at a time: they are float64 on the way.
_BATCH = 1024


def shifted_images(
    images: Array | np.ndarray, shift: str, *, key: Any
) -> Shaped[np.ndarray, "n h w c"]:
    """The images under one of `SHIFTS`.

    With `[l, u]` the range of pixels, for every pixel `x` of an image:

        noise     clip(x + .1 (u - l) e, l, u),   e standard normal
        blur      mean of the 3 x 3 pixels around it, those at the edge repeated
        contrast  m + .4 (x - m),   m the image's mean in this channel

    Args:
      images: `[n, h, w, c]`. The range of uint8 is 0 to 255, that of floats what they
        span. On the host they are shifted in float64.
      shift: "noise", "blur" or "contrast".
      key: a `jax.random.key`, for the noise.

    Returns:
      Images of the same type, uint8 rounded to the nearest.

    Raises:
      TypeError: `key` is no key.
      ValueError: no such shift, or images that are not `[n, h, w, c]`.

    >>> image = np.zeros((1, 3, 3, 1), np.uint8)
    >>> image[0, 1, 1] = 90
    >>> shifted_images(image, "blur", key=jax.random.key(0))[0, :, 0, 0].tolist()
    [10, 10, 10]
    >>> shifted_images(image, "contrast", key=jax.random.key(0))[0, 1, :, 0].tolist()
    [6, 42, 6]
    """
    check_choice("shift", shift, SHIFTS)
    check_key(key)
    images = np.asarray(as_array("images", images))
    if images.ndim != 4:
        msg = f"images must be [n, h, w, c]; their shape is {images.shape}."
        raise ValueError(msg)
    if not images.size:
        return images
    whole = images.dtype == np.uint8
    low, high = (0, 255) if whole else map(float, value_range(images))
    rng = np.random.default_rng(jax.random.key_data(key).ravel().tolist())
    moved = np.empty_like(images)
    for start in range(0, len(images), _BATCH):
        some = images[start : start + _BATCH].astype(np.float64)
        some = np.clip(SHIFTS[shift](some, high - low, rng), low, high)
        moved[start : start + _BATCH] = np.rint(some) if whole else some
    return moved


def _noise(images, span, rng):
    return images + SIGMA * span * rng.standard_normal(images.shape)


def _blur(images, span, rng):
    del span, rng
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    views = (
        padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
    )
    return sum(views) / 9


def _contrast(images, span, rng):
    del span, rng
    mean = images.mean(axis=(1, 2), keepdims=True)
    return mean + CONTRAST * (images - mean)


# By name: float64 images, the span of pixels and a generator to images, not clipped.
SHIFTS: dict[str, Callable[..., Float[np.ndarray, "n h w c"]]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
}
