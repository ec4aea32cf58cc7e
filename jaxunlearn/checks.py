"""Arguments refused in a sentence, before any compute."""

import operator
import reprlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def is_traced(tree: Any) -> bool:
    """Whether any leaf is a tracer, whose value is not known."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def check_eager(function: str, *arguments: Any) -> None:
    """Refuse a call inside `jit` and its kin, where values are not known."""
    if is_traced((*arguments, jnp.zeros(()))):
        msg = (
            f"{function} runs many programs and looks at values in between: it cannot "
            "be called inside jax.jit, vmap, grad or another transformation. Call it "
            "outside, and pass in what it returns."
        )
        raise TypeError(msg)


def check_type(
    name: str, value: Any, kind: type, hint: str = "", *, optional: bool = False
) -> None:
    """Refuse what is of another type; None passes where it is `optional`.

    >>> check_type("recipe", None, dict, optional=True)
    """
    if isinstance(value, kind) or (optional and value is None):
        return
    wanted = f"a {kind.__name__}{' or None' if optional else ''}"
    msg = f"{name} must be {wanted}; it is a {type(value).__name__}. {hint}"
    raise TypeError(msg.rstrip())


class _Short(reprlib.Repr):
    """Arrays as kind and shape; long objects by their type."""

    def repr1(self, x, level):
        if hasattr(x, "dtype") and getattr(x, "shape", ()):
            return f"{x.dtype}{list(x.shape)}"
        return super().repr1(x, level)

    def repr_instance(self, x, level):
        text = super().repr_instance(x, level)
        return f"<{type(x).__name__}>" if "..." in text or "\n" in text else text


_SHORT = _Short()
_SHORT.maxlevel = 2
_SHORT.maxlist = _SHORT.maxtuple = 12
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 120


def short(value: Any) -> str:
    """A `repr` for error sentences: of bounded length, and never of pixels.

    >>> short([np.zeros((2, 3)), "cats"])
    "[float64[2, 3], 'cats']"
    """
    try:
        return _SHORT.repr(value)[:300]
    except Exception:  # of a foreign `__repr__`, or of an int of 10,000 digits
        return f"<{type(value).__name__}>"


def as_integer(value: Any) -> int | None:
    """An integer of any type but bool; None for everything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_count(name: str, value: Any) -> int:
    """An integer of at least 1."""
    number = as_integer(value)
    if number is None:
        msg = f"{name} must be an integer; it is {short(value)}."
        raise TypeError(msg)
    if number < 1:
        msg = f"{name} must be at least 1; it is {number}."
        raise ValueError(msg)
    return number


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse what is none of the choices, naming them.

    >>> check_choice("side", "left", ("left", "right"))
    """
    choices = tuple(choices)
    if value not in choices:
        msg = f"{name} must be one of {', '.join(map(repr, choices))}; it is {value!r}."
        raise ValueError(msg)


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
    """Refuse what is neither Int[n] labels nor Float[n k] probabilities."""
    dtype, values = jnp.result_type(targets), np.asarray(targets)
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
        return
    if values.ndim != 1:
        msg = (
            f"integer targets must be labels [n]; their shape is {values.shape}. Pass "
            "one-hot rows as floats."
        )
        raise ValueError(msg)
    check_labels("targets", values, count, num_classes)


def check_labels(
    name: str, labels: Any, count: int, num_classes: int | None = None, hint: str = ""
) -> Any:
    """The labels as an array: one class number for each of `count` images.

    Of traced labels no values are checked. `hint` ends the error for a class that does
    not exist.
    """
    labels = labels if is_traced(labels) else np.asarray(labels)
    if labels.shape != (count,):
        msg = (
            f"{name} must be one class number for each of the {count} images, of shape "
            f"({count},); their shape is {labels.shape}."
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
    if low < 0 or (num_classes is not None and high >= num_classes):
        limit = high + 1 if num_classes is None else num_classes
        wanted = "from 0 on" if num_classes is None else f"0 to {num_classes - 1}"
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
    if not jnp.issubdtype(images.dtype, jnp.floating):
        return
    where = jnp if isinstance(images, jax.Array) else np
    finite = where.isfinite(images).all(axis=tuple(range(1, images.ndim)))
    if not finite.all():
        wrong = np.flatnonzero(~np.asarray(finite))
        msg = (
            f"images hold NaN or infinite pixels: {len(wrong)} of {len(images)} "
            f"images, the first at index {wrong[0]}. Remove or replace them."
        )
        raise ValueError(msg)


def check_channels(
    images: Any, channels: int | None = None, *, name: str = "images"
) -> None:
    """Refuse `[n, h, w, c]` whose last axis does not look like that of the channels.

    Raises:
      ValueError: the last axis is not `channels`, or without such a number neither 1, 3
        nor 4. The sentence says which transposition looks right.

    >>> check_channels(np.zeros((2, 8, 8, 3)))
    >>> check_channels(np.zeros((2, 8, 8, 12)), channels=12)
    """
    shape = tuple(images.shape)
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
