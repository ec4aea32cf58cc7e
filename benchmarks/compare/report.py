"""Records and tables of a comparison."""

import datetime
import os
import platform
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]


def summary(values: list[float]) -> dict[str, float]:
    """Least, median, greatest."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
    }


def stage_record(stage: str, calls: dict[str, list[dict[str, float]]]) -> dict:
    """What was measured of a stage.

    Args:
      stage: its name.
      calls: of each side, the first one apart from the others; the sides took turns.
    """
    sides = {
        side: {
            "first_seconds": first["seconds"],
            "seconds": summary([c["seconds"] for c in rest]),
            "peak_bytes": max(c["peak_bytes"] for c in rest),
        }
        for side, (first, *rest) in calls.items()
    }
    ours = [c["seconds"] for c in calls["jax"][1:]]
    ratios = {
        side: summary([c["seconds"] / o for c, o in zip(found[1:], ours, strict=True)])
        for side, found in calls.items()
        if side != "jax"
    }
    return {"stage": stage, "sides": sides, "ratio_to_jax": ratios}


def with_rates(record: dict, operations: int | None, peaks: dict[str, float]) -> dict:
    """The same with FLOP/s, and the share of what the card can do."""
    if operations is None:
        return record
    rates = {
        side: operations / found["seconds"]["median"]
        for side, found in record["sides"].items()
    }
    shares = {
        kind: {side: rate / peak for side, rate in rates.items()}
        for kind, peak in peaks.items()
    }
    floors = {kind: operations / peak for kind, peak in peaks.items()}
    more = {"operations": operations, "operations_per_second": rates}
    if peaks:
        more |= {"share_of_peak": shares, "seconds_at_peak": floors}
    return {**record, **more}


def stage_table(record: dict) -> Table:
    """One stage, a line for each side."""
    table = Table(title=record["stage"], title_justify="left")
    for column in ("", "first s", "min", "median", "max s", "peak MB", "GFLOP/s"):
        table.add_column(column, justify="right" if column else "left")
    table.add_column("torch / jax", justify="right")
    for side, found in record["sides"].items():
        seconds = found["seconds"]
        rate = record.get("operations_per_second", {}).get(side)
        ratio = record["ratio_to_jax"].get(side)
        table.add_row(
            side,
            f"{found['first_seconds']:.3g}",
            *(f"{seconds[k]:.3g}" for k in ("min", "median", "max")),
            f"{found['peak_bytes'] / 1e6:.0f}",
            "" if rate is None else f"{rate / 1e9:.0f}",
            "" if ratio is None else "{min:.2f} {median:.2f} {max:.2f}".format(**ratio),
        )
    return table


def agreement_table(found: dict[str, Any]) -> Table:
    """Differences beside their bounds."""
    table = Table(title="agreement", title_justify="left")
    for column in ("", "difference", "bound", ""):
        table.add_column(column)
    for name, entry in found.items():
        if isinstance(entry, dict) and "bound" in entry:
            verdict = "pass" if entry["agrees"] else "FAIL"
            difference, bound = f"{entry['difference']:.1e}", f"{entry['bound']:.0e}"
            table.add_row(name, difference, bound, verdict)
    table.add_row(
        "projectors of own moments", f"{found['projectors_of_own_moments']:.1e}"
    )
    table.add_row("logits before", f"{found['logits_before']:.1e}")
    table.add_row("logits moved by", f"{found['logits_moved_by']:.1e}")
    return table


def machine() -> dict[str, Any]:
    """What runs this, and which commit of the repository."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": os.getloadavg()[0],
        "system": platform.platform(terse=True),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return name[1] if name else platform.machine()


def _git(*arguments: str) -> str:
    """What git answers here; empty where this is no checkout."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()


console = Console(width=100)
