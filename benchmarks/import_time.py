"""`import jaxunlearn` against importing what it is built on.

    python benchmarks/import_time.py [--repeats 7]

Fresh processes in turns; prints medians and their ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

BASE = "import jax, flax, optax, flax.linen, flax.nnx"
SCRIPT = (
    "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
)


def seconds(statement: str) -> float:
    """Wall seconds of one import in a fresh process."""
    # As on a user's machine, where byte code is kept.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(statement)],
        check=True,
        capture_output=True,
        text=True,
        env=kept,
    ).stdout
    return float(output)


def main():
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    statements = {"base": BASE, "jaxunlearn": "import jaxunlearn"}
    for statement in statements.values():
        seconds(statement)  # fills the caches of the file system
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(repeats):
        for name, statement in statements.items():
            times[name].append(seconds(statement))
    base, ours = (statistics.median(times[name]) for name in statements)
    print(
        json.dumps(
            {
                "base_s": round(base, 3),
                "jaxunlearn_s": round(ours, 3),
                "ratio": round(ours / base, 3),
                "repeats": repeats,
            }
        )
    )


if __name__ == "__main__":
    main()
