"""Arrays, refused in a sentence before any compute: images, labels, probabilities."""

from collections.abc import Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.checks.values import (
    LARGEST,
    as_integer,
    check_count,
    is_traced,
    short,
)

# Of a sequence that is no array yet: range(10**9) would become one of 8 GB.
_LONGEST = 2**27


def as_array(name: str, values: Any) -> Any:
    """Values as an array of numbers: JAX's as they are, others NumPy's.

    >>> as_array("labels", [3, 5])
    array([3, 5])
    """
    if isinstance(values, jax.Array):
        return values
    if np.ma.is_masked(values):
        msg = (
            f"{name} are a masked array with {np.ma.count_masked(values)} masked "
            "entries: fill or remove them."
        )
        raise ValueError(msg)
    is_list = isinstance(values, Sized) and not hasattr(values, "shape")
    if is_list and len(values) > _LONGEST:
        msg = f"{name} must have at most {_LONGEST} entries; {short(values)} has {len(values)}."  # noqa: E501
        raise ValueError(msg)
    reason = ""
    try:
        # A PyTorch tensor may lie on a device, or be part of a gradient.
        own = values.detach().cpu() if hasattr(values, "detach") else values
        array = np.asarray(own)
    except Exception as error:  # whatever a foreign `__array__` raises
        array, reason = None, f" ({short(str(error))[1:-1]})"
    wide = array is not None and array.dtype.kind == "f" and array.dtype.itemsize > 8
    if array is None or wide or array.dtype.kind in "OUSMm":
        msg = (
            f"{name} must be one array of numbers of at most 64 bits; "
            f"{short(values)} is a {type(values).__name__}{reason}."
        )
        raise TypeError(msg)
    # JAX takes arrays of this machine's byte order alone.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_targets(targets: Any, count: int, num_classes: int) -> Any:
    """Int[n] labels or Float[n k] probabilities, as an array; anything else refused."""
    targets = as_array("targets", targets)
    dtype, values = targets.dtype, np.asarray(targets)
    floating = jnp.issubdtype(dtype, jnp.floating)
    if not floating and not jnp.issubdtype(dtype, jnp.integer):
        msg = (
            "targets must be integer labels [n] or floating-point probabilities "
            f"[n, {num_classes}]; they are {dtype}."
        )
        raise TypeError(msg)
    if floating and values.ndim == 1:
        msg = (
            "targets are one-dimensional floats: labels must be integers, and "
            f"probabilities are [n, k], here [{count}, {num_classes}]."
        )
        raise TypeError(msg)
    if values.shape[:1] != (count,):
        msg = (
            f"targets must have one entry for each of the {count} images; their shape "
            f"is {values.shape}."
        )
        raise ValueError(msg)
    if floating:
        _check_probabilities(values.astype(np.float64), dtype, num_classes)
        return targets
    if values.ndim != 1:
        msg = (
            f"integer targets must be labels [n]; their shape is {values.shape}. Pass "
            "one-hot rows as floats."
        )
        raise ValueError(msg)
    check_labels("targets", values, count, num_classes)
    return targets


def check_labels(
    name: str, labels: Any, count: int, num_classes: int | None = None, hint: str = ""
) -> Any:
    """The labels as an array: one class number for each of `count` images.

    Of traced labels no values are checked. `hint` ends the error for a class that does
    not exist.
    """
    labels = labels if is_traced(labels) else np.asarray(as_array(name, labels))
    if labels.shape != (count,):
        onehot = " One-hot rows become labels by argmax(axis=1)." * (labels.ndim == 2)
        msg = (
            f"{name} must be one class number for each of the {count} images, of shape "
            f"({count},); their shape is {labels.shape}.{onehot}"
        )
        raise ValueError(msg)
    if not count:  # An empty list is float64 to NumPy and means nothing by it.
        return labels
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        msg = f"{name} must be integers; they are {labels.dtype}."
        raise TypeError(msg)
    if is_traced(labels):
        return labels
    low, high = labels.min(), labels.max()
    limit = LARGEST if num_classes is None else num_classes
    if low < 0 or high >= limit:
        unknown = num_classes is None and high < limit
        wanted = "from 0 on" if unknown else f"0 to {limit - 1}"
        wrong = (labels < 0) | (labels >= limit)
        msg = (
            f"{name} must be classes {wanted}; they range from {low} to {high}, the "
            f"first of no such class at index {wrong.argmax()}. {hint}"
        )
        raise ValueError(msg.rstrip())
    return labels


