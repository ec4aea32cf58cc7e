"""How much memory a call takes on a CPU: the process's resident peak (Linux).

Each side has a process of its own, so that no other library's memory counts.
"""

import ctypes
import gc
import re
from pathlib import Path


def reset_peak() -> int:
    """Give back what is free, count the peak anew; the resident bytes then."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(kind: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{kind}:\s+(\d+) kB", status)[1])
