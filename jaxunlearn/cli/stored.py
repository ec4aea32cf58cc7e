"""Records that are shipped as JSON files: one folder of a kind, one file of a name."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, TypeVar

from jaxunlearn.checks import short
from jaxunlearn.cli.suggestions import nearest
from jaxunlearn.serialization import from_dict

Record = TypeVar("Record")


def names_in(folder: str) -> list[str]:
    """Of all records of a kind, in alphabetical order."""
    files = (resources.files("jaxunlearn.cli") / folder).iterdir()
    ends = (file.name for file in files)
    return sorted(end.removesuffix(".json") for end in ends if end.endswith(".json"))


def read_stored(record: type[Record], folder: str, name: str) -> Record:
    """The one of this name, which is one of `names_in(folder)`."""
    file = resources.files("jaxunlearn.cli") / folder / f"{name}.json"
    stored: Any = json.loads(file.read_text(encoding="utf-8"))
    return from_dict(record, stored)


def check_named(kind: str, name: str, known: Sequence[str]) -> None:
    """Refuse a name that is none of those known, and say which is near."""
    if name not in known:
        msg = f"There is no {kind} {short(name)}{nearest(name, known)} There are: {', '.join(known)}."  # noqa: E501
        raise ValueError(msg)


def listing(entries: Iterable[tuple[str, str, str]]) -> str:
    """Name, what it takes, and below what it is, of every record, in 80 columns."""
    return "\n".join(
        f"{name} ({takes})\n{textwrap.indent(textwrap.fill(about, 76), '    ')}"
        for name, takes, about in entries
    )


def minutes(known: float) -> str:
    """How long it takes, where somebody has measured that."""
    return f"{known:.0f} minutes" if known else "nobody has measured how long"