def _check_probabilities(rows, dtype, num_classes):
    if rows.ndim != 2 or rows.shape[1] != num_classes:
        msg = (
            f"probabilities must be [n, {num_classes}], a column for each logit; their "
            f"shape is {rows.shape}."
        )
        raise ValueError(msg)
    # A softmax in half precision is off by some units in the last place.
    tolerance = max(1e-3, 4 * float(jnp.finfo(dtype).eps))
    # Written so that NaN is refused too.
    fine = (rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) <= tolerance)
    if not fine.all():
        first = int(fine.argmin())
        msg = (
            "probabilities must be at least 0 and sum to 1 in every row; row "
            f"{first} has minimum {rows[first].min():.4g} and sum "
            f"{rows[first].sum():.6g}. jax.nn.softmax makes probabilities of logits."
        )
        raise ValueError(msg)


def check_finite(images: Any) -> None:
    """Refuse NaN and infinite pixels, naming the first image that holds one."""
    if not jnp.issubdtype(images.dtype, jnp.floating) or is_traced(images):
        return
    if images.size and not np.isfinite(value_range(images)).all():
        with jax.ensure_compile_time_eval():
            where = jnp if isinstance(images, jax.Array) else np
            finite = where.isfinite(images).all(axis=tuple(range(1, images.ndim)))
        wrong = np.flatnonzero(~np.asarray(finite))
        msg = (
            f"images hold NaN or infinite pixels: {len(wrong)} of {len(images)} "
            f"images, the first at index {wrong[0]}. Remove or replace them."
        )
        raise ValueError(msg)


def value_range(array: Any) -> tuple[float, float]:
    """Least and greatest value, NaN where there is one; no copy is made.

    Under `jit` too, of an array that is closed over and so has values.
    """
    # Of half precision NumPy warns of NaN.
    with jax.ensure_compile_time_eval(), np.errstate(invalid="ignore"):
        return float(array.min()), float(array.max())


def check_channels(
    images: Any, channels: int | None = None, *, name: str = "images"
) -> None:
    """Refuse `[n, h, w, c]` whose last axis does not look like that of the channels.

    Args:
      images: an array, or its shape.
      channels: how many there are, if it is none of the usual numbers.
      name: what the images are called.

    Raises:
      ValueError: the last axis is not `channels`, or without such a number neither 1, 3
        nor 4. The sentence says which transposition looks right.

    >>> check_channels(np.zeros((2, 8, 8, 3)))
    >>> check_channels(np.zeros((2, 8, 8, 12)), channels=12)
    """
    shape = getattr(images, "shape", images)
    is_shape = isinstance(shape, tuple | list) and None not in map(as_integer, shape)
    if not is_shape:
        msg = f"{name} must be an array [n, h, w, c]; it is {short(images)}."
        raise TypeError(msg)
    shape = tuple(shape)
    if len(shape) != 4:
        hint = f" Grey images need a last axis: {name}[..., None]." * (len(shape) == 3)
        msg = f"{name} must be [n, h, w, c]; their shape is {shape}.{hint}"
        raise ValueError(msg)
    usual = (1, 3, 4) if channels is None else (check_count("channels", channels),)
    if shape[-1] in usual:
        return
    # Channels first, and images behind each other as MATLAB has them.
    orders = [order for axis, order in _ORDERS.items() if shape[axis] in usual]
    if orders:
        moved = [shape[axis] for axis in orders[0]]
        cure = f"{name}.transpose{orders[0]}, of shape {moved}, looks right"
    else:
        cure = "no other axis looks like that of the channels"
    wanted = " or ".join(map(str, usual))
    say = f"; say channels={shape[-1]} if they are" if channels is None else ""
    msg = (
        f"{name} must be [n, h, w, c] with {wanted} channels; their shape is {shape}, "
        f"which would be {shape[-1]} channels{say}. Otherwise {cure}."
    )
    raise ValueError(msg)


_ORDERS = {1: (0, 2, 3, 1), 2: (3, 0, 1, 2)}
