"""What images a classifier takes, and the sentences about those that it does not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ModifyScopeVariableError

from jaxunlearn import checks
from jaxunlearn.checks import is_traced, short

# How far outside [0, 1] pixels may lie: half precision rounds, resizing overshoots.
MARGIN = 0.25


def check_images(images: Any, preprocess: Any) -> Any:
    """The images as an array of JAX or NumPy, tensors of other frameworks converted.

    Refuses images of the wrong rank, type, number of channels or pixel range. The range
    is that of floats for a `Preprocess`; of traced images it is not known.
    """
    images = as_array(images)
    shape, dtype = tuple(images.shape), images.dtype
    if len(shape) != 4:
        grey = " or, for grey images, a last one: images[..., None]"
        msg = f"images must be [n, h, w, c]; their shape is {shape}. A single image needs a leading axis: images[None]{grey * (len(shape) == 3)}."  # noqa: E501
        raise ValueError(msg)
    if dtype == jnp.uint8 and preprocess is None:
        msg = (
            "images are uint8, and this classifier has no Preprocess to turn them into "
            "floats: freeze(..., preprocess=Preprocess(mean, std)), or pass floats in "
            "the range that the network was trained on."
        )
        raise TypeError(msg)
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        msg = f"images must be uint8 (with a Preprocess) or floating point; they are {dtype}."  # noqa: E501
        raise TypeError(msg)
    if 0 in shape[1:]:
        msg = f"images must have pixels; their shape is {shape}."
        raise ValueError(msg)
    if preprocess is None:
        return images
    for channels in (len(preprocess.mean), len(preprocess.std)):
        if channels not in (1, shape[-1]):
            msg = (
                f"Preprocess has {channels} channels and the images have {shape[-1]}: "
                f"their shape is {shape}."
            )
            raise ValueError(msg)
    if dtype != jnp.uint8 and isinstance(images, jax.Array | np.ndarray):
        _check_range(images)
    return images


def as_array(images: Any) -> Any:
    """An array of JAX or NumPy, of what is an array already; or a shape, as it is."""
    if isinstance(images, jax.Array | jax.ShapeDtypeStruct):
        return images
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        hint = " Pass its .images." if hasattr(images, "images") else ""
        msg = f"images must be an array [n, h, w, c]; it is {short(images)}.{hint}"
        raise TypeError(msg)
    return checks.as_array("images", images)


def _check_range(images) -> None:
    if is_traced(images) or not images.size:
        return
    if isinstance(images, jax.Array) and not images.is_fully_addressable:
        return
    low, high = checks.value_range(images)
    # NaN and infinite pixels are told apart by whoever looks for them.
    finite = np.isfinite([low, high]).all()
    if finite and (low < -MARGIN or high > 1 + MARGIN):
        msg = (
            "This classifier has a Preprocess, for which floats are pixels in [0, 1]; "
            f"these images range from {low:.4g} to {high:.4g}. Pass pixels of 0 to 255 "
            "as uint8 or divided by 255; give back images that are standardised "
            "already (images * std + mean), or freeze without preprocess."
        )
        raise ValueError(msg)


def refused_by(apply: Any, params: Any, state: Any, images: Any, error: Exception):
    """A sentence about images that made a network's `apply` raise this error."""
    first = str(error).strip().partition("\n")[0][:300]
    if isinstance(error, ModifyScopeVariableError):
        return (
            "The network is not in inference mode: freeze it with the call option for "
            "which BatchNorm takes its running averages and nothing is counted. It "
            f"says: {first}"
        )
    h, w, c = (*images.shape[1:], 0, 0, 0)[:3]
    inner = (leaf.shape[-2] for leaf in jax.tree.leaves(params) if jnp.ndim(leaf) > 1)
    others = [k for k in dict.fromkeys((1, 3, 4, *inner)) if k != c][:8]
    cures = {(w, c, h): "images.transpose(0, 2, 3, 1), as for channels first, fits it"}
    cures |= {(h, w, k): f"of this size it takes {k} channels, not {c}" for k in others}

    def takes(shape) -> bool:
        one = jax.ShapeDtypeStruct((1, *shape), images.dtype)
        try:
            jax.eval_shape(apply, params, state, one)
        except Exception:  # Whatever a network raises.
            return False
        return True

    cure = next(
        (cure for shape, cure in cures.items() if takes(shape)),
        "give images of the size and channels that it was trained on, and its own "
        "parameters",
    )
    shape = tuple(images.shape[1:])
    return f"The network cannot take images of shape {shape}: {cure}. It says: {first}"
