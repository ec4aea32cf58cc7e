"""Where outputs go: what can be made there, and by one process at a time."""

import errno
import os
import re
import shutil
from pathlib import Path

from jaxunlearn import locking

# As Python, NumPy, Rust and TensorStore say it.
_FULL = (
    *(rf"\[Errno {n}\]" for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
    *("No space left on device", "Disk quota exceeded", "File too large"),
    *("StorageFull", r"\d requested and \d+ written"),
)


class Lock(locking.Lock):
    """`jaxunlearn.locking.Lock`, of an output."""

    advice = "wait for it, or choose another place with --out."


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
