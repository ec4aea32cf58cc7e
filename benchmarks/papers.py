"""The runs behind UNSC's tables, each from a stored configuration.

    python benchmarks/papers.py fashion_mnist_alexnet --seeds 0

runs `jaxunlearn run --config benchmarks/configs/NAME.json` once for each seed, appends
a line of JSON to the results, and prints accuracies beside those of the paper's
released notebooks. What is killed is taken up by the same command.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent

# Acc_r and Acc_f (%): means over three seeds of the last epoch in UNSC's released
# notebooks, which also show the ranks of their first seed.
PUBLISHED = {
    "fashion_mnist_alexnet": {
        "original": (93.58, 80.97),
        "retrained": (95.19, 0.0),
        "unsc": (95.23, 0.67),
        "ranks of unsc": "11/16 365/576 499/512 802/1024 731/2048 57/2048",
    },
    "cifar10_allcnn": {
        "original": (92.10, 79.93),
        "retrained": (93.22, 0.0),
        "unsc": (92.73, 0.60),
        "ranks of unsc": "14/27 199/432 368/432 827/864 834/864 827/864 848/864 95/96 "
        "16/96",
    },
    "cifar100_resnet18": {
        "original": (75.36, 72.07),
        "retrained": (75.77, 0.0),
        "unsc": (75.92, 1.17),
    },
}


def run(name: str, seed: int, out: Path, data_dir: Path | None) -> dict:
    """One run in a process of its own, and what is worth keeping of it."""
    config = HERE / "configs" / f"{name}.json"
    folder = out / f"{name}-seed-{seed}"
    command = [sys.executable, "-m", "jaxunlearn", "run", "--config", config]
    command += ["--seed", seed, "--out", folder]
    command += [] if data_dir is None else ["--data-dir", data_dir]
    # Of a run that was taken up, or is there already, only its stages are known.
    fresh = not folder.exists() and not Path(f"{folder}.partial").exists()
    start = time.perf_counter()
    if not folder.exists():
        subprocess.run([str(part) for part in command], check=True)
    wall = time.perf_counter() - start if fresh else None
    metrics = json.loads((folder / "metrics.json").read_text())
    keep = ("ranks", "seconds", "learning_rate", "validation_trials")
    keep += ("retained_logit_change", "surviving_gradient")
    classifiers = {
        title: {
            split: {part: record[split][part] for part in ("retained", "forgotten")}
            for split in ("train", "validation", "test")
        }
        | {entry: record[entry] for entry in keep if entry in record}
        for title, record in metrics["classifiers"].items()
    }
    return {
        "config": json.loads(config.read_text()),
        "name": name,
        "seed": seed,
        "wall_seconds": wall,
        "device": metrics["device"],
        "versions": metrics["versions"],
        "classifiers": classifiers,
        "published": PUBLISHED[name],
    }


def report(found: dict) -> None:
    """Accuracies beside the published ones."""
    stages = sum(sum(c["seconds"].values()) for c in found["classifiers"].values())
    print(f"{found['name']}, seed {found['seed']}: {stages:.0f} s in all stages")
    for title, record in found["classifiers"].items():
        test = record["test"]
        line = (
            f"{title:12} Acc_r {test['retained']:6.2f}  Acc_f {test['forgotten']:6.2f}"
        )
        if title in found["published"]:
            line += "   published {:.2f} / {:.2f}".format(*found["published"][title])
        print(line)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=sorted(PUBLISHED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--data-dir", type=Path)
    results = HERE / "results" / "papers.jsonl"
    parser.add_argument("--results", type=Path, default=results)
    arguments = parser.parse_args()
    for name in arguments.names:
        for seed in arguments.seeds:
            found = run(name, seed, arguments.out, arguments.data_dir)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found, allow_nan=False) + "\n")
            report(found)


if __name__ == "__main__":
    main()
