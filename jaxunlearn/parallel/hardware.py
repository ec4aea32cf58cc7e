"""What there is to compute with: devices, their memory, their habits."""

import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxunlearn.parallel.control_groups import memory_limits


def linear_algebra_device() -> jax.Device:
    """Where float64 `eigh` and `qr` run: the GPU where there is one, else the CPU.

    TPUs have no float64 decompositions, so their hosts' CPUs do this work.
    """
    if jax.default_backend() == "gpu":
        return jax.local_devices(backend="gpu")[0]
    return jax.local_devices(backend="cpu")[0]


def loops_are_slow() -> bool:
    """Whether convolution gradients should stay out of `scan`, as on XLA's CPU backend.

    Measured there with `benchmarks/training_loops.py`: a training step of a half-width
    All-CNN at batch 64 takes 20.2 s in a loop of length one and 0.62 s outside.
    """
    return jax.default_backend() == "cpu"


def device_kind() -> str:
    """What the default device is called, such as "cpu" or "TPU v4"."""
    return jax.local_devices()[0].device_kind


def memory_limit(devices: int = 1) -> int:
    """Bytes that each of so many devices can hold: its own limit, else of the host's.

    A CPU's simulated devices share the host's memory, or what a container or a batch
    system leaves to this process of it.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(limit for limit, _ in memory_limits())]) // devices


def free_memory(devices: int = 1) -> int:
    """Bytes that each of so many devices can still take, on a CPU of the host's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = dict(line.split(":") for line in lines)
        available = int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        # Not Linux, which alone says so without a further package.
        return memory_limit(devices)
    return min([available, *(free for _, free in memory_limits())]) // devices


def product_bytes() -> int:
    """How much of one operand several products should read before the next part.

    What stays in a CPU's caches; on accelerators, enough to keep them busy.
    """
    return 2**20 if jax.default_backend() == "cpu" else 2**26


def machine(mesh: Mesh | None) -> dict[str, Any]:
    """What the last bits of a result depend on, as plain values."""
    found = {
        "version of jax": jax.__version__,
        "device": device_kind(),
        "number of devices": 1 if mesh is None else mesh.size,
    }
    if jax.default_backend() == "cpu":
        # Not everywhere does the system tell which cores a process may use.
        allowed = getattr(os, "sched_getaffinity", None)
        found["number of cores"] = len(allowed(0)) if allowed else os.cpu_count()
    return found
