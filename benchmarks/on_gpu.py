"""All that awaits a GPU, one after the other: first what tells most in a few minutes.

    python -m benchmarks.on_gpu --minutes 25 --data-dir DIR

Each entry is one of this folder's commands, with a process of its own. What it prints,
with most of them JSON lines, is appended to `results/on_gpu/NAME.log` as it comes, and
how it ended to `results/on_gpu.jsonl`.
An entry that fails or takes too long does not stop the others. Entries that need
prepared data sets are left out without `--data-dir`. `--list` shows the commands.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

_COMPARE = "-m benchmarks.compare --device gpu --batch 256 --images 256"
# Name, arguments of Python, most minutes. DATA stands for the folder of data sets.
ENTRIES = [
    (
        "compare-resnet18",
        f"{_COMPARE} --model resnet18 --steps 50 --repeats 5 "
        "--stages statistics unlearning inversion training",
        6,
    ),
    ("exactness", "benchmarks/exactness.py", 3),
    ("compare-allcnn", f"{_COMPARE} --steps 50 --repeats 5", 6),
    (
        "compare-compiled",
        f"{_COMPARE} --model resnet18 --steps 50 --repeats 5 --compile --no-agreement "
        "--stages statistics unlearning inversion training",
        8,
    ),
    ("inversion", "benchmarks/inversion_speed.py --batch 256 --steps 50 --compile", 6),
    ("second-moments", "benchmarks/convolution_moments.py --batch 256", 4),
    (
        "loops",
        "benchmarks/training_loops.py --steps 32 --batch 256 --model resnet18",
        4,
    ),
    ("sweep", "benchmarks/sweep.py", 5),
    (
        "vmapped-training",
        "benchmarks/vmapped_training.py "
        "--networks mlp smallcnn smallcnn-fashion vit allcnn resnet18",
        5,
    ),
    ("large", "benchmarks/planning.py --large --batch 64", 4),
    ("plan", "benchmarks/planning.py", 5),
    ("stacking", "benchmarks/stacking.py", 2),
    (
        "growth",
        "-m benchmarks.cost_growth --images 2048 4096 8192 16384 --batch 256 "
        f"--widths .25 .5 1 2 --results {RESULTS}/cost_growth_gpu.jsonl",
        4,
    ),
    ("compilation", "benchmarks/compilation.py", 3),
    ("run", "-m jaxunlearn run --out runs/on-gpu --overwrite", 3),
    *(
        (name, f"-m jaxunlearn reproduce {name} --data-dir DATA", minutes)
        for name, minutes in (
            ("fashion-mnist-alexnet", 60),
            ("cifar10-allcnn", 240),
            ("cifar100-resnet18", 240),
        )
    ),
]


def run(name: str, command: list[str], seconds: float) -> dict:
    """Run one entry, with all that it starts, for at most so long."""
    started = time.perf_counter()
    status, ended = None, "done"
    said = RESULTS / "on_gpu" / f"{name}.log"
    said.parent.mkdir(exist_ok=True)
    with said.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, start_new_session=True
        )
    try:
        status = process.wait(seconds)
        if status:
            ended = "failed"
    except subprocess.TimeoutExpired:
        ended = "took too long"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {
        "entry": name,
        "command": shlex.join(["python", *command[1:]]),
        "ended": ended,
        "status": status,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> int:
    """Run what was asked for: 0 if every entry was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [name for name, _, _ in ENTRIES]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--minutes", type=float, help="for all together")
    parser.add_argument("--data-dir", type=Path, help="of TensorFlow Datasets")
    parser.add_argument("--list", action="store_true", help="show the commands")
    parser.add_argument("--anyway", action="store_true", help="without a GPU, too")
    options = parser.parse_args()
    wanted = [entry for entry in ENTRIES if entry[0] in options.only]
    if options.list:
        for name, arguments, minutes in wanted:
            print(f"{name} (at most {minutes} min): python {arguments}")
        return 0
    import jax

    backend = jax.default_backend()
    if backend == "cpu" and not options.anyway:
        print("JAX sees no GPU here: install jax[cuda12], or use --anyway.")
        return 2
    until = time.perf_counter() + 60 * (options.minutes or float("inf"))
    fine = True
    for name, arguments, minutes in wanted:
        if "DATA" in arguments and options.data_dir is None:
            continue
        seconds = min(60 * minutes, until - time.perf_counter())
        if seconds < 30:
            print(f"No time is left for {name} and what follows it.")
            return 1
        given = arguments.replace("DATA", str(options.data_dir))
        found = run(name, [sys.executable, *shlex.split(given)], seconds)
        fine &= found["ended"] == "done"
        with (RESULTS / "on_gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**found, "backend": backend}) + "\n")
        print(json.dumps(found), flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
