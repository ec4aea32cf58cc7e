"""Command-line flags made from dataclasses: their names, types, defaults, docstrings.

A field `learning_rate` of a nested record `unsc` is the flag `--unsc.learning-rate`.
What the docstring says of it under "Attributes:" is its help.
"""

import argparse
import dataclasses
import functools
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NoReturn

import msgspec

from jaxunlearn.checks import short
from jaxunlearn.cli.suggestions import unknown_flag
from jaxunlearn.serialization import describe

_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: ""}

# On, off, or as the command sees fit.
_SWITCHES = (bool, bool | None)


class Command:
    """A command: a frozen dataclass of flags, and `run`.

    A field may be `Annotated[type, "METAVAR"]`.
    """

    # Command lines that work as they stand.
    examples: ClassVar[tuple[str, ...]] = ()
    # The fields (dotted where nested) that --help shows, in this order, and --help-all
    # before all others. None: all of them.
    first: ClassVar[tuple[str, ...]] = ()
    # A field that may also be given as a word by itself; several, where it takes them.
    positional: ClassVar[str] = ""
    # Whether the programs that JAX compiles are kept for the next command.
    compiles: ClassVar[bool] = True

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> "Command | type[Command]":
        """What holds where no flag is given; it may depend on those that are."""
        del given
        return cls

    @classmethod
    def unused(cls, given: Mapping[str, Any]) -> Collection[str]:
        """Nested fields without effect next to these flags; --help-all omits them."""
        del given
        return ()

    @classmethod
    def from_flags(cls, given: Mapping[str, Any]) -> "Command":
        """The settings that flags ask for, nested as the fields are."""
        return _updated(cls.defaults(given), given)

    def check(self) -> None:
        """Refuse what can be refused before anything is read."""

    def run(self) -> None:
        """Do it."""
        raise NotImplementedError


def parse(name: str, command: type[Command], arguments: Sequence[str]) -> Command:
    """The settings that `arguments` ask for; exits with 0 after help."""
    flags = list(flags_of(command))
    parser = _parser(name, command, flags)
    known, unknown = parser.parse_known_args([_word(a) for a in arguments])
    texts = vars(known)
    asked = texts.pop("help", None)
    word = command.positional
    if word and word not in texts and unknown and unknown[0][:1] != "-":
        flag = next(flag for flag in flags if flag.dest == word)
        ends = (n for n, w in enumerate(unknown) if w[:1] == "-")
        count = next(ends, len(unknown)) if _items(flag.kind) else 1
        words, unknown = unknown[:count], unknown[count:]
        texts[word] = words if _items(flag.kind) else words[0]
    if unknown:
        ahead = sorted(flags, key=lambda flag: flag.dest not in command.first)
        raise ValueError(unknown_flag(name, unknown, [flag.name for flag in ahead]))
    given: dict[str, Any] = {}
    for flag in (flag for flag in flags if flag.dest in texts):
        inner = given
        for part in flag.path[:-1]:
            inner = inner.setdefault(part, {})
        inner[flag.path[-1]] = convert(flag, texts[flag.dest])
    if asked is not None:
        print(_help(name, command, given, everything=asked == "all"))
        raise SystemExit(0)
    needed = [f for f in flags if f.default is dataclasses.MISSING]
    if missing := [f"{f.name} {f.metavar}" for f in needed if f.dest not in texts]:
        msg = f"jaxunlearn {name} needs {', '.join(missing)}."
        raise ValueError(msg)
    return command.from_flags(given)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _, flag, reason = re.fullmatch(r"(argument (\S+): )?(.*)", message).groups()
        needs = "needs a value" if reason.startswith("expected") else "takes no value"
        msg = f"{flag} {needs}." if flag else f"{reason}."
        raise ValueError(msg)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        whole = {"break_on_hyphens": False, "break_long_words": False}
        return textwrap.wrap(text, width, **whole)

    def _format_args(self, action: argparse.Action, default_metavar: Any) -> str:
        return str(action.metavar or default_metavar)


