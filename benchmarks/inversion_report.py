"""Tables and a picture of what `inversion.py` measured."""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
SOURCES = ("uniform", "gaussian", "matched", "inverted", "retained")


def table(records: list[dict]) -> str:
    """A row of Markdown for each variant."""
    levels = list(records[0]["retained_at"])
    heads = [f"Acc_r at Acc_f {float(v):g}" for v in levels]
    heads += [f"change at {float(v):g}" for v in levels]
    names = ["variant", "images", "captured, mean", "least", "model %", "second %"]
    lines = ["| " + " | ".join([*names, *heads]) + " |"]
    lines.append("|---" + "|---:" * (len(names) + len(heads) - 1) + "|")
    for record in records:
        quality = record["quality"]
        cells = [record["variant"], str(record["images"])]
        cells += [f"{record[n]:.4f}" for n in ("mean_captured", "least_captured")]
        cells += [f"{quality[n]:.1f}" for n in ("accuracy", "second_accuracy")]
        for name, digits in (("retained_at", 2), ("change_at", 3)):
            values = record[name].values()
            cells += ["-" if v is None else f"{v:.{digits}f}" for v in values]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def layers(records: list[dict]) -> str:
    """Captured energy layer by layer, a column for each source."""
    names = list(records[0]["quality"]["captured_energy"])
    lines = ["| layer | " + " | ".join(r["variant"] for r in records) + " |"]
    lines.append("|---" + "|---:" * len(records) + "|")
    for name in names:
        cells = []
        for record in records:
            quality = record["quality"]
            ranks = ", ".join(map(str, quality["ranks"][name]))
            cells.append(f"{quality['captured_energy'][name]:.4f} ({ranks})")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(datasets: dict[str, list[dict]], path: Path) -> None:
    """Energy that is not captured, by layer, and how far retained logits move."""
    figure = Figure(figsize=(10, 3.4 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), 2, squeeze=False)
    for (name, records), (left, right) in zip(datasets.items(), grid, strict=True):
        for record in records:
            energy = np.array(list(record["quality"]["captured_energy"].values()))
            missed = np.maximum(1 - energy, 1e-3)
            left.semilogy(range(len(missed)), missed, ".-", label=record["variant"])
            points = np.array([p for p in record["points"] if p[1] is not None])
            right.plot(points[:, 2], points[:, 3], ".-", label=record["variant"])
        left.set_xlabel("layer, in the table's order")
        left.xaxis.get_major_locator().set_params(integer=True)
        left.set_ylabel("energy not captured")
        left.set_title(f"{name}: at least .001 is shown")
        right.set_xlabel(f"Acc_f, % ({records[0]['split']})")
        right.set_ylabel("change of retained logits")
        right.set_title(f"{name}: CovarNav over learning rates")
        right.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the tables of the given results, and draw the sources."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    datasets: dict[str, list[dict]] = {}
    for path in arguments.results:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        print(f"\n{path.stem}\n\n{table(records)}")
        sources = [r for r in records if r["variant"] in SOURCES]
        if len(sources) == len(SOURCES):
            print(f"\n{layers(sources)}")
            datasets[records[0]["dataset"]] = sources
    if arguments.plot is not None and datasets:
        plot(datasets, arguments.plot)


if __name__ == "__main__":
    main()
