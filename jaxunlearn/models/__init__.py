"""Networks by name."""

import dataclasses
import json
import typing
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn

from jaxunlearn.checks import LARGEST, check_choice, check_count, short
from jaxunlearn.models import torch_weights as torch_weights
from jaxunlearn.models.alexnet import AlexNet
from jaxunlearn.models.allcnn import AllCNN
from jaxunlearn.models.efficientnet import EfficientNet
from jaxunlearn.models.lenet import LeNet5
from jaxunlearn.models.resnet import ResNet
from jaxunlearn.models.shapes import check_memory
from jaxunlearn.models.small import SmallCNN
from jaxunlearn.models.torch_maps import fitting_sides
from jaxunlearn.models.vgg import VGG
from jaxunlearn.models.vit import ViT

# The module, and what the name says of its fields.
_BY_NAME: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "alexnet": (AlexNet, {}),
    "allcnn": (AllCNN, {}),
    "efficientnet": (EfficientNet, {}),
    "lenet5": (LeNet5, {}),
    "resnet18": (ResNet, {"blocks": (2, 2, 2, 2), "bottleneck": False}),
    "resnet34": (ResNet, {"blocks": (3, 4, 6, 3), "bottleneck": False}),
    "resnet50": (ResNet, {"blocks": (3, 4, 6, 3), "bottleneck": True}),
    "smallcnn": (SmallCNN, {}),
    "vgg11": (VGG, {"convolutions": (1, 1, 2, 2, 2)}),
    "vgg16": (VGG, {"convolutions": (2, 2, 3, 3, 3)}),
    "vit": (ViT, {}),
}

_MANY = 10_000  # classes


def names() -> list[str]:
    """The networks that there are.

    >>> "resnet18" in names()
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
      TypeError: the module has no such field, or the value is not of its type.
      ValueError: the name is unknown, `num_classes` is not positive, a value is not one
        of those that a field may have, or the parameters are larger than the memory.

    >>> create("smallcnn", num_classes=10, width=8).width
    8
    """
    kinds = _options(name)
    check_count("num_classes", num_classes)
    for option, value in options.items():
        _check_option(name, kinds, option, value)
    kind, fixed = _BY_NAME[name]
    module = kind(num_classes=num_classes, **fixed, **options)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    # Tracing takes a while, and the usual networks fit.
    if num_classes > _MANY or any(
        isinstance(value, int | float) and value > defaults[option]
        for option, value in options.items()
    ):
        check_memory(module, (*fitting_sides(module, {}), 3))
    return module


def parse_options(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Options for `create` from texts such as "width=0.5".

    Raises:
      TypeError: the network has no such option, or the value is not of its type.
      ValueError: the name is unknown, or a text is not NAME=VALUE.

    >>> parse_options("vit", ["size=small", "patch=8"])
    {'size': 'small', 'patch': 8}
    """
    kinds = _options(name)
    options: dict[str, Any] = {}
    for text in texts:
        option, equals, value = text.partition("=")
        if not equals or not option or option in options:
            msg = f"An option is NAME=VALUE, each name once; {short(text)} is not."
            raise ValueError(msg)
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value
        _check_option(name, kinds, option, parsed)
        options[option] = parsed
    return options


def recognise(module: Any) -> dict[str, Any] | None:
    """What `create` made an equal module of, or None.

    >>> recognise(create("smallcnn", num_classes=10, width=8))
    {'model': 'smallcnn', 'num_classes': 10, 'options': {'width': 8}}
    """
    for name, (kind, fixed) in _BY_NAME.items():
        if type(module) is not kind or not fixed.items() <= vars(module).items():
            continue
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        values = {option: getattr(module, option) for option in _options(name)}
        options = {o: value for o, value in values.items() if value != defaults[o]}
        return {"model": name, "num_classes": module.num_classes, "options": options}
    return None


def _options(name: str) -> dict[str, Any]:
    """The types of the fields that `create` leaves open."""
    check_choice("The name of the model", name, names())
    module, fixed = _BY_NAME[name]
    # Linen adds the first two to the fields of every module.
    hidden = {"parent", "name", "num_classes", *fixed}
    kinds = {f.name: f.type for f in dataclasses.fields(module)}
    return {option: kind for option, kind in kinds.items() if option not in hidden}


def _check_option(name, kinds, option, value):
    """Sizes are positive, and a dropout rate is less than one."""
    if option not in kinds:
        there = ", ".join(kinds) or "none"
        msg = f"The model {name} has no option {short(option)}; it has: {there}."
        raise TypeError(msg)
    kind = kinds[option]
    if typing.get_origin(kind) is Literal:
        check_choice(f"{option} of the model {name}", value, typing.get_args(kind))
        return
    if type(value) is not kind and not (kind is float and type(value) is int):
        msg = f"{option} of the model {name} must be of type {kind.__name__}; it is {short(value)}."  # noqa: E501
        raise TypeError(msg)
    if option == "dropout":
        fits, wanted = 0 <= value < 1, "in [0, 1)"
    else:
        fits, wanted = kind is bool or 0 < value <= LARGEST, "positive, below 2**31"
    if not fits:
        msg = f"{option} of the model {name} must be {wanted}; it is {short(value)}."
        raise ValueError(msg)
