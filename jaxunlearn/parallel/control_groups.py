"""What Linux lets a group of processes hold: containers and batch systems set limits.

Groups lie in each other; each limit holds for all that lie in its group. Pages of
files that nobody has touched lately count as used, but make room when asked to.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Names of both versions: the limit, what is used, unused pages of files among that.
_NEW = ("memory.max", "memory.current", "inactive_file")
_OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory_limits(root: Path = Path("/")) -> list[tuple[int, int]]:
    """Bytes that each group of this process may hold, and what is still free of them.

    Empty where there are no groups, or none has a limit.

    Args:
      root: of the file system.
    """
    return list(_limits(root))


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    for folder, (limit, used, unused) in _groups(root):
        try:
            most = (folder / limit).read_text(encoding="ascii").strip()
            held = int((folder / used).read_text(encoding="ascii"))
            stat = (folder / "memory.stat").read_text(encoding="ascii")
        except OSError:
            # Not every group has limits, and not every group can be seen.
            continue
        if most != "max":
            pages = dict(line.split() for line in stat.splitlines())
            yield int(most), max(0, int(most) - held + int(pages.get(unused, 0)))


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of all groups of this process, and what their files are called."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", _NEW
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", _OLD
        else:
            continue
        place = PurePosixPath(path.lstrip("/"))
        for group in (place, *place.parents):
            yield base / group, names
