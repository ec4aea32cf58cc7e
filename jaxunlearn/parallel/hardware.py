"""Properties of the devices: memory, caches, what runs fast on them."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh


def linear_algebra_devices() -> list[jax.Device]:
    """Where float64 `eigh` and `qr` run: GPUs where there are any, else one CPU.

    TPUs have no float64 decompositions, so their hosts' CPUs do this work. A CPU's
    simulated devices share its cores, so that one of them is enough.
    """
    if jax.default_backend() == "gpu":
        return jax.local_devices(backend="gpu")
    return jax.local_devices(backend="cpu")[:1]


def loops_are_slow() -> bool:
    """Whether convolution gradients should stay out of `scan`, as on XLA's CPU backend.

    Measured there with `benchmarks/training_loops.py`: a training step of a half-width
    All-CNN at batch 64 takes 20.2 s in a loop of length one and 0.62 s outside.
    """
    return jax.default_backend() == "cpu"


def device_kind() -> str:
    """What the default device is called, such as "cpu" or "TPU v4"."""
    return jax.local_devices()[0].device_kind


def free_host_memory() -> int:
    """Bytes of this machine's memory that are free, or else all; a lot if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail")
        )
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize


def free_memory(devices: int = 1) -> int:
    """Bytes that are free of each of so many devices, else of its share of the host.

    The simulated devices of a CPU share the host's memory.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return free_host_memory() // devices
    return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Fills in `bytes` after the body: the most that was in use while it ran.

    Of a CPU that of the whole process, where Linux tells; of a device its peak since
    the process began, since JAX does not reset it.
    """
    measured: dict[str, int] = {}
    reset = Path("/proc/self/clear_refs")
    with contextlib.suppress(OSError):
        reset.write_text("5")  # VmHWM starts anew.
    yield measured
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        measured["bytes"] = int(stats["peak_bytes_in_use"])
        return
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        measured["bytes"] = int(peak.split()[1]) * 1024


def product_bytes() -> int:
    """How much of one operand several products should read before the next part.

    What stays in a CPU's caches; on accelerators, enough to keep them busy.
    """
    return 2**20 if jax.default_backend() == "cpu" else 2**26


def machine(mesh: Mesh | None) -> dict[str, Any]:
    """What the last bits of a result depend on, as a JSON-compatible dict."""
    facts = {
        "version of jax": jax.__version__,
        "device": device_kind(),
        "number of devices": 1 if mesh is None else mesh.size,
    }
    if jax.default_backend() == "cpu":
        # Not everywhere does the system tell which cores a process may use.
        allowed = getattr(os, "sched_getaffinity", None)
        facts["number of cores"] = len(allowed(0)) if allowed else os.cpu_count()
    return facts
