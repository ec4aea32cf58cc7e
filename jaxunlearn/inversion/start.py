"""Where an inversion begins: augmented images in place of noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxunlearn import parallel
from jaxunlearn.augmentation import random_brightness, random_crop, random_flip
from jaxunlearn.checks import as_array, check_count, check_finite, check_key, check_type
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.images import check_images
from jaxunlearn.inversion.arguments import bounds_of, traced_terms
from jaxunlearn.inversion.objective import TERMS, References

# Shares of the side and of the brightness, chosen in benchmarks/inversion_start.py.
_SHIFT, _SPREAD = 0.125, 0.2


def augmented_images(
    classifier: Classifier,
    images: ArrayLike,
    count: int,
    *,
    key: Array,
    bounds: tuple[float, float] | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """So many images out of given ones, for `invert` to start from.

    Images are drawn in random order, each as often as the next or once more. Each is
    shifted by up to an eighth of its side (`random_crop`), mirrored left to right every
    other time and turned upside down every other time (`random_flip`), made darker or
    brighter by up to a fifth (`random_brightness`), and cut off at the bounds. Black is
    the lower bound. They are to span what layers see, not to look like their class.

    Args:
      classifier: the one that is to be inverted.
      images: `[m h w c]` as it takes them, uint8 only with a `Preprocess`.
      count: how many to make.
      key: a `jax.random.key`, which decides everything.
      bounds: (low, high) of every pixel, both finite. None: (0, 1) with a `Preprocess`,
        else the range of the images.

    Returns:
      Float32 images in pixel space, those of `invert`.

    Raises:
      TypeError: images are no array or of another type, `count` is no integer.
      ValueError: no images, not finite, or out of the pixels' range; bounds that are
        upside down, infinite or beyond the pixels; more than memory holds.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images = jnp.linspace(0, 1, 32).reshape(2, 4, 4, 1)
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> start = augmented_images(classifier, images, 6, key=jax.random.key(1))
    >>> start.shape, bool(start.min() >= 0), bool(start.max() <= 1)
    ((6, 4, 4, 1), True, True)
    """
    check_type("classifier", classifier, Classifier, "freeze(model, ...) makes one.")
    given = as_array("images", images)
    check_images(given, classifier.preprocess)
    check_count("count", count)
    check_key(key)
    if len(given) == 0:
        msg = "images are empty: give at least one to start from."
        raise ValueError(msg)
    check_finite(given)
    needed, free = 16 * count * math.prod(given.shape[1:]), parallel.free_memory()
    if needed > free:
        msg = f"count is {count}, and so many images take {needed:,} bytes while they are made, of which {free:,} are free: ask for fewer."  # noqa: E501
        raise ValueError(msg)
    if bounds is None and classifier.preprocess is None:
        bounds = (float(given.min()), float(given.max()))
    low, high = bounds_of(classifier, bounds)
    if not np.isfinite(high - low):
        msg = f"bounds must both be finite, as black is the lower one; they are {(float(low), float(high))}."  # noqa: E501
        raise ValueError(msg)
    keys = jax.random.split(key, 5)
    order = np.resize(np.asarray(jax.random.permutation(keys[0], len(given))), count)
    drawn = np.asarray(given)[order]
    pixels = jnp.asarray(drawn, jnp.float32) / (255 if drawn.dtype == np.uint8 else 1)
    above = pixels - low
    above = random_crop(keys[1], above, round(_SHIFT * min(given.shape[1:3])))
    for number in (2, 3):
        # Mirrored left to right, then with rows for columns upside down.
        above = random_flip(keys[number], above).transpose(0, 2, 1, 3)
    above = random_brightness(keys[4], above, _SPREAD)
    return np.asarray(jnp.clip(above + low, low, high))


def has_batch_norm(classifier: Classifier, image_shape: tuple[int, ...]) -> bool:
    """Whether there are running statistics that inverted images can match."""
    sample = np.full((1, *image_shape), 0.5, np.float32)
    given = classifier, sample, np.zeros(1, np.int32), References()
    return "feature" in traced_terms.eval_shape(*given, tuple(TERMS.items()))