class Flag(NamedTuple):
    """A flag: the field that it sets, its type, and what the help says of it."""

    path: tuple[str, ...]
    kind: Any
    metavar: str
    text: str
    default: Any

    @property
    def dest(self) -> str:
        """The field, with dots where it is nested."""
        return ".".join(self.path)

    @property
    def name(self) -> str:
        """As it is written."""
        return f"--{_hyphens(self.dest)}"

    @property
    def help(self) -> str:
        """What it is, and what holds without it where the text does not say."""
        value = self.default
        if value is None or value is False or value == ():
            return self.text
        if value is dataclasses.MISSING:
            return f"{self.text} (required)"
        several = value if isinstance(value, tuple) else (value,)
        shown = (f"{x:g}" if isinstance(x, float) else str(x) for x in several)
        if value is True:
            return f"turns off, which is on by default: {self.text}"
        return f"{self.text} (default: {' '.join(shown)})"


def flags_of(record: Any, path: tuple[str, ...] = ()) -> Iterator[Flag]:
    """Of a dataclass, or of an instance of it, whose values are the defaults."""
    cls = record if isinstance(record, type) else type(record)
    annotated = typing.get_type_hints(cls, include_extras=True)
    kinds, texts = typing.get_type_hints(cls), _documented(cls)
    for field in dataclasses.fields(cls):
        here, name = (*path, field.name), field.name
        default = getattr(record, name, dataclasses.MISSING)
        if dataclasses.is_dataclass(default):
            yield from flags_of(default, here)
        elif (metavar := _metavar(annotated[name])) is not None:
            yield Flag(here, kinds[name], metavar, texts.get(name, ""), default)


def _metavar(kind: Any) -> str | None:
    """What stands for one value in the help; None where no flag can give it."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return of[1]
    if origin in (types.UnionType, typing.Union):
        parts = [_metavar(k) for k in of if k is not types.NoneType]
        return None if None in parts else "|".join(dict.fromkeys(map(str, parts)))
    if origin is Literal:
        return "|".join(map(str, of))
    if origin is tuple:
        return _metavar(of[0])
    return _METAVARS.get(kind)


def _items(kind: Any) -> tuple[Any, ...]:
    """The types of a flag's values where it takes several, as `tuple` has them."""
    for k in (kind, *typing.get_args(kind)):
        if typing.get_origin(k) is tuple:
            return typing.get_args(k)
    return ()


def _parser(
    name: str, command: type[Command], flags: Iterable[Flag], **layout
) -> _Parser:
    """A parser of the flags; nested ones have a group of their own in its help."""
    width = min(shutil.get_terminal_size().columns, 100)
    word = command.positional and f" {command.positional.upper()}"
    examples = "\n  ".join(("examples:", *command.examples))
    parser = _Parser(
        usage=f"jaxunlearn {name}{word} [FLAGS]",
        description=f"{textwrap.fill(summary(command), width)}\n\n{examples}",
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=functools.partial(
            _Formatter, width=width, max_help_position=26
        ),
        **layout,
    )
    for flag, value in (("-h", "short"), ("--help", "short"), ("--help-all", "all")):
        hidden = {"help": argparse.SUPPRESS, "dest": "help"}
        parser.add_argument(flag, action="store_const", const=value, **hidden)
    groups: dict[str, Any] = {}
    for flag in flags:
        title = flag.path[0] if len(flag.path) > 1 else "flags"
        if title not in groups:
            of = getattr(command, title, None)
            text = textwrap.fill(summary(type(of)), width - 2) if of else None
            groups[title] = parser.add_argument_group(_hyphens(title), text)
        _add(groups[title], flag, width)
    return parser


def _add(group: Any, flag: Flag, width: int) -> None:
    text, metavar = flag.help.replace("%", "%%"), flag.metavar
    if flag.kind in _SWITCHES:
        off = (*flag.path[:-1], f"no-{flag.path[-1]}")
        for name, value in ((flag.path, True), (off, False)):
            group.add_argument(
                f"--{_hyphens('.'.join(name))}",
                action="store_const",
                const=value,
                dest=flag.dest,
                help=text if value is not bool(flag.default) else argparse.SUPPRESS,
            )
        return
    if len(flag.name) + len(metavar) + 5 > width:
        metavar, text = "CHOICE", f"{text} One of {metavar.replace('|', ', ')}."
    items = _items(flag.kind)
    given = {"metavar": metavar + " ..." * (Ellipsis in items), "help": text}
    group.add_argument(flag.name, dest=flag.dest, nargs="*" if items else None, **given)


