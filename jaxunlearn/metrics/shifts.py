"""Images as another camera would have taken them: noisy, blurred, of low contrast.

Kinds of Hendrycks and Dietterich (arXiv 1903.12261), each at the second of five levels
that they have for images of 32 x 32, which leaves most images readable. Their files are
others: numbers do not compare with those of CIFAR-10-C.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxunlearn.checks import as_array, check_choice, check_key, value_range

# Standard deviation of the noise, as a share of the range of pixels.
NOISE = 0.06
# Standard deviation of the blur, in pixels, and how far it reaches: four of them.
BLUR, _REACH = 0.6, 2
# What is left of the differences from an image's mean.
CONTRAST = 0.5

# Images at a time: they are float64 on the way.
_BATCH = 1024


def shifted_images(
    images: Array | np.ndarray, shift: str, *, key: Any
) -> Shaped[np.ndarray, "n h w c"]:
    """The images under one of `SHIFTS`.

    With `[l, u]` the range of pixels, for every pixel `x` of an image:

        noise     clip(x + .06 (u - l) e, l, u),   e standard normal
        blur      mean of the 5 x 5 pixels around it with weights exp(-r^2 / (2 .6^2)),
                  r the distance; those at the edge are repeated
        contrast  m + .5 (x - m),   m the image's mean in this channel

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
    [2, 10, 2]
    >>> shifted_images(image, "contrast", key=jax.random.key(0))[0, 1, :, 0].tolist()
    [5, 50, 5]
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
    return images + NOISE * span * rng.standard_normal(images.shape)


def _blur(images, span, rng):
    del span, rng
    places = np.arange(-_REACH, _REACH + 1)
    weights = np.exp(-np.square(places) / (2 * BLUR**2))
    weights /= weights.sum()
    for axis in (1, 2):
        rows = np.arange(images.shape[axis])
        images = sum(
            w * images.take(np.clip(rows + d, 0, rows[-1]), axis=axis)
            for w, d in zip(weights, places, strict=True)
        )
    return images


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
