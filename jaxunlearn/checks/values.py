"""Arguments of any kind, refused in a sentence before any compute."""

import operator
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Labels are int32 on devices.
LARGEST = 2**31 - 1


def is_traced(tree: Any) -> bool:
    """Whether any leaf is a tracer, whose value is not known."""
    # Iterators are no trees, and are not to be read here.
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Iterator))
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def check_eager(function: str, *arguments: Any) -> None:
    """Refuse a call inside `jit` and its kin, where values are not known."""
    if is_traced((*arguments, jax.device_put(np.float32(0)))):
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


def check_functions(**functions: Any) -> None:
    """Refuse what cannot be called and is not None."""
    for name, value in functions.items():
        if value is not None and not callable(value):
            msg = f"{name} must be a function or None; it is a {type(value).__name__}."
            raise TypeError(msg)


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


def as_number(value: Any) -> float | None:
    """A real number of any type but bool; None for everything else, text too."""
    if isinstance(value, bool | np.bool_ | str | bytes) or getattr(value, "shape", ()):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def check_count(name: str, value: Any) -> int:
    """An integer of at least 1."""
    number = as_integer(value)
    if number is None:
        msg = f"{name} must be an integer; it is {short(value)}."
        raise TypeError(msg)
    if not 1 <= number <= LARGEST:
        limit = "at least 1" if number < 1 else f"at most {LARGEST}"
        msg = f"{name} must be {limit}; it is {short(number)}."
        raise ValueError(msg)
    return number


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse what is none of the choices, naming them.

    >>> check_choice("side", "left", ("left", "right"))
    """
    choices = tuple(choices)
    # An array is equal to a string element by element.
    if not any(isinstance(value, type(c)) and value == c for c in choices):
        msg = f"{name} must be one of {', '.join(map(repr, choices))}; it is {short(value)}."  # noqa: E501
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
    dtype = key.dtype if isinstance(key, jax.Array | np.ndarray) else None
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.ndim:
        what = type(key).__name__ if dtype is None else f"{dtype}{list(key.shape)}"
        msg = (
            f"key must be one jax.random.key(seed); it is {what}. "
            "jax.random.wrap_key_data makes one of an old PRNGKey."
        )
        raise TypeError(msg)


def check_positive(name: str, value: Any) -> None:
    """Refuse what is not a finite number above 0."""
    if not (np.isfinite(value) and value > 0):
        msg = f"{name} must be positive; it is {value}."
        raise ValueError(msg)


def check_nonnegative(name: str, value: Any) -> None:
    """Refuse what is not a finite number of at least 0."""
    if not (np.isfinite(value) and value >= 0):
        msg = f"{name} must be at least 0; it is {value}."
        raise ValueError(msg)
