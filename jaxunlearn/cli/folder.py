"""The folder that a command writes: what may be there, taking up, replacing, finishing.

Under several processes all see the same disk and decide alike; process 0 writes.
"""

import dataclasses
import fnmatch
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxunlearn import parallel
from jaxunlearn.cli.processes import is_first
from jaxunlearn.serialization import read_json, to_dict, write_json
from jaxunlearn.training.checkpoints import differences

_ELSEWHERE = "choose another folder with --out."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What a command leaves, and how it is recognised.

    Attributes:
      name: in sentences, such as "run".
      settings: files that may hold its settings, the one that is written first last.
      complete: files that are all there once it is finished; the first is of this kind
        alone.
      written: patterns of all other files and folders that it writes.
      unfinished: what goes once it is finished.
      foreign: a file of another kind whose settings lie in a file of the same name.
      beside: it is built in NAME.partial, which then takes the name: it is there
        complete or not at all. Else it grows in its place.
      deciding: (stored settings, whether it is finished) to those that must agree.
    """

    name: str
    settings: tuple[str, ...]
    complete: tuple[str, ...]
    written: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    foreign: str = ""
    beside: bool = False
    deciding: Callable[[dict[str, Any], bool], Mapping[str, Any]] = lambda s, _: s

    @property
    def patterns(self) -> tuple[str, ...]:
        """All that it writes, first what stands for the rest."""
        return (*reversed(self.complete), *self.written, *self.settings)

    @property
    def in_work(self) -> str:
        """What lies in the folder where it is made."""
        return f"unfinished {self.name}" if self.beside else self.name


class OutputFolder:
    """`with OutputFolder(place, settings, kind=..., resume=...) as folder`.

    The constructor decides and refuses, and writes nothing; `with` makes the folder.

    Attributes:
      place: where the result will be.
      work: where it is until then.
      resumed: whether something unfinished of the same settings is taken up.
      finished: whether everything is there already.

    Raises:
      ValueError: something else is there, or what is there must be neither taken up nor
        replaced, or is of other settings.
      OSError: the folder cannot be made.
    """

    def __init__(
        self,
        place: Path,
        settings: Mapping[str, Any],
        *,
        kind: Kind,
        resume: bool = False,
        overwrite: bool = False,
    ):
        self.place, self.kind = place, kind
        self._settings = to_dict(settings)
        self._resume, self._overwrite = resume, overwrite
        if kind.beside:
            self._check_place()
        self.work = partial_of(place) if kind.beside else place
        self.resumed = self._is_resumed()
        self.finished = self.resumed and self._is_complete()

    def __enter__(self) -> "OutputFolder":
        # Nobody changes anything before all have seen the same.
        parallel.wait_for_all("the folder is checked")
        if is_first():
            self._make()
        parallel.wait_for_all("the folder is made")
        return self

    def __exit__(self, kind, error, trace) -> None:
        resumable = self._resume or not self.kind.beside
        if error is not None and not resumable:
            shutil.rmtree(self.work, ignore_errors=True)
        if kind is not KeyboardInterrupt:
            return
        msg = "interrupted. Nothing was written."
        if resumable:
            how = "" if self.kind.beside else " with --resume"
            msg = f"interrupted. What is done lies in {self.work}; the same command{how} takes it up."  # noqa: E501
        raise KeyboardInterrupt(msg) from None

    def _check_place(self) -> None:
        """Refuse a place where a finished one is to stay, or something else is."""
        kind, place = self.kind, self.place
        if not place.exists():
            return
        if not (place / kind.complete[0]).is_file():
            msg = f"{place} is there and is no {kind.name}: {_ELSEWHERE}"
            raise ValueError(msg)
        if not self._overwrite:
            msg = (
                f"{place} already holds {_a(kind.name)}: replace it with --overwrite, "
                f"or {_ELSEWHERE}"
            )
            raise ValueError(msg)

    def _is_complete(self) -> bool:
        files = (self.work / name for name in self.kind.complete)
        return not self.kind.beside and all(file.is_file() for file in files)

    def _is_resumed(self) -> bool:
        """Whether to go on from what is there; refuses what must not be touched."""
        kind, work = self.kind, self.work
        if not work.exists() or (
            # A start that was killed at once has left nothing to speak of.
            work.is_dir() and all(map(self._is_half_written, work.iterdir()))
        ):
            return False
        stored = [work / name for name in kind.settings if (work / name).is_file()]
        if not stored or (kind.foreign and (work / kind.foreign).exists()):
            remedy = f"remove it, or {_ELSEWHERE}" if kind.beside else _ELSEWHERE
            msg = f"{work} is there and is no {kind.in_work}: {remedy}"
            raise ValueError(msg)
        # Nobody asks for what a kill has left of a kind that is never taken up.
        if not self._resume and (kind.beside or self._overwrite):
            return False
        if not self._resume:
            msg = (
                f"{work} already holds {_a(kind.name)}: go on with --resume, replace "
                f"it with --overwrite, or {_ELSEWHERE}"
            )
            raise ValueError(msg)
        refusal = self._refusal(stored[0])
        if refusal and not self._overwrite:
            msg = f"{refusal} start anew with --overwrite, or {_ELSEWHERE}"
            raise ValueError(msg)
        return not refusal

    def _refusal(self, stored: Path) -> str:
        """Why what is there is not what is asked for, if it is not."""
        deciding, finished = self.kind.deciding, self._is_complete()
        try:
            there = _flat(deciding(read_json(stored), finished))
        except ValueError as error:
            return f"{error} The {self.kind.in_work} there cannot be taken up:"
        here = _flat(deciding(self._settings, finished))
        others = differences(there, here)
        if not others:
            return ""
        return (
            f"{self.work} holds {_a(self.kind.in_work)} with other settings, which "
            f"differ in {'; '.join(others)}: give the flags of that one,"
        )

    def _is_half_written(self, path: Path) -> bool:
        """Whether a kill in the middle of `atomic_write` has left this file."""
        parts = re.fullmatch(r"\.(.+)-\d+(\.\w+)", path.name)
        name = parts and parts[1] + parts[2]
        return bool(name) and any(fnmatch.fnmatch(name, p) for p in self.kind.patterns)

    def _make(self) -> None:
        """The folder with the settings in it, and nothing of one to be replaced."""
        kind, work = self.kind, self.work
        try:
            if work.exists() and not self.resumed:
                # No other file than its own, and first what stands for the rest.
                self._remove(work, ["*"] if kind.beside else kind.patterns)
            work.mkdir(parents=True, exist_ok=True)
            for path in list(work.rglob("*") if kind.beside else work.iterdir()):
                if self._is_half_written(path):
                    path.unlink()
            if not self.finished and not (work / kind.settings[-1]).exists():
                write_json(work / kind.settings[-1], self._settings)
        except OSError as error:
            msg = (
                f"The folder {work} cannot be made ({error.strerror or error}): choose "
                "another place with --out."
            )
            raise OSError(msg) from error

    def _remove(self, folder: Path, patterns: Iterable[str]) -> None:
        for pattern in patterns:
            for path in list(folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Let process 0 call `write(path)` for a file of the folder."""
        path = self.work / name
        if is_first():
            path.parent.mkdir(exist_ok=True)
            write(path)
        parallel.wait_for_all(f"{name} is written")

    def write_json(self, name: str, value: Any) -> None:
        """Write a record, all or nothing."""
        self.write(name, lambda path: write_json(path, value))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A record, or None if it is not there."""
        path = self.work / name
        return read_json(path) if path.is_file() else None

    def is_done(self, console: Console) -> bool:
        """Whether everything is there already, which is then said."""
        if self.finished:
            self.finish()
            console.print(
                f"The {self.kind.name} in {self.place} is finished: there is nothing "
                "to do."
            )
        return self.finished

    def finish(self) -> None:
        """Give the folder its name; one that it replaces goes only then."""
        if is_first() and self.kind.beside:
            self._check_place()
            # It may be left over from a kill further down.
            old = self.place.with_name(f".{self.place.name}.replaced")
            shutil.rmtree(old, ignore_errors=True)
            if self.place.exists():
                self.place.rename(old)
            self.work.rename(self.place)
            shutil.rmtree(old, ignore_errors=True)
        if is_first():
            self._remove(self.place, self.kind.unfinished)
        parallel.wait_for_all("the folder is finished")


def partial_of(place: Path) -> Path:
    """Where something is until it has finished."""
    return place.with_name(f"{place.name}.partial")


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
