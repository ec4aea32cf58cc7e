"""The log of a ledger: one record an event, each with the hash of the one before."""

import dataclasses
import datetime
import hashlib
import json
from typing import Any, Literal

from jaxunlearn.serialization import from_dict, parse_json, to_dict

Kind = Literal["open", "forget", "undo", "commit", "replay", "revival"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What a ledger says of one event.

    Attributes:
      number: from 0, in the order of the events.
      kind: "open", "forget", "undo", "commit", "replay" or "revival".
      time: of its end, in UTC.
      previous: SHA-256 of the line before it in the log, without the line's end; "" of
        the first.
      classes: those that it is about.
      forgotten: all that are forgotten after it.
      about: the entry that was undone.
      samples: of a request its images: "count", "indices_sha256" (of their indices in
        the training data, one a line in ascending order; None where only the images
        were given) and "images_sha256".
      method: its "name" on the command line (of others that of their class) and
        "settings", with the chosen value of what was tuned.
      key: the random key, as "kind" and "data".
      certificate: the `jaxunlearn.drift` on the inputs of retained classes by layer,
        "now" (of this request) and "accumulated" (since the entry that "since" names);
        "outside" it what moved without a moment, and a "warning" that says so.
      test: the `Evaluation` on test data, where some were given.
      seconds: wall time by stage.
      samples_read: how many samples of "forget" and "retain", repeats included.
      parameters: SHA-256 of the file of the parameters that hold after it.
      replay: see `Replay`.
      revival: see `Revived`, by class.
      deleted: files that a commit removed.
      versions: of Python and the packages that results depend on.
    """

    number: int
    kind: Kind
    time: str
    previous: str
    classes: tuple[int, ...] = ()
    forgotten: tuple[int, ...] = ()
    about: int | None = None
    samples: dict[str, Any] | None = None
    method: dict[str, Any] | None = None
    key: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    samples_read: dict[str, int] = dataclasses.field(default_factory=dict)
    parameters: str = ""
    replay: dict[str, Any] | None = None
    revival: dict[str, Any] | None = None
    deleted: tuple[str, ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def line(self) -> str:
        """As it stands in the log."""
        return json.dumps(to_dict(self), allow_nan=False)


def hash_of(line: str) -> str:
    """SHA-256 of a line of the log."""
    return hashlib.sha256(line.encode()).hexdigest()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_entries(text: str, count: int, last: str, where: str) -> tuple[Entry, ...]:
    """The first `count` entries of a log, after checking that none was changed.

    What stands after them a killed event has left.

    Raises:
      ValueError: a line is missing or damaged, or does not follow from the one before;
        or the last is not the one of this hash.
    """
    lines, previous = text.splitlines()[:count], ""
    entries = []
    for number, line in enumerate(lines):
        entry = from_dict(Entry, parse_json(line, f"Line {number + 1} of {where}"))
        if (entry.number, entry.previous) != (number, previous):
            msg = (
                f"Line {number + 1} of {where} does not follow from the line before: "
                "one of the two was changed. Restore the folder from a copy."
            )
            raise ValueError(msg)
        entries.append(entry)
        previous = hash_of(line)
    if len(entries) < count or previous != last:
        msg = (
            f"{where} is not the log that ledger.json knows: it has {len(lines)} of "
            f"{count} lines, and the last was changed or is missing. Restore the "
            "folder from a copy."
        )
        raise ValueError(msg)
    return tuple(entries)
