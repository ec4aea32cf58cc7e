"""Classes by number and by name, and what may be asked of them."""

import difflib
import itertools
import re
from collections.abc import Sequence
from typing import Any

from jaxunlearn.checks import as_integer, check_count, short


def check_classes(
    classes: Any, num_classes: Any, *, name: str = "forget_classes"
) -> tuple[int, ...]:
    """The classes as integers, after checking that they exist and leave one over."""
    num_classes = check_count("num_classes", num_classes)
    classes = as_integers(classes, name)
    for c in classes:
        if not 0 <= c < num_classes:
            msg = (
                f"{name} names class {short(c)}, which does not exist: the classes are "
                f"0 to {num_classes - 1}."
            )
            raise ValueError(msg)
    _check_distinct(name, classes)
    if len(classes) == num_classes:
        msg = f"{name} names all {num_classes} classes: leave at least one out."
        raise ValueError(msg)
    return classes


def check_leaves_some(
    name: str, classes: Sequence[int], present: Sequence[int]
) -> None:
    """Refuse classes of which there are no samples, none of them, or all of them."""
    absent = sorted(set(classes) - set(present))
    if not classes:
        msg = f"{name} is empty: name at least one class to forget."
        raise ValueError(msg)
    _check_distinct(name, classes)
    if absent:
        msg = (
            f"No sample of the data belongs to {name_classes(absent)}, named in "
            f"{name}; its labels are {short(list(present))}."
        )
        raise ValueError(msg)
    if set(classes) == set(present):
        msg = (
            f"{name} names every class of the data, {short(list(present))}: leave at "
            "least one to retain."
        )
        raise ValueError(msg)


def class_numbers(
    requested: Any,
    class_names: Any,
    num_classes: Any = None,
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
    names = [] if class_names is None else list(check_names(class_names))
    count = len(names) or None
    if num_classes is not None:
        count = check_count("num_classes", num_classes)
    numbers = [
        _class_number(asked, names, count, name) for asked in elements(requested, name)
    ]
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        msg = f"{name} names {_called(twice, names)} twice: {short(requested)}."
        raise ValueError(msg)
    return tuple(numbers)


def _class_number(asked, names, count, name):
    """The number of one class."""
    is_number = as_integer(asked) is not None
    if not is_number and not isinstance(asked, str):
        msg = (
            f"{name} must hold class numbers or names; {short(asked)} is a "
            f"{type(asked).__name__}."
        )
        raise TypeError(msg)
    whole = short(as_integer(asked)) if is_number else asked.strip()
    kind, _, text = whole.partition(":")
    if kind not in ("name", "number") or kind == whole:
        kind, text = "", whole
    number = int(text) if re.fullmatch(r"-?\d{1,18}", text) else None
    strangers = [n for i, n in enumerate(names) if n.isdecimal() and int(n) != i]
    if not kind and number is not None and strangers:
        none = "of which there is none"
        called = {n: _called(i, names) for i, n in enumerate(names)}
        numbered = dict(enumerate(called.values()))
        readings = [
            f"number:{text}, {numbered.get(number, none)}",
            f"name:{text}, {called.get(text, none)}",
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


def as_integers(classes: Any, name: str) -> tuple[int, ...]:
    """The elements of a sequence of integers."""
    numbers = []
    for c in elements(classes, name):
        number = as_integer(c)
        if number is None:
            msg = f"{name} must hold integers; {short(c)} is a {type(c).__name__}."
            raise TypeError(msg)
        numbers.append(number)
    return tuple(numbers)


def elements(
    given: Any, name: str, wanted: str = "class numbers, such as [3]"
) -> list[Any]:
    """The elements of a sequence that is no string."""
    try:
        several = None if isinstance(given, str | bytes) else iter(given)
    except TypeError:
        several = None
    if several is None:
        msg = f"{name} must be a sequence of {wanted}; it is {short(given)}."
        raise TypeError(msg)
    several = list(itertools.islice(several, _MOST + 1))
    if len(several) > _MOST:
        msg = f"{name} must have at most {_MOST} entries; {short(given)} has more."
        raise ValueError(msg)
    return several


# Far more classes than any data set has; range(10**9) would fill the memory.
_MOST = 2**20


def check_names(names: Any) -> tuple[str, ...]:
    """What classes are called: strings, each another one."""
    names = tuple(elements(names, "class_names", "strings, one for each class"))
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        what = f"{short(wrong[0])} is a {type(wrong[0]).__name__}"
        msg = f"class_names must be strings; {what}."
        raise TypeError(msg)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"class_names must name each class once; {short(twice)} is there twice."
        raise ValueError(msg)
    return names


def name_classes(classes: Sequence[int]) -> str:
    """At most a dozen of them, with the noun."""
    noun = "class" if len(classes) == 1 else "classes"
    return f"{noun} {_listed([short(c) for c in classes])}"


def _check_distinct(name, classes):
    if len(set(classes)) < len(classes):
        msg = f"{name} must name each class once; it is {short(list(classes))}."
        raise ValueError(msg)
