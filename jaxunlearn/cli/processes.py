"""The process that starts those of a run, watches them, and says which one died."""

import contextlib
import dataclasses
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from rich.console import Console

from jaxunlearn.cli.distributed import FAILED, FOLLOWED, LOST, Several, Worker
from jaxunlearn.cli.folder import partial_of

# Seconds between two looks, and for which those that JAX aborts get to end.
_LOOK, _ABORTING = 0.05, 3.0
_TAIL = 20

# How a process begins what it says of its failure.
_SENTENCE = "jaxunlearn: "


@dataclasses.dataclass(frozen=True)
class _Child:
    name: str
    process: subprocess.Popen
    joined: Path
    errors: Path | None

    @property
    def status(self) -> int | None:
        """As `Popen.returncode`: None while it runs, -9 if signal 9 killed it."""
        return self.process.poll()

    def last_words(self) -> str:
        """The end of what it wrote to stderr, where nobody has seen it."""
        if self.errors is None:
            return ""
        text = self.errors.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.rstrip().splitlines()[-_TAIL:])


def start(arguments: Sequence[str], settings: Several, place: Path) -> None:
    """Run a command in processes of their own, and return once all are done.

    With `processes` they are all on this machine; process 0 shows what happens. With
    `distributed` it is one, which joins those that were started elsewhere. However
    this process ends, none of them is left.

    Args:
      arguments: of the command line.
      settings: how many processes.
      place: where the run goes.

    Raises:
      ChildProcessError: a process died, or failed with something to say.
      SystemExit: process 0 failed and has said why.
      KeyboardInterrupt: as it came, with a sentence.
    """
    settings.check_processes()
    with tempfile.TemporaryDirectory(prefix="jaxunlearn-") as folder:
        try:
            with _started(arguments, settings, Path(folder)) as children:
                fine = _watch(children)
                verdict = None if fine else _verdict(children, settings)
        except KeyboardInterrupt:
            msg = f"interrupted.{_left(place)}"
            raise KeyboardInterrupt(msg) from None
    if not fine and verdict is None:
        raise SystemExit(FAILED)
    if verdict is not None:
        words = f"\nIts last words:\n{verdict.words}" if verdict.words else ""
        msg = f"{verdict.sentence}{_left(place)}{words}"
        raise ChildProcessError(msg)


class _Verdict(NamedTuple):
    sentence: str
    words: str = ""


@contextlib.contextmanager
def _started(arguments, settings, folder) -> Iterator[list[_Child]]:
    children: list[_Child] = []
    try:
        if settings.distributed:
            worker = Worker(str(folder / "joined"))
            children.append(_start("this process", arguments, worker))
        else:
            coordinator = f"127.0.0.1:{_free_port()}"
            for index in range(settings.processes):
                worker = Worker(
                    str(folder / f"joined-{index}"),
                    coordinator,
                    settings.processes,
                    index,
                )
                errors = folder / f"stderr-{index}" if index else None
                name = f"process {index} of {settings.processes}"
                children.append(_start(name, arguments, worker, errors))
        yield children
    finally:
        for child in children:
            # What it writes is whole or not there. A blocked process hears no less.
            child.process.kill()
            child.process.wait()
            if child.process.stdin is not None:
                child.process.stdin.close()
        # A killed process 0 had no time to do so.
        Console(stderr=True).show_cursor()


def _start(name, arguments, worker, errors: Path | None = None) -> _Child:
    with contextlib.ExitStack() as stack:
        stderr: IO[bytes] | None = None
        if errors is not None:
            stderr = stack.enter_context(errors.open("wb"))
        process = subprocess.Popen(
            _command(arguments),
            env=worker.environment(),
            # Never written to: it closes when this process ends, however it does.
            stdin=subprocess.PIPE,
            stdout=None if errors is None else subprocess.DEVNULL,
            stderr=stderr,
            # Ctrl-C is for this process, which then ends them all.
            start_new_session=True,
        )
    return _Child(name, process, Path(worker.joined), errors)


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "jaxunlearn", *arguments]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _watch(children: Sequence[_Child]) -> bool:
    """Wait until all are done, or the first has failed; whether all is well."""
    while True:
        statuses = [child.status for child in children]
        # One that follows process 0 into its end is not the first to fail.
        failed = [s for s in statuses if s not in (None, 0, FOLLOWED)]
        if failed or None not in statuses:
            if failed and all(s == -signal.SIGABRT for s in failed):
                time.sleep(_ABORTING)
            return all(status == 0 for status in statuses)
        time.sleep(_LOOK)


def _verdict(children: Sequence[_Child], settings: Several) -> _Verdict | None:
    """Why they ended, or None if one of them has told the user."""
    ended = [child for child in children if child.status not in (None, 0, FOLLOWED)]
    if not ended:
        return None
    # One that was killed comes first: its death is no other's doing.
    child = min(ended, key=_rank)
    status, words = child.status or 0, child.last_words()
    if status == -signal.SIGABRT:
        return _aborted(children, child, settings)
    if status == LOST:
        sentence = (
            "a computation over all processes failed; most likely another of them has "
            "ended."
        )
        return _Verdict(sentence, words)
    others = "; the others were stopped." if len(children) > 1 else "."
    if status < 0:
        return _Verdict(f"{child.name} was killed (signal {-status}){others}")
    if status == FAILED and child.errors is None:
        return None
    if status == FAILED and _SENTENCE in words:
        said = words.rpartition(_SENTENCE)[2]
        return _Verdict(f"{child.name} failed{others} It says: {said}")
    return _Verdict(f"{child.name} ended with status {status}{others}", words)


def _rank(child: _Child) -> int:
    if child.status is None or child.status >= 0:
        return 1
    return 2 if child.status == -signal.SIGABRT else 0


def _aborted(children, child, settings) -> _Verdict:
    """What JAX does to the processes that wait for one that is gone."""
    words = child.last_words()
    if not child.joined.exists():
        sentence = (
            f"the processes did not find each other within {settings.connect_timeout} "
            "seconds, or were told different numbers of them: are all of them started, "
            "and can they reach process 0?"
        )
        return _Verdict(sentence, words)
    silent = [c.name for c in children if c.status is None]
    silence = f"gave no sign of life for {settings.heartbeat_timeout} seconds"
    if silent:
        return _Verdict(f"{' and '.join(silent)} {silence}; all were stopped.")
    if settings.distributed:
        sentence = f"another process ended, or {silence}; this one was stopped."
        return _Verdict(sentence)
    return _Verdict(f"{child.name} was aborted (signal 6).", words)


def _left(place: Path) -> str:
    """Where an unfinished run lies, if it has come so far."""
    partial = partial_of(place) if place.name else place
    if not (partial / "request.json").is_file():
        return ""
    return f" What is done lies in {partial}; the same command takes it up."
