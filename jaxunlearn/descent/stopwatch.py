"""Wall seconds by stage, with what JAX spends on compiling split off."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping

import jax

# Tracing, lowering and compiling; the last also covers the persistent cache.
_COMPILING = frozenset(
    f"/jax/core/compile/{name}_duration"
    for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)


class Stopwatch:
    """Adds up wall seconds per named stage, and compilation under "compile".

    The sum is the time that stages were open: a stage inside another pauses the outer
    one. JAX returns before its arrays are ready, so a stage that should include their
    computation ends with `jax.block_until_ready`. One thread uses one watch; it listens
    to JAX only while a stage is open.
    """

    def __init__(self):
        self._seconds = {"compile": 0.0}
        self._open: list[str] = []
        self._since = 0.0
        self._thread: int | None = None
        # Stretches of compilation since `_since`: of a function traced inside another
        # its own, and the other's that covers it.
        self._compiling: list[tuple[float, float]] = []

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far, "compile" included; a copy."""
        return dict(self._seconds)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the body of the `with` statement as stage `name`."""
        if name == "compile":
            msg = (
                "A stage cannot be called 'compile': the watch adds up JAX's "
                "compilation under that name. Call the stage something else."
            )
            raise ValueError(msg)
        self._seconds.setdefault(name, 0.0)
        self._charge()
        if not self._open:
            self._thread = threading.get_ident()
            jax.monitoring.register_event_duration_secs_listener(self._listen)
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()
            if not self._open:
                # Somebody may have cleared all listeners meanwhile.
                with contextlib.suppress(AssertionError, ValueError):
                    jax.monitoring.unregister_event_duration_listener(self._listen)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what another watch measured while no stage of this one was open."""
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value

    def _charge(self) -> None:
        """Give the time since the last charge to the innermost open stage."""
        now = time.perf_counter()
        if self._open:
            rest, covered = now - self._since, self._since
            for start, end in sorted(self._compiling):
                more = max(0.0, end - max(start, covered))
                self._seconds["compile"] += more
                rest, covered = rest - more, max(end, covered)
            self._seconds[self._open[-1]] += max(rest, 0.0)
        self._since, self._compiling = now, []

    def _listen(self, event: str, duration_secs: float, **_) -> None:
        # Compilation on other threads is not time of this stage.
        if event in _COMPILING and threading.get_ident() == self._thread:
            end = time.perf_counter()
            self._compiling.append((end - duration_secs, end))
