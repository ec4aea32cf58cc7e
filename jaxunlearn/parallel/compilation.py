"""JAX's persistent compilation cache: programs compiled once are read from disk."""

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

    Args:
      folder: where to; it is made. None is `$JAX_COMPILATION_CACHE_DIR`, and without it
        a folder `jaxunlearn` where the platform keeps a user's caches.

    Returns:
      The folder.

    Raises:
      OSError: the folder cannot be made or written to.
    """
    if folder is None:
        folder = jax.config.jax_compilation_cache_dir or _user_caches() / "jaxunlearn"
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        problem = None if os.access(path, os.W_OK | os.X_OK) else "it is read-only"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is not None:
        msg = (
            f"Compiled programs are not kept: {path} cannot be written to ({problem}). "
            "Name another folder in JAX_COMPILATION_CACHE_DIR."
        )
        raise OSError(msg)
    jax.config.update("jax_compilation_cache_dir", str(path))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    return path


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
