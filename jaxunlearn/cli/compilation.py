"""JAX's persistent compilation cache, for all commands that compute."""

import os
import sys
from pathlib import Path

import jax
from rich.console import Console

_SWITCH = "JAXUNLEARN_COMPILATION_CACHE"

# Keep every program: JAX's own least, a second of compilation, leaves out most of a
# small network's, which together take longest. Each is a file of some kilobytes.
_LEAST_SECONDS = 0.0


def keep_programs(console: Console) -> None:
    """Let programs that were compiled once be read from disk by later commands.

    They lie in `$JAX_COMPILATION_CACHE_DIR`, else in the user's folder for caches.
    `JAXUNLEARN_COMPILATION_CACHE=off` leaves all to JAX's own settings. Of several
    processes JAX lets process 0 write.

    Args:
      console: is told if the folder cannot be written to; the command goes on without.

    Raises:
      ValueError: the variable is set to something else.
    """
    switch = os.environ.get(_SWITCH, "on")
    if switch not in ("on", "off"):
        msg = f'{_SWITCH} must be "on" or "off"; it is {switch!r}.'
        raise ValueError(msg)
    if switch == "off":
        return
    folder = Path(jax.config.jax_compilation_cache_dir or _user_caches() / "jaxunlearn")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        problem = "it is read-only"
    except OSError as error:
        writable, problem = False, error.strerror or str(error)
    if not writable:
        console.print(
            f"Compiled programs are not kept: {folder} cannot be written to ({problem})"
            ". Name another folder in JAX_COMPILATION_CACHE_DIR."
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


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