def _help(
    name: str, command: type[Command], given: Mapping[str, Any], *, everything: bool
) -> str:
    """What people use first, or everything, with the defaults that hold."""
    every = {flag.dest: flag for flag in flags_of(command.defaults(given))}
    ahead = [every.pop(field) for field in command.first]
    unused = command.unused(given)
    others = [flag for flag in every.values() if flag.path[0] not in unused]
    if everything or not ahead:
        return _parser(name, command, [*ahead, *others]).format_help()
    epilog = f"All flags: jaxunlearn {name} --help-all"
    return _parser(name, command, ahead, epilog=epilog).format_help()


def convert(flag: Flag, words: Any) -> Any:
    """What a flag's words mean; commas part numbers and choices as blanks do."""
    optional = types.NoneType in typing.get_args(flag.kind)
    if flag.kind in _SWITCHES and not isinstance(words, str):
        return words
    if optional and words in ("None", ["None"]):
        return None
    items = _items(flag.kind)
    # Of `--flag=--` argparse makes an empty list.
    if not items and not (words and words.strip()):
        msg = f"{flag.name} needs a value; it is empty."
        raise ValueError(msg)
    if items and str not in (items[0], *typing.get_args(items[0])):
        words = " ".join(words).replace(",", " ").split()
    value = [w.strip() for w in words] if items else words.strip()
    element = items[0] if items else flag.kind
    if float in (element, *typing.get_args(element)):
        value = [_decimal(w) for w in value] if items else _decimal(value)
    try:
        return msgspec.convert(
            value, flag.kind, strict=False, dec_hook=lambda kind, word: kind(word)
        )
    except msgspec.ValidationError as error:
        wanted = f"must be {describe(flag.kind).removesuffix(' or null')}"
        if items:
            count = "" if Ellipsis in items else f"{len(items)} "
            wanted = f"takes {count}values, each {describe(items[0])}"
            value = " ".join(value)
        msg = f"{flag.name} {wanted}; it is {short(value)}."
        raise ValueError(msg) from error


def _updated(record: Any, given: Mapping[str, Any], where: str = "") -> Any:
    """A dataclass, or a copy of an instance of it, with the given values."""
    values = {
        name: _updated(getattr(record, name), value, f"{where}{name}.")
        if isinstance(value, dict)
        else value
        for name, value in given.items()
    }
    try:
        new = isinstance(record, type)
        return record(**values) if new else dataclasses.replace(record, **values)
    except ValueError as error:
        said = str(error).removeprefix(f"{type(record).__name__}.")
        msg = f"--{_hyphens(where[:-1])}: {said}" if where else said
        raise ValueError(msg) from error


def summary(cls: type) -> str:
    """The first paragraph of a class's docstring, on one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


@functools.cache
def _documented(cls: type) -> dict[str, str]:
    """What docstrings say of the fields of a class and those it inherits from."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        doc = inspect.cleandoc(base.__doc__ or "")
        section = re.search(r"^Attributes:\n((?: .*\n?|\n)+)", doc, re.MULTILINE)
        for name, text in re.findall(
            r"^  (\w+): (.*(?:\n    +.*)*)", section[1] if section else "", re.MULTILINE
        ):
            plain = text.replace("`", "").replace("None: ", "By default ")
            texts[name] = " ".join(plain.split())
    return texts


def _decimal(word: str) -> str:
    """`.1` as `0.1`, which is a number to msgspec."""
    return re.sub(r"^(-?)\.(?=\d)", r"\g<1>0.", word)


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def _word(argument: str) -> str:
    """`--learning_rate=x_y` as `--learning-rate=x_y`; a number never as a flag."""
    if re.match(r"-(\d|\.\d|inf)", argument):
        return f" {argument}"  # argparse takes -1e3 for a flag
    name, equals, value = argument.partition("=")
    return _hyphens(name) + equals + value if name.startswith("--") else argument
