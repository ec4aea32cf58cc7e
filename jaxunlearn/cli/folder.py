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
from jaxunlearn.cli.later import told
from jaxunlearn.cli.pieces import Pieces
from jaxunlearn.cli.places import (
    Lock,
    cannot_make,
    check_reachable,
    disk_problem,
    partial_of,
    remove_all,
)
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


class OutputFolder(Pieces):
    """`with OutputFolder(place, settings, kind=..., resume=...) as folder`.

    The constructor decides and refuses, and undoes half a replacement; `with` makes it.

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
        check_reachable(place)
        self.place, self.kind = place, kind
        self._settings = to_dict(settings)
        self._resume, self._overwrite = resume, overwrite
        named = place if place.name not in ("", "..") else place.resolve()
        super().__init__(partial_of(named) if kind.beside else place)
        self._replaced = named.with_name(f".{named.name}.replaced")
        self._lock = Lock(place)
        if is_first():
            self._lock.check()
            self._recover()
        parallel.wait_for_all("the folder is as it should be")
        self._decide()

    def __enter__(self) -> "OutputFolder":
        # Nobody changes anything before all have seen the same.
        parallel.wait_for_all("the folder is checked")
        try:
            if is_first():
                self._claim()
            parallel.wait_for_all("the folder is claimed")
            self._decide()  # another process may have finished it in the meantime
            parallel.wait_for_all("the folder is checked again")
            if is_first():
                self._make()
        except BaseException:
            self._lock.release()
            raise
        parallel.wait_for_all("the folder is made")
        return self

    def __exit__(self, kind, error, trace) -> None:
        resumable = self._resume or not self.kind.beside
        if error is not None and not resumable:
            remove_all(self.work)
        self._lock.release()
        full = disk_problem(error)
        if full is None and kind is not KeyboardInterrupt:
            return
        msg = f"{full or 'interrupted.'} Nothing was written."
        if resumable:
            how = "" if self.kind.beside else " with --resume"
            msg = f"{full or 'interrupted.'} What is done lies in {self.work}; the same command{how} takes it up."  # noqa: E501
        raise (KeyboardInterrupt if full is None else OSError)(msg) from None

    def _decide(self) -> None:
        """What to do with what is there; refuses what must not be touched."""
        if self.kind.beside:
            self._check_place()
        self.resumed = self._is_resumed()
        self.finished = self.resumed and self._is_complete()

    def _claim(self) -> None:
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            raise cannot_make(self.place, error) from error

    def _recover(self) -> None:
        """Undo, or clean up after, a replacement that was killed half way."""
        if self.place.exists():
            remove_all(self._replaced)
        elif self._replaced.exists():
            self._replaced.rename(self.place)

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
        return all((self.work / name).is_file() for name in self.kind.complete)

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
        # Of a kind that is never taken up, a kill may have left all but the name.
        if kind.beside and not self._resume:
            return self._is_complete() and not self._refusal(stored[0])
        if self._overwrite and not self._resume:
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
            there = _flat(told(deciding(read_json(stored), finished)))
        except ValueError as error:
            return f"{error} The {self.kind.in_work} there cannot be taken up:"
        here = _flat(told(deciding(self._settings, finished)))
        others = differences(there, here)
        if not others:
            return ""
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        return (
            f"{self.work} holds {_a(self.kind.in_work)} with other settings, which "
            f"differ in {'; '.join(others[:8])}{more}: give the flags of that one,"
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
            raise cannot_make(work, error) from error

    def _remove(self, folder: Path, patterns: Iterable[str]) -> None:
        for pattern in patterns:
            for path in list(folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def is_done(self, console: Console) -> bool:
        """Whether everything is there already, which is then said."""
        if self.finished:
            with self:
                self.finish()
            said = f"The {self.kind.name} in {self.place} is finished"
            console.print(f"{said}: there is nothing to do.")
        return self.finished

    def finish(self) -> None:
        """Give the folder its name; one that it replaces goes only then."""
        if is_first() and self.kind.beside:
            self._check_place()
            if self.place.exists():
                self.place.rename(self._replaced)
            self.work.rename(self.place)
            remove_all(self._replaced)
        if is_first():
            self._remove(self.place, self.kind.unfinished)
            self._lock.release()
        parallel.wait_for_all("the folder is finished")


def check_resume(settings: Any) -> None:
    """Refuse to go on and to start anew at once."""
    if settings.resume and settings.overwrite:
        msg = "--resume goes on and --overwrite starts anew: give one of them."
        raise ValueError(msg)


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
