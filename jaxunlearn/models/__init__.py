"""Networks by name."""

import dataclasses
from typing import Any

import flax.linen as nn

from jaxunlearn.models.small import SmallCNN

_BY_NAME = {"smallcnn": SmallCNN}


def names() -> list[str]:
    """The networks that there are.

    >>> "smallcnn" in names()
    True
    """
    return sorted(_BY_NAME)


def create(name: str, *, num_classes: int, **options: Any) -> nn.Module:
    """A linen module that turns images `[n, h, w, c]` into logits `[n, num_classes]`.

    Args:
      name: one of `names()`.
      num_classes: how many logits.
      **options: the module's other fields, such as `width`.

    Raises:
      TypeError: the module has no such field.
      ValueError: the name is unknown, or `num_classes` is not positive.

    >>> create("smallcnn", num_classes=10, width=8).width
    8
    """
    if name not in _BY_NAME:
        msg = f"There is no model {name!r}; there are: {', '.join(names())}."
        raise ValueError(msg)
    if num_classes < 1:
        msg = f"num_classes must be at least 1; it is {num_classes}."
        raise ValueError(msg)
    module = _BY_NAME[name]
    # Linen adds these two to the fields of every module.
    hidden = ("parent", "name", "num_classes")
    fields = [f.name for f in dataclasses.fields(module) if f.name not in hidden]
    for option in options:
        if option not in fields:
            msg = f"The model {name} has no option {option!r}; it has: {', '.join(fields)}."  # noqa: E501
            raise TypeError(msg)
    return module(num_classes=num_classes, **options)
