"""What a request asks for: classes, their images, a method, a key; as records too."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxunlearn import methods
from jaxunlearn.checks import as_integer, short
from jaxunlearn.serialization import from_dict, to_dict
from jaxunlearn.tasks import Data, check_classes, check_data, class_numbers
from jaxunlearn.tasks.classes import elements, name_classes
from jaxunlearn.tasks.hashes import digest, image_digest

_INSTEAD = (
    "UNSC works from kept moments, CovarNav from images that it inverts, and MaskHead "
    "or Delete from the forget images alone"
)


def asked_classes(
    classes: Any,
    forgotten: tuple[int, ...],
    num_classes: int,
    class_names: tuple[str, ...] | None,
) -> tuple[int, ...]:
    """The classes of a request by number: some that are not forgotten, and not all."""
    asked = elements(classes, "classes")
    if any(isinstance(one, str) for one in asked):
        bare = [one if as_integer(one) is None else f"number:{one}" for one in asked]
        asked = class_numbers(bare, class_names, num_classes, name="classes")
    numbers = check_classes(asked, num_classes, name="classes")
    if not numbers:
        msg = "classes are empty: name at least one class to forget, such as [3]."
        raise ValueError(msg)
    again = sorted(set(numbers) & set(forgotten))
    if again:
        verb = "is" if len(again) == 1 else "are"
        msg = (
            f"classes ask for {name_classes(again)}, which {verb} forgotten already: "
            "leave out what earlier requests have asked for."
        )
        raise ValueError(msg)
    if len(numbers) + len(forgotten) == num_classes:
        msg = (
            f"classes name {name_classes(sorted(numbers))}, which is all that is left "
            f"of {num_classes}: leave at least one to retain."
        )
        raise ValueError(msg)
    return tuple(sorted(numbers))


def check_method(method: Any) -> None:
    """Refuse what is no method, and what reads images that a ledger does not keep."""
    if not callable(method) or isinstance(method, type):
        msg = f"method must be called as (classifier, task, key=key), such as UNSC(); it is {short(method)}."  # noqa: E501
        raise TypeError(msg)
    name = type(method).__name__
    if getattr(method, "from_scratch", False):
        msg = (
            f"{name} trains from scratch on the retained images, and a ledger keeps "
            f"moments of classes and no image: {_INSTEAD}."
        )
        raise ValueError(msg)
    by_moments = hasattr(method, "statistics_of_moments")
    if getattr(method, "reads_retained", False) and not by_moments:
        msg = (
            f"{name} as it is set reads images of the retained classes, and a ledger "
            f"keeps their moments and no image: {_INSTEAD}."
        )
        raise ValueError(msg)


def forget_data(
    asked: tuple[int, ...], forget: Data | Any, train: Data | None
) -> tuple[Data, dict[str, Any]]:
    """The images to forget, and what the log says of them.

    They are `forget`, or else the samples of the asked classes in `train`.
    """
    indices = None
    if forget is None and train is None:
        msg = (
            f"There are no images of {name_classes(asked)} to forget: give them as "
            "forget=Data(...), or open the ledger with train=..."
        )
        raise ValueError(msg)
    if forget is None:
        rows = np.flatnonzero(np.isin(train.labels, asked))
        forget, indices, name = train.take(rows), digest(rows), "train"
    else:
        check_data("forget", forget)
        name = "forget"
    present = set(forget.labels.tolist())
    absent, strangers = sorted(set(asked) - present), sorted(present - set(asked))
    if absent:
        msg = f"{name} holds no sample of {name_classes(absent)}, which classes ask to forget."  # noqa: E501
        raise ValueError(msg)
    if strangers:
        msg = (
            f"forget holds samples of {name_classes(strangers)}, which classes do not "
            "ask to forget: take them out, or name these classes."
        )
        raise ValueError(msg)
    hashes = {"indices_sha256": indices, "images_sha256": image_digest(forget)}
    return forget, {"count": len(forget), **hashes}


def method_record(method: Any, tuned: dict[str, Any]) -> dict[str, Any]:
    """Name and all settings; of a method from elsewhere what can be told."""
    kind, settings = type(method), {}
    names = {cls: name for name, cls in methods.by_name.items()}
    own = getattr(method, "__qualname__", kind.__qualname__)
    if dataclasses.is_dataclass(method):
        fields = {field.name for field in dataclasses.fields(method)}
        chosen = {name: value for name, value in tuned.items() if name in fields}
        method = dataclasses.replace(method, **chosen)
        settings = {name: _told(getattr(method, name)) for name in sorted(fields)}
    return {"name": names.get(kind, own), "settings": settings}


def method_of(record: dict[str, Any], entry: int) -> Any:
    """The method that a record is of.

    Raises:
      ValueError: it is none of this library's.
    """
    name = record["name"]
    if name not in methods.by_name:
        msg = (
            f"Entry {entry} was served by {short(name)}, which is none of "
            "methods.by_name, so that nothing says how to call it again: replay knows "
            "the library's own methods."
        )
        raise ValueError(msg)
    return from_dict(methods.by_name[name](), record["settings"])


def key_record(key: Array) -> dict[str, Any]:
    """A random key by its kind and data."""
    data = np.asarray(jax.random.key_data(key)).tolist()
    return {"kind": str(jax.random.key_impl(key)), "data": data}


def key_of(record: dict[str, Any]) -> Array:
    """The way back."""
    data = jnp.asarray(record["data"], jnp.uint32)
    return jax.random.wrap_key_data(data, impl=record["kind"])


def _told(value: Any) -> Any:
    """A setting as JSON, or in words where it is none of JSON's."""
    try:
        return to_dict(value)
    except (TypeError, ValueError, RecursionError):
        return short(value)
