"""The folder of a ledger: whole files, named by one small file that is written last."""

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.ledger.entries import Entry, hash_of, read_entries
from jaxunlearn.locking import Lock
from jaxunlearn.serialization import (
    atomic_write,
    checksum,
    from_dict,
    read_json,
    to_dict,
    write_json,
)

HEAD, LOG = "ledger.json", "log.jsonl"
_FORMAT = 1
# All that a ledger writes, and the temporary names that a killed one leaves.
_OWN = ("moments-*", "parameters-*", ".moments-*", ".parameters-*", ".ledger-*")
_OWN = (*_OWN, ".log-*")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A file, the hash of its content, and the entry of the log that wrote it."""

    file: str
    sha256: str
    entry: int


@dataclasses.dataclass(frozen=True)
class Standing:
    """A request that was neither undone nor committed, and the parameters after it."""

    classes: tuple[int, ...]
    parameters: Stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What holds now: which files count, and how far the log goes.

    Attributes:
      moments: of every class but those of `committed`.
      base: the parameters that requests started from, at first or at the last commit.
      requests: those that stand, in their order.
      committed: classes that were forgotten for good.
      entries: how many lines of the log count.
      last: SHA-256 of the last of them.
      format: of the folder.
    """

    moments: Stored
    base: Stored
    requests: tuple[Standing, ...] = ()
    committed: tuple[int, ...] = ()
    entries: int = 0
    last: str = ""
    format: int = _FORMAT

    @property
    def current(self) -> Stored:
        """The parameters that hold."""
        return self.requests[-1].parameters if self.requests else self.base

    @property
    def forgotten(self) -> tuple[int, ...]:
        """All classes that are forgotten, in ascending order."""
        standing = (c for request in self.requests for c in request.classes)
        return tuple(sorted({*self.committed, *standing}))

    @property
    def files(self) -> tuple[Stored, ...]:
        """The files that count."""
        return (self.moments, self.base, *(r.parameters for r in self.requests))


class Store:
    """Reads and writes the folder. New files come first, `ledger.json` at the end.

    A process that is killed in between leaves what was there before, and files that no
    `ledger.json` names: they are ignored, and removed by the next write.
    """

    def __init__(self, folder: Path):
        self.folder, self.lock = folder, Lock(folder)

    @property
    def is_there(self) -> bool:
        """Whether there is a ledger."""
        return (self.folder / HEAD).is_file()

    def check_free(self) -> None:
        """Refuse a place where a new ledger would lie among other files."""
        if self.folder.exists() and not self.folder.is_dir():
            msg = f"{self.folder} is a file: give the folder of a ledger, or a new one."
            raise ValueError(msg)
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        others = sorted(p.name for p in there if p.name != LOG and not _is_own(p.name))
        if others:
            msg = (
                f"{self.folder} holds no ledger, and other files ({others[0][:80]}): "
                "give the folder of a ledger, or a new one."
            )
            raise ValueError(msg)

    def path(self, stored: Stored) -> Path:
        """Where a file is."""
        return self.folder / stored.file

    def read(self) -> tuple[Head, tuple[Entry, ...]]:
        """What holds and the log, after checking every hash."""
        head = self.read_head()
        for stored in head.files:
            path = self.path(stored)
            if not path.is_file():
                msg = (
                    f"{path} is missing: restore the folder of the ledger from a copy."  # noqa: E501
                )
                raise ValueError(msg)
            if checksum(path) != stored.sha256:
                raise ValueError(_damaged(path))
        log = self.folder / LOG
        if not log.is_file():
            msg = f"{log} is missing: restore the folder of the ledger from a copy."
            raise ValueError(msg)
        try:
            text = log.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(_damaged(log)) from error
        return head, read_entries(text, head.entries, head.last, str(log))

    def read_head(self) -> Head:
        """What holds, after checking the hash in `ledger.json`."""
        path = self.folder / HEAD
        stored = read_json(path)
        if stored.get("format") not in (None, _FORMAT):
            msg = f"{path} is of format {stored['format']!r}, and this version of jaxunlearn reads format {_FORMAT}."  # noqa: E501
            raise ValueError(msg)
        if stored.pop("sha256", None) != _sum_of(stored):
            raise ValueError(_damaged(path))
        return from_dict(Head, stored)

    def stored(self, path: Path, entry: int) -> Stored:
        """The record of a file that was written."""
        return Stored(path.name, checksum(path), entry)

    def write(self, head: Head, entry: Entry) -> Head:
        """An entry and then what holds, once their files are there; then clean up.

        Returns what holds, which now knows of the entry.
        """
        log, line = self.folder / LOG, entry.line
        text = log.read_text(encoding="utf-8") if entry.number else ""
        # What stands after these lines a killed event has left.
        lines = [*text.splitlines()[: entry.number], line]
        with atomic_write(log) as temporary:
            temporary.write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")
        known = {"entries": len(lines), "last": hash_of(line)}
        head = dataclasses.replace(head, **known)
        content = to_dict(head)
        write_json(self.folder / HEAD, content | {"sha256": _sum_of(content)})
        self.clean(head)
        return head

    def unnamed(self, head: Head) -> list[Path]:
        """Files of a ledger that do not count any more."""
        named = {stored.file for stored in head.files}
        there = self.folder.iterdir()
        return sorted(p for p in there if _is_own(p.name) and p.name not in named)

    def clean(self, head: Head) -> None:
        """Remove what does not count any more."""
        for path in self.unnamed(head):
            path.unlink(missing_ok=True)


def _is_own(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _OWN)


def _sum_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _damaged(path: Path) -> str:
    return (
        f"{path} is damaged: its SHA-256 is not the one that was stored. Restore the "
        "folder of the ledger from a copy."
    )
