"""Arguments refused in a sentence, before any compute."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def is_traced(tree: Any) -> bool:
    """Whether any leaf is a tracer, whose value is not known."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def check_count(name: str, value: Any) -> int:
    """An integer of at least 1.

    >>> check_count("steps", np.int64(3))
    3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        msg = f"{name} must be an integer; it is {value!r}."
        raise TypeError(msg)
    if number < 1:
        msg = f"{name} must be at least 1; it is {number}."
        raise ValueError(msg)
    return number


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is no optax transformation."""
    if not isinstance(optimizer, optax.GradientTransformation):
        msg = (
            "optimizer must be an optax transformation, such as optax.sgd(0.1); it is "
            f"a {type(optimizer).__name__}."
        )
        raise TypeError(msg)


def check_key(key: Any) -> None:
    """Refuse what is not a single random key of the typed kind."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.ndim:
        what = type(key).__name__ if dtype is None else f"{dtype}{list(key.shape)}"
        msg = (
            f"key must be one jax.random.key(seed); it is {what}. "
            "jax.random.wrap_key_data makes one of an old PRNGKey."
        )
        raise TypeError(msg)


def check_targets(targets: Any, count: int, num_classes: int) -> None:
    """Refuse what is neither Int[n] labels nor Float[n k] probabilities.

    Raises:
      TypeError: neither integers nor floats, or one-dimensional floats.
      ValueError: another number of targets than `count`, labels outside
        `0..num_classes - 1`, rows that are no probabilities over so many classes.
    """
    dtype, values = jnp.result_type(targets), np.asarray(targets)
    labels = jnp.issubdtype(dtype, jnp.integer)
    if not labels and not jnp.issubdtype(dtype, jnp.floating):
        msg = (
            "targets must be integer labels [n] or floating-point probabilities "
            f"[n, {num_classes}]; they are {dtype}."
        )
        raise TypeError(msg)
    if not labels and values.ndim == 1:
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
    if labels:
        _check_labels(values, num_classes)
    else:
        _check_probabilities(values.astype(np.float64), dtype, num_classes)


def _check_labels(labels, num_classes):
    if labels.ndim != 1:
        msg = (
            f"integer targets must be labels [n]; their shape is {labels.shape}. Pass "
            "one-hot rows as floats."
        )
        raise ValueError(msg)
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        msg = (
            f"labels must lie in 0..{num_classes - 1}, as many as the network has "
            f"logits; targets[{wrong[0]}] is {labels[wrong[0]]}."
        )
        raise ValueError(msg)


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
    if jnp.issubdtype(images.dtype, jnp.floating):
        finite = np.isfinite(np.asarray(images)).reshape(len(images), -1).all(axis=1)
        if not finite.all():
            first = int(np.flatnonzero(~finite)[0])
            msg = (
                f"images hold NaN or infinite pixels: {int((~finite).sum())} of "
                f"{len(images)} images, the first at index {first}. Remove them."
            )
            raise ValueError(msg)
