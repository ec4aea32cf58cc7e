"""Methods with some of their fields set otherwise, as `--methods` names them."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxunlearn import methods
from jaxunlearn.checks import check_choice, check_positive
from jaxunlearn.cli.flags import convert, flags_of
from jaxunlearn.cli.settings import MethodSettings


class Variant(NamedTuple):
    """A row of a comparison.

    Attributes:
      title: as it was asked for, such as "unsc:targets=random".
      name: of the method.
      method: as it is set.
      grid: values of its tuned field to choose from; () where that is set by hand.
      damping: of `project_change`, by which its change is corrected; None: it is not.
      in_turn: "asked" or "reversed" where several classes are requests of their own,
        one after another; "" where they are one.
    """

    title: str
    name: str
    method: Any
    grid: tuple[float, ...]
    damping: float | None = None
    in_turn: str = ""

    def order(self, classes: Sequence[int]) -> tuple[int, ...] | None:
        """In which they are forgotten one after another; None: all at once."""
        if not self.in_turn or len(classes) < 2:
            return None
        return tuple(classes[::-1] if self.in_turn == "reversed" else classes)


def variants(settings: MethodSettings, titles: Sequence[str]) -> list[Variant]:
    """What these titles stand for, each another one.

    METHOD, METHOD:FIELD=VALUE,FIELD=VALUE, and either with +projected,
    +projected=DAMPING, +in-turn or +in-turn=reversed at its end, or both.

    Raises:
      ValueError: there is no such method or field, a value does not fit, or two titles
        are the same.

    >>> settings = MethodSettings()
    >>> (variant,) = variants(settings, ["unsc:targets=random,learning-rate=0.1"])
    >>> variant.method.targets, variant.grid
    ('random', ())
    """
    if not titles or len({*titles}) < len(titles):
        msg = f"--methods takes at least one method, each once; it is {list(titles)}."
        raise ValueError(msg)
    return [_variant(settings, title) for title in titles]


def _variant(settings: MethodSettings, title: str) -> Variant:
    own, *ends = re.split(r"\+(?=projected|in-turn)", title)
    said = dict(_end(title, end) for end in ends)
    name, _, rest = own.partition(":")
    check_choice("--methods", name, methods.by_name)
    method, grid = settings.settings_of(name), settings.grid_of(name)
    known = {flag.dest: flag for flag in flags_of(method)}
    words = {}
    for setting in filter(None, rest.split(",")):
        field, equals, word = setting.partition("=")
        field = field.strip().replace("-", "_")
        if not equals or field not in known:
            msg = (
                f"--methods {title}: {setting!r} is no FIELD=VALUE of {name}, whose "
                f"fields are {', '.join(known) or 'none'}."
            )
            raise ValueError(msg)
        words[field] = word
    try:
        values = {field: convert(known[field], words[field]) for field in words}
        method = dataclasses.replace(method, **values)
    except (ValueError, TypeError) as error:
        msg = f"--methods {title}: {error}"
        raise ValueError(msg) from error
    by_hand = getattr(method, "tuned", None) in values
    return Variant(title, name, method, () if by_hand else grid, **said)


def _end(title: str, end: str) -> tuple[str, Any]:
    """What stands behind a method, as a field of a variant and its value."""
    name, equals, word = end.partition("=")
    if name not in _ENDS:
        msg = f"--methods {title}: +{end} is none of +projected and +in-turn."
        raise ValueError(msg)
    field, usual, read = _ENDS[name]
    return field, read(title, word) if equals else usual


def _order(title: str, word: str) -> str:
    check_choice(f"--methods {title}: +in-turn", word, ("asked", "reversed"))
    return word


def _damping(title: str, word: str) -> float:
    try:
        number = float(word)
        check_positive("damping", number)
    except ValueError as error:
        msg = f"--methods {title}: +projected takes a positive damping, as in +projected=0.001; it is {word!r}."  # noqa: E501
        raise ValueError(msg) from error
    return number


# What may stand behind a method: the field, its value without a word, and of one. A
# change that is projected without a damping has that of the ridge.
_ENDS = {
    "projected": ("damping", 1e-3, _damping),
    "in-turn": ("in_turn", "asked", _order),
}
