"""Records as JSON-compatible values and back, and files that are whole or not there."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from jaxunlearn.checks import short

_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path: "a string",
    types.NoneType: "null",
}


def to_dict(value: Any) -> Any:
    """Records as dictionaries, arrays as lists; None for what is not finite."""
    return json.loads(msgspec.json.encode(value, enc_hook=_encode))


def to_json(value: Any) -> str:
    """Strict JSON, in which a list of numbers takes one line."""
    text = json.dumps(to_dict(value), indent=2, allow_nan=False)
    # Inside a string there is no raw line break, so that only lists match.
    return re.sub(
        r"\[\n[^][{}\"]*\]", lambda m: f"[{' '.join(m[0][1:-1].split())}]", text
    )


def from_dict(record: Any, stored: Any, where: str = "") -> Any:
    """The dataclass `record`, or an instance of it with the stored values set.

    `where`, with a dot at its end, stands before a field's name in errors.
    """
    if not isinstance(stored, Mapping):
        msg = f"{where[:-1] or 'The record'} must be an object; it is {short(stored)}."
        raise ValueError(msg)
    kinds = typing.get_type_hints(record if isinstance(record, type) else type(record))
    fields = {field.name: field for field in dataclasses.fields(record)}
    values = {}
    for name, value in stored.items():
        if name not in fields:
            msg = f"There is no {where}{name[:100]}; there are: {', '.join(fields)}."
            raise ValueError(msg)
        default = getattr(record, name, None)
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            values[name] = from_dict(default, value, f"{where}{name}.")
            continue
        try:
            values[name] = msgspec.convert(value, kinds[name], dec_hook=_decode)
        except (msgspec.ValidationError, RecursionError, OverflowError) as error:
            msg = (
                f"{where}{name} must be {describe(kinds[name])}; it is {short(value)}."
            )
            raise ValueError(msg) from error
    if not isinstance(record, type):
        return dataclasses.replace(record, **values)
    for name, field in fields.items():
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and name not in values:
            msg = f"{where}{name} is missing."
            raise ValueError(msg)
    return record(**values)


def check_fields(record: Any) -> None:
    """Refuse field values of other types than a frozen dataclass declares.

    NumPy's and JAX's numbers become Python's, and lists tuples, so that records stay
    hashable.

    Raises:
      TypeError: a field's value is of another type.
      ValueError: it is none of the values that there are.
    """
    kinds = typing.get_type_hints(type(record))
    for field in dataclasses.fields(record):
        value, kind = getattr(record, field.name), kinds[field.name]
        if kind is typing.Any or (
            isinstance(kind, type)
            and isinstance(value, kind)
            and not isinstance(value, bool)
        ):
            continue
        seen = short(value)
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, list | tuple):
            value = tuple(x.tolist() if hasattr(x, "tolist") else x for x in value)
        try:
            # Not of a dictionary.
            given = object() if dataclasses.is_dataclass(kind) else value
            converted = msgspec.convert(given, kind)
        except msgspec.ValidationError as error:
            wanted = describe(kind).replace("null", "None")
            if dataclasses.is_dataclass(kind):
                wanted = f"of type {kind.__name__}"
            name = f"{type(record).__name__}.{field.name}"
            msg = f"{name} must be {wanted}; it is {seen}."
            choice = typing.get_origin(kind) is typing.Literal
            raise (ValueError if choice else TypeError)(msg) from error
        except TypeError:
            continue  # A type that is none of JSON's: the record's own matter.
        kept = converted if isinstance(converted, tuple) else value
        object.__setattr__(record, field.name, kept)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        text = path.read_bytes()
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror or error})."
        raise ValueError(msg) from error
    return parse_json(text, str(path))


def parse_json(text: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object in a text, which errors call `what`."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        msg = f"{what} is nested too deep to be JSON of a record."
        raise ValueError(msg) from error
    except ValueError as error:
        msg = f"{what} is no JSON ({error})."
        raise ValueError(msg) from error
    if not isinstance(value, dict):
        msg = f"{what} must hold a JSON object; it holds a {type(value).__name__}."
        raise ValueError(msg)
    return value


def write_json(path: Path, value: Any) -> None:
    """`to_json`, written by `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(to_json(value) + "\n", encoding="utf-8")


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` if all goes well.

    On the disk, too: a name never outlives a power cut without its content.
    """
    if not path.parent.is_dir():
        msg = f"There is no folder {path.parent} to write {path.name} into."
        raise FileNotFoundError(msg)
    # The suffix stays: some writers go by it.
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    # Not every system opens a folder, nor syncs one.
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _encode(value: Any) -> Any:
    """What msgspec cannot write by itself: paths, and NumPy's and JAX's numbers."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    msg = f"{value!r} cannot be written as JSON."
    raise TypeError(msg)


def _refuse(constant: str) -> None:
    msg = f"{constant} is no number there"
    raise ValueError(msg)


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError


def describe(kind: Any) -> str:
    """What a field of this type takes, in words."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(describe, of)))
    if origin is Literal:
        return f"one of {', '.join(map(repr, of))}"
    if origin is tuple:
        count = "" if of[-1] is Ellipsis else f"of {len(of)} "
        return f"a list {count}with {describe(of[0])} in each place"
    return _NAMES.get(kind, "an object")
