"""Where outputs go: what can be made there, and by one process at a time."""

import contextlib
import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

_HELD = (errno.EACCES, errno.EAGAIN)


# As Python, NumPy, Rust and TensorStore say it.
_FULL = (
    *(rf"\[Errno {n}\]" for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
    *("No space left on device", "Disk quota exceeded", "File too large"),
    *("StorageFull", r"\d requested and \d+ written"),
)


class Lock:
    """`.NAME.lock` beside a file or folder that this process alone is to write.

    The system takes the lock from a process that ends, however it ends: what a kill
    leaves is an empty claim. Where the file system has no locks, a process counts as
    alive that has the number in the file.
    """

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
            msg = (
                f"{which} on {host} is writing {self._place}: wait for it, or choose "
                "another place with --out."
            )
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


def check_reachable(place: Path) -> None:
    """Refuse where nothing can be made, such as behind a link that leads nowhere."""
    try:
        for path in (place, *place.absolute().parents):
            if path.exists():
                break
            if path.is_symlink():
                msg = f"it is a link to {path.readlink()}, which leads nowhere"
                raise OSError(msg)
        if not place.resolve().name:
            msg = "it is the root of the file system"
            raise OSError(msg)
        if path != place and not path.is_dir():
            msg = f"{path} is a file"
            raise OSError(msg)
        if path != place and not os.access(path, os.W_OK | os.X_OK):
            msg = f"{path} is read-only"
            raise OSError(msg)
    except OSError as error:
        raise cannot_make(place, error) from error


def cannot_make(place: Path, error: OSError) -> OSError:
    """What is raised where no output can be."""
    reason = error.strerror or error
    msg = f"The folder {place} cannot be made ({reason}): choose another place with --out."  # noqa: E501
    return OSError(msg)


def disk_problem(error: BaseException | None) -> str | None:
    """A sentence, if the disk was full when this was raised."""
    texts = []
    while error is not None:
        texts.append(f"[Errno {getattr(error, 'errno', None)}] {error}")
        error = error.__cause__ or error.__context__
    for text in texts:
        if any(re.search(sign, text) for sign in _FULL):
            return "The disk is full, or a quota or limit of file sizes is reached."
    return None


def partial_of(place: Path) -> Path:
    """Where something is until it has finished."""
    return place.parent / f"{place.name}.partial"


def remove_all(path: Path) -> None:
    """A folder, or a link to one, as far as that can be."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
