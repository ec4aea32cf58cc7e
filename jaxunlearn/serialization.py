"""Records as the plain values that JSON can hold, and the way back."""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path: "a string",
    types.NoneType: "null",
}


def to_plain(value: Any) -> Any:
    """Records as dictionaries, arrays as lists; None for what is not finite.

    >>> to_plain({"rates": (0.1, float("nan")), "out": Path("runs/a")})
    {'rates': [0.1, None], 'out': 'runs/a'}
    """
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: to_plain(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def to_json(value: Any) -> str:
    """Strict JSON, in which a list of numbers takes one line."""
    text = json.dumps(to_plain(value), indent=2, allow_nan=False)
    # Inside a string there is no raw line break, so that this finds lists alone.
    return re.sub(
        r"\[\n[^][{}\"]*\]", lambda m: f"[{' '.join(m[0][1:-1].split())}]", text
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: the file cannot be read or holds no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror})."
        raise ValueError(msg) from error
    except ValueError as error:
        msg = f"{path} is no JSON ({error})."
        raise ValueError(msg) from error
    if not isinstance(found, dict):
        msg = f"{path} must hold a JSON object; it holds a {type(found).__name__}."
        raise ValueError(msg)
    return found


def from_plain(record: Any, stored: Mapping[str, Any], where: str = "") -> Any:
    """The dataclass `record`, or an instance of it with the stored values set.

    Args:
      record: a dataclass, of which `stored` then needs all fields without a default; or
        an instance, whose values stay where `stored` has none.
      stored: what `to_plain` made of such an instance.
      where: what the record is called in errors, with a dot at its end.

    Raises:
      ValueError: a name that there is not, one that is missing, a value of the wrong
        type or out of its range.

    >>> from jaxunlearn.training.recipe import Recipe
    >>> from_plain(Recipe(), {"epochs": 2}).epochs
    2
    >>> from_plain(Recipe(), {"epochs": "two"}, "recipe.")
    Traceback (most recent call last):
    ValueError: recipe.epochs must be an integer; it is 'two'.
    """
    kinds = typing.get_type_hints(record if isinstance(record, type) else type(record))
    fields = {field.name: field for field in dataclasses.fields(record)}
    values = {}
    for name, value in stored.items():
        if name not in fields:
            msg = f"There is no {where}{name}; there are: {', '.join(fields)}."
            raise ValueError(msg)
        old = getattr(record, name, None)
        if dataclasses.is_dataclass(old) and isinstance(value, dict):
            values[name] = from_plain(old, value, f"{where}{name}.")
        else:
            values[name] = _converted(value, kinds[name], f"{where}{name}")
    if not isinstance(record, type):
        return dataclasses.replace(record, **values)
    for name, field in fields.items():
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and name not in values:
            msg = f"{where}{name} is missing."
            raise ValueError(msg)
    return record(**values)


def _converted(value, kind, name):
    """A JSON value as what a field of type `kind` holds, or a sentence."""
    alternatives = _alternatives(kind)
    exact = [k for k in alternatives if k is type(value)]
    for alternative in exact or alternatives:
        fits, converted = _fit(value, alternative)
        if fits:
            return converted
    wanted = " or ".join(dict.fromkeys(map(_describe, alternatives)))
    msg = f"{name} must be {wanted}; it is {value!r}."
    raise ValueError(msg)


def _alternatives(kind):
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if union else (kind,)


def _fit(value, kind) -> tuple[bool, Any]:
    """Whether a JSON value is one of type `kind`, and if so, that."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in of, value
    if origin is dict:
        return isinstance(value, dict), value
    if origin is tuple:
        if not isinstance(value, list):
            return False, None
        of = of[:1] * len(value) if of[-1] is Ellipsis else of
        fitted = [_fit(v, k) for v, k in zip(value, of, strict=False)]
        fits = len(value) == len(of) and all(fits for fits, _ in fitted)
        return fits, tuple(converted for _, converted in fitted)
    if kind is Path and isinstance(value, str):
        return True, Path(value)
    if kind is float and type(value) is int:
        return True, float(value)
    # Not isinstance: true is an integer to Python, but not to JSON.
    return type(value) is kind, value


def _describe(kind):
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(repr, of))}"
    if origin is tuple:
        count = "" if of[-1] is Ellipsis else f"of {len(of)} "
        return f"a list {count}with {_describe(of[0])} in each place"
    return _NAMES.get(kind, "an object")
