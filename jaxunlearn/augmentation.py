"""Random crops, flips and brightness: for training, unlearning and inversion."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num

from jaxunlearn.checks import as_array, as_integer, short

_WIDEST = 2**15


def random_crop(key: Array, images: Any, padding: Any) -> Num[Array, "n h w c"]:
    """Windows of `h` by `w` pixels of the images with a black border, each its own.

        cropped[i, y, x] = padded[i, y + dy_i, x + dx_i],   dy, dx in 0..2 padding

    with `dy` and `dx` drawn evenly. Black is 0 in pixel space, so crop before images
    are standardised.

    Args:
      key: a `jax.random.key`.
      images: `[n, h, w, c]` of any number type, which is kept.
      padding: pixels of border on each side; static.

    Raises:
      TypeError: images are no array, padding is no integer.
      ValueError: images are not `[n, h, w, c]`, padding is negative or too large.

    >>> random_crop(jax.random.key(0), jnp.ones((2, 8, 8, 1), jnp.uint8), 4).dtype
    dtype('uint8')
    """
    number = as_integer(padding)
    if number is None:
        msg = f"padding must be a number of pixels; it is {short(padding)}."
        raise TypeError(msg)
    if not 0 <= number < _WIDEST:
        limit = "0 or more pixels" if number < 0 else f"less than {_WIDEST} pixels"
        msg = f"padding must be {limit}; it is {short(number)}."
        raise ValueError(msg)
    images = jnp.asarray(as_array("images", images))
    if images.ndim != 4:
        msg = f"images must be [n, h, w, c]; their shape is {images.shape}."
        raise ValueError(msg)
    if padding == 0:
        return images
    n, h, w, c = images.shape
    sides = (padding, padding)
    padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
    corners = jax.random.randint(key, (n, 2), 0, 2 * padding + 1)

    def window(image, corner):
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (h, w, c))

    return jax.vmap(window)(padded, corners)


def random_flip(
    key: Array, images: Num[Array | np.ndarray, "n h w c"]
) -> Num[Array, "n h w c"]:
    """Each image mirrored left to right with probability one half.

    >>> random_flip(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
    (2, 8, 8, 1)
    """
    images = jnp.asarray(images)
    mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def augment(
    key: Array,
    images: Num[Array | np.ndarray, "n h w c"],
    *,
    crop_padding: int,
    flip: bool,
) -> Num[Array, "n h w c"]:
    """`random_crop`, then `random_flip` if asked for.

    >>> augment(
    ...     jax.random.key(0), jnp.ones((2, 8, 8, 1)), crop_padding=0, flip=False
    ... ).sum()
    Array(128., dtype=float32)
    """
    crop_key, flip_key = jax.random.split(key)
    images = random_crop(crop_key, images, crop_padding)
    return random_flip(flip_key, images) if flip else images


def random_brightness(
    key: Array, images: Float[Array | np.ndarray, "n h w c"], spread: float
) -> Float[Array, "n h w c"]:
    """Each image times a factor of its own, even in `[1 - spread, 1 + spread]`.

    Black, which is 0, stays black; nothing is cut off at white.

    >>> random_brightness(jax.random.key(0), jnp.ones((2, 8, 8, 1)), 0.0).sum()
    Array(128., dtype=float32)
    """
    images = jnp.asarray(images)
    shape, ends = (images.shape[0], 1, 1, 1), (1 - spread, 1 + spread)
    return images * jax.random.uniform(key, shape, images.dtype, *ends)


def crop_and_flip(
    key: Array, images: Num[Array | np.ndarray, "n h w c"]
) -> Num[Array, "n h w c"]:
    """A border of 4 pixels and a flip, as UNSC trains on CIFAR and SVHN.

    It is what `unlearn` takes as `augment`. SVHN's digits are mirrored too, as there.

    >>> crop_and_flip(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
    (2, 8, 8, 1)
    """
    return augment(key, images, crop_padding=4, flip=True)


# As the command line calls them; None leaves the images alone.
by_name: dict[str, Callable[[Array, Array], Array] | None] = {
    "none": None,
    "crop-flip": crop_and_flip,
}
