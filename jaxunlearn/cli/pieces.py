"""Files of a folder, and records of how they were made, that are checked when read."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxunlearn import parallel
from jaxunlearn.cli.processes import is_first
from jaxunlearn.serialization import checksum, read_json, to_dict, to_json, write_json

_log = logging.getLogger(__name__)


class Pieces:
    """What is made piece by piece in a folder, and not again once it is there.

    Attributes:
      work: the folder.
    """

    def __init__(self, work: Path):
        self.work, self._written = work, []

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Let process 0 call `write(path)` for a file of the folder."""
        path = self.work / name
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            self._written.append(name)
        parallel.wait_for_all(f"{name} is written")

    def write_json(self, name: str, value: Any) -> None:
        """Write a record, all or nothing."""
        self.write(name, lambda path: write_json(path, value))

    def piece(self, name: str, make: Callable[[], Any]) -> Any:
        """The record that `make` returns, or has returned before it was interrupted.

        The files that `make` writes belong to it, and it is made again where one of
        them, or the record's own file, is not what was written.
        """
        stored = self.intact(name)
        parallel.wait_for_all(f"{name} is checked")
        if stored is None:
            self._written = []
            stored = {"record": to_dict(make())}
            stored["files"] = {f: checksum(self.work / f) for f in self._written}
            self.write_json(name, stored | {"sha256": _digest(stored)})
        return stored["record"]

    def intact(self, name: str) -> dict[str, Any] | None:
        """A piece that is there and is what was written; says if it is not."""
        path = self.work / name
        if not path.exists():
            return None
        try:
            stored = read_json(path)
            wrong = [] if stored.pop("sha256", "") == _digest(stored) else [name]
            for file, written in () if wrong else stored["files"].items():
                there = self.work / file
                if not there.is_file() or checksum(there) != written:
                    wrong.append(file)
        except ValueError:
            wrong = [name]
        if wrong and is_first():
            sentence = "%s in %s is damaged or missing: it is made again."
            _log.warning(sentence, " and ".join(wrong), self.work)
        return None if wrong else stored


def _digest(value: Any) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()
