"""What is to be forgotten: labelled images, and the request made on them."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxunlearn.checks import as_integer, check_count, check_finite, check_labels, short


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Labelled images.

    Attributes:
      images: `[n, h, w, c]`, uint8 or finite floats; kept where they are, on the host
        or on a device.
      labels: `[n]`, class numbers from 0; kept on the host as an int32 NumPy array.
      class_names: what class 0, 1, ... is called, a tuple of strings, or None.

    Raises:
      TypeError: images are neither uint8 nor floating point, labels are not integers,
        class names are not strings.
      ValueError: ranks or lengths are wrong, a label is negative or has no name, two
        classes have one name, a pixel is not finite.

    >>> len(Data(np.zeros((2, 8, 8, 1), np.uint8), [3, 5]))
    2
    """

    images: Any
    labels: Any
    class_names: Any = None

    def __post_init__(self):
        images = self.images
        images = images if isinstance(images, Array) else np.asarray(images)
        _check_pixels(images)
        labels = check_labels("labels", self.labels, images.shape[0])
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int32))
        if self.class_names is not None:
            names = _checked_names(self.class_names, labels)
            object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A request to forget.

    Attributes:
      forget: the samples to forget.
      retain: samples to keep, or None where none are left.
      forget_classes: the classes to forget, a tuple of integers: `forget` holds samples
        of these and `retain` none. `()` is sample-wise forgetting, where both may hold
        samples of any class.
      num_classes: how many classes the classifier tells apart.
      train: `(data, key) -> Classifier`, for methods that train from scratch.

    Raises:
      TypeError: a forget class is not an integer.
      ValueError: the forget set is empty; a class does not exist, is given twice or is
        in the wrong set; no class is left; the images of the two sets differ in shape.

    >>> images = np.zeros((2, 8, 8, 1), np.uint8)
    >>> Task(Data(images, [3, 3]), forget_classes=[3], num_classes=10).forget_classes
    (3,)
    """

    forget: Data
    retain: Data | None = None
    forget_classes: Any = ()
    _: dataclasses.KW_ONLY
    num_classes: int
    train: Callable[..., Any] | None = None

    def __post_init__(self):
        classes = check_classes(self.forget_classes, self.num_classes)
        object.__setattr__(self, "forget_classes", classes)
        if len(self.forget) == 0:
            msg = "The forget set is empty: give at least one sample to forget."
            raise ValueError(msg)
        self._check_labels("forget", self.forget)
        strangers = sorted(set(self.forget.labels.tolist()) - set(classes))
        if classes and strangers:
            msg = (
                f"The forget set holds samples of {_name(strangers)}, which "
                f"forget_classes {list(classes)} does not list: add them to it, take "
                "those samples out, or forget sample-wise with forget_classes=()."
            )
            raise ValueError(msg)
        if self.retain is not None:
            self._check_retain(self.retain)

    def _check_labels(self, name, data):
        name, hint = f"labels of the {name} set", "num_classes says how many there are."
        check_labels(name, data.labels, len(data), self.num_classes, hint)

    def _check_retain(self, retain):
        self._check_labels("retain", retain)
        forgotten = sorted(set(retain.labels.tolist()) & set(self.forget_classes))
        if forgotten:
            msg = (
                f"The retain set holds samples of {_name(forgotten)}, which is to be "
                "forgotten: split_by_class(data, forget_classes) takes them apart."
            )
            raise ValueError(msg)
        shapes = self.forget.images.shape[1:], retain.images.shape[1:]
        if shapes[0] != shapes[1]:
            msg = (
                f"Images of the forget set have shape {shapes[0]} and those of the "
                f"retain set {shapes[1]}: they must agree."
            )
            raise ValueError(msg)


def split_by_class(data: Data, forget_classes: Iterable) -> tuple[Data, Data]:
    """Split into the samples of the forget classes and all others, order kept.

    Returns:
      `(forget, retain)`.

    Raises:
      TypeError: a forget class is not an integer.
      ValueError: a forget class does not occur in the labels, or every class is one.

    >>> data = Data(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 0])
    >>> [len(part) for part in split_by_class(data, [1])]
    [1, 2]
    """
    present = np.unique(data.labels).tolist()
    classes = _as_integers(forget_classes, "forget_classes")
    check_leaves_some("forget_classes", classes, present)
    chosen = np.isin(data.labels, classes)
    forget, retain = (
        Data(data.images[part], data.labels[part], data.class_names)
        for part in (chosen, ~chosen)
    )
    return forget, retain


def check_leaves_some(
    name: str, classes: Sequence[int], present: Sequence[int]
) -> None:
    """Refuse classes of which there are no samples, none of them, or all of them."""
    absent = sorted(set(classes) - set(present))
    if not classes:
        msg = f"{name} is empty: name at least one class to forget."
        raise ValueError(msg)
    if absent:
        msg = (
            f"No sample of the data belongs to {_name(absent)}, named in {name}; its "
            f"labels are {list(present)}."
        )
        raise ValueError(msg)
    if set(classes) == set(present):
        msg = (
            f"{name} names every class of the data, {list(present)}: leave at least "
            "one to retain."
        )
        raise ValueError(msg)


def check_classes(
    classes: Any, num_classes: Any, *, name: str = "forget_classes"
) -> tuple[int, ...]:
    """The classes as integers, after checking that they exist and leave one over."""
    num_classes = check_count("num_classes", num_classes)
    classes = _as_integers(classes, name)
    for c in classes:
        if not 0 <= c < num_classes:
            msg = (
                f"{name} names class {c}, which does not exist: the classes are 0 to "
                f"{num_classes - 1}."
            )
            raise ValueError(msg)
    if len(set(classes)) < len(classes):
        msg = f"{name} must name each class once; it is {list(classes)}."
        raise ValueError(msg)
    if len(classes) == num_classes:
        msg = f"{name} names all {num_classes} classes: leave at least one out."
        raise ValueError(msg)
    return classes


def class_numbers(
    requested: Any,
    class_names: Sequence[str] | None,
    num_classes: int | None = None,
    *,
    name: str = "forget_classes",
) -> tuple[int, ...]:
    """Class numbers of what a person asks for: numbers, also as text, and names.

    `number:4` and `name:4` say which of the two is meant. They are needed where a class
    is called by a number that is not its own, as those of the folders 10, 20 and 30.

    Raises:
      TypeError: `requested` is no sequence, or holds other than integers and strings.
      ValueError: there is no such class, one is named twice, or a bare number could be
        either of two.

    >>> class_numbers(["bee", 0], ["ant", "bee"])
    (1, 0)
    >>> class_numbers(["name:30", "number:0"], ["10", "20", "30"])
    (2, 0)
    """
    names = list(class_names or ())
    count = num_classes or len(names) or None
    numbers = [
        _class_number(asked, names, count, name) for asked in _elements(requested, name)
    ]
    for number in numbers:
        if numbers.count(number) > 1:
            msg = f"{name} names {_called(number, names)} twice: {short(requested)}."
            raise ValueError(msg)
    return tuple(numbers)


def _class_number(asked, names, count, name):
    """The number of one class."""
    kind, colon, text = str(asked).partition(":")
    if as_integer(asked) is None and not isinstance(asked, str):
        msg = (
            f"{name} must hold class numbers or names; {short(asked)} is a "
            f"{type(asked).__name__}."
        )
        raise TypeError(msg)
    if not colon or kind not in ("name", "number"):
        kind, text = "", str(asked).strip()
    number = int(text) if re.fullmatch(r"-?\d{1,18}", text) else None
    strangers = [n for i, n in enumerate(names) if n.isdecimal() and int(n) != i]
    if not kind and number is not None and strangers:
        readings = [
            f"number:{text}, {_called(number, names)}"
            if 0 <= number < len(names)
            else f"number:{text}, of which there is none",
            f"name:{text}, {_called(names.index(text), names)}"
            if text in names
            else f"name:{text}, of which there is none",
        ]
        msg = (
            f"{text} in {name} has two readings, since there are classes called "
            f"{_listed(strangers)} that do not have these numbers: write "
            f"{' or '.join(readings)}."
        )
        raise ValueError(msg)
    if kind != "name" and number is not None:
        if number < 0 or (count is not None and number >= count):
            known = "from 0 on" if count is None else f"0 to {count - 1}"
            msg = (
                f"{name} names class {number}, which does not exist: the classes are "
                f"{known}."
            )
            raise ValueError(msg)
        return number
    if kind != "number" and text in names:
        return names.index(text)
    close = difflib.get_close_matches(text, names, 1)
    known = f"the classes are {_listed(names)}" if names else "they have numbers alone"
    msg = (
        f"{name} asks for {short(asked)}, and there is no such class: {known}."
        f"{f' Is {close[0]!r} meant?' if close else ''}"
    )
    raise ValueError(msg)


def _called(number, names):
    """A class by its number, and by its name where it has one."""
    return f"class {number}" + (f" ({names[number]!r})" if number < len(names) else "")


def _listed(items):
    """At most a dozen of them."""
    more = f" and {len(items) - 12} more" if len(items) > 12 else ""
    return ", ".join(str(item)[:40] for item in items[:12]) + more


def _elements(classes, name):
    """The elements of a sequence that is no string."""
    try:
        if not isinstance(classes, str | bytes):
            return list(classes)
    except TypeError:
        pass
    msg = f"{name} must be a sequence of class numbers, such as [3]; it is {short(classes)}."  # noqa: E501
    raise TypeError(msg)


def _as_integers(classes, name):
    numbers = []
    for c in _elements(classes, name):
        number = as_integer(c)
        if number is None:
            msg = f"{name} must hold integers; {short(c)} is a {type(c).__name__}."
            raise TypeError(msg)
        numbers.append(number)
    return tuple(numbers)


def _checked_names(names, labels):
    names = (names,) if isinstance(names, str) else tuple(names)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        msg = (
            f"class_names must be strings; {wrong[0]!r} is a {type(wrong[0]).__name__}."  # noqa: E501
        )
        raise TypeError(msg)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"class_names must name each class once; {twice!r} is there twice."
        raise ValueError(msg)
    highest = int(labels.max(initial=-1))
    if highest >= len(names):
        msg = (
            f"class_names names {len(names)} classes, and the labels go up to "
            f"{highest}: give a name for each class from 0 to {highest}."
        )
        raise ValueError(msg)
    return names


def _check_pixels(images):
    if images.ndim != 4:
        msg = f"images must be [n, h, w, c]; their shape is {images.shape}."
        raise ValueError(msg)
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        msg = f"images must be uint8 or floating point; they are {images.dtype}."
        raise TypeError(msg)
    check_finite(images)


def _name(classes):
    noun = "class" if len(classes) == 1 else "classes"
    return f"{noun} {', '.join(map(str, classes))}"
