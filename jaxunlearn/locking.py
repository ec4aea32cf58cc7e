"""A file or folder that one process at a time writes."""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

_HELD = (errno.EACCES, errno.EAGAIN)


class Lock:
    """`.NAME.lock` beside a file or folder that this process alone is to write.

    The system takes the lock from a process that ends, however it ends: what a kill
    leaves is an empty claim. Where the file system has no locks, a process counts as
    alive that has the number in the file.
    """

    # What to do where another process has it.
    advice: ClassVar[str] = "wait for it."

    def __init__(self, place: Path):
        self._place, self._file = place, None
        real = place.resolve()
        self.path = real.with_name(f".{real.name}.lock") if real.name else real

    def check(self) -> None:
        """Refuse what another process is writing; nothing is written."""
        if fcntl is not None and self.path.is_file():
            with self.path.open("r+") as file:
                self._take(file.fileno())

    def acquire(self) -> None:
        """Take the lock, or refuse."""
        while fcntl is not None and self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._take(file)
                # Whoever had it may have removed the file after it was opened here.
                there = self.path.exists() and self.path.stat()
                if there and os.path.samestat(there, os.fstat(file)):
                    os.truncate(file, 0)
                    claim = json.dumps([socket.gethostname(), os.getpid()])
                    os.pwrite(file, claim.encode(), 0)
                    self._file = file
            finally:
                if self._file is None:
                    os.close(file)

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it for as long as the `with` statement."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _take(self, file: int) -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            held = error.errno in _HELD
        try:
            host, process = json.loads(os.pread(file, 1000, 0))
        except (ValueError, TypeError):
            host, process = "this machine", None
        if held or _is_alive(host, process):
            which = "Another process" if process is None else f"Process {process}"
            msg = f"{which} on {host} is writing {self._place}: {self.advice}"
            if not held:
                msg += f" If there is no such process, remove {self.path}."
            raise ValueError(msg)


def _is_alive(host: str, process: int | None) -> bool:
    """Whether there may be such a process; of other machines nobody knows."""
    if process is None or process == os.getpid():
        return False
    if host != socket.gethostname():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True
