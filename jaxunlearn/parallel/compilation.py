"""JAX's persistent compilation cache: programs compiled once are read from disk."""

import contextlib
import functools
import os
import sys
from pathlib import Path

import jax

# Every program is kept: JAX's own threshold, a second of compilation, leaves out most
# of a small network's, which together take longest. Each is a file of some kilobytes.
_LEAST_SECONDS = 0.0


def cache_compilations(folder: str | os.PathLike | None = None) -> Path:
    """Keep compiled programs on disk, where later processes find them.

    The command line does so by itself; a script or notebook calls this first. Of
    several processes JAX lets process 0 write.

    An entry that cannot be read is compiled and written anew.

    Args:
      folder: where to; it is made. None is `$JAX_COMPILATION_CACHE_DIR`, and without it
        a folder `jaxunlearn` where the platform keeps a user's caches, which nobody
        else may read.

    Returns:
      The folder.

    Raises:
      OSError: the folder cannot be made or written to; the user has no home; the
        platform's folder belongs to somebody else, whose programs are not to be run.
    """
    named = folder or jax.config.jax_compilation_cache_dir
    path = problem = None
    try:
        path = Path(named).expanduser() if named else _user_caches() / "jaxunlearn"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not named:
            problem = _made_private(path)
        if not os.access(path, os.W_OK | os.X_OK):
            problem = f"{path} is read-only"
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        problem = f"{path}: {reason}" if path else reason
    if problem is not None:
        msg = (
            f"Compiled programs are not kept ({problem}): name a folder that can be "
            "written to in JAX_COMPILATION_CACHE_DIR."
        )
        raise OSError(msg)
    jax.config.update("jax_compilation_cache_dir", str(path))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    _drop_damaged()
    return path


def _made_private(path: Path) -> str | None:
    """Whose it is, if it is somebody else's: programs out of it are run."""
    owner = getattr(os, "getuid", lambda: path.stat().st_uid)()
    if path.stat().st_uid != owner:
        return f"{path} belongs to another user"
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return None


def _drop_damaged() -> None:
    """Make JAX remove an entry that it cannot read; by itself it never replaces one."""
    from jax._src import compilation_cache

    read = getattr(compilation_cache, "get_executable_and_time", None)
    if read is None or hasattr(read, "__wrapped__"):
        return

    @functools.wraps(read)
    def reading(key, *arguments):
        try:
            return read(key, *arguments)
        except Exception:
            folder = Path(jax.config.jax_compilation_cache_dir)
            with contextlib.suppress(OSError):
                (folder / f"{key}-cache").unlink()
            raise

    compilation_cache.get_executable_and_time = reading


def _user_caches() -> Path:
    """Where the platform keeps what may be thrown away."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named and Path(named).is_absolute():
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home()))
    return Path.home() / ".cache"
