"""Compare each stage of unlearning with PyTorch.

    python -m benchmarks.compare
    python -m benchmarks.compare --released
    python -m benchmarks.compare --model resnet18 --device gpu --compile

Each side has a process of its own; both get the same weights, images, labels and order,
and take turns. The first call of a stage, in which programs are compiled, is told
apart. One JSON line a stage, with hardware, versions and commit.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import tyro

from . import arithmetic, report
from .agreement import compared
from .inputs import PROJECTIONS, Inputs
from .options import Options
from .workers import Worker

RESULTS = Path(__file__).parents[1] / "results"
WHOLE = ("unsc", "covarnav")
# What the released procedure is compared with.
BASES = ("statistics", "subspaces")

# What peaks are of. Those of JAX's allocator cannot be reset.
ON_HOST = "resident in the side's process, less what was before the call"
ON_DEVICE = (
    "of the allocator on the device: in PyTorch since the call began, in JAX since the "
    "start of a process that made the inputs and then ran this stage alone"
)


def main() -> None:
    """Run what the command line asks for."""
    options = tyro.cli(Options, description=__doc__)
    cuda = uses_gpu(options)
    results = options.results
    if results is None:
        where = "gpu" if cuda else "cpu"
        results = RESULTS / f"compare_{options.model}_{where}.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        Comparison(options, Path(folder), cuda, results).run()
    report.console.print(f"Results are in {results}.")


def uses_gpu(options: Options) -> bool:
    """Whether the comparison runs on a GPU."""
    if options.device != "auto":
        return options.device == "gpu"
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return found.returncode == 0 and b"GPU" in found.stdout


class Comparison:
    """Both sides, and what is asked of them.

    Args:
      options: of the command line.
      folder: for what both sides start from.
      cuda: whether they use a GPU.
      results: a file to append to.
    """

    def __init__(self, options: Options, folder: Path, cuda: bool, results: Path):
        self.options, self.folder, self.cuda = options, folder, cuda
        self.results = results
        self.context: dict[str, Any] = {}
        self.seconds: dict[str, dict[str, float]] = {}

    def run(self) -> None:
        """Everything, in the order in which it is told."""
        names = ["jax", "torch", *["torch_compiled"] * self.options.compile]
        workers: dict[str, Worker] = {}
        try:
            for side in names:
                workers[side] = self._worker(side)
            self._describe(workers)
            if self.options.agreement:
                self._agreement(workers)
            for stage in self.options.stages:
                self._stage(stage, workers)
            self._shares()
            if self.options.released:
                self._released(workers["torch"])
        finally:
            for worker in workers.values():
                worker.close()

    def _worker(self, side: str) -> Worker:
        return Worker(side, self.options, self.folder, self.cuda)

    def _describe(self, workers: dict[str, Worker]) -> None:
        found = [workers[side].ask("describe") for side in ("jax", "torch")]
        plain = vars(self.options) | {"data_dir": str(self.options.data_dir or "")}
        plain.pop("results")
        self.context = {
            "options": plain,
            "device": found[1]["device"],
            "versions": found[0]["versions"] | found[1]["versions"],
            "images": "CIFAR-10" if self.options.data_dir else "random",
            "weights": "random",
            "peak_bytes_are": ON_DEVICE if self.cuda else ON_HOST,
            **report.machine(),
        }
        inputs = Inputs.load(self.folder)
        counts = len(inputs.retained), len(inputs.forgotten)
        layers = workers["jax"].ask("layers")
        self.operations = arithmetic.operations(self.options, layers, *counts)
        self.peaks = arithmetic.peaks(self.context["device"]) if self.cuda else {}
        self._write({"kind": "layers", "layers": layers})

    def _write(self, record: dict[str, Any]) -> None:
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, **self.context}) + "\n")

    def _agreement(self, workers: dict[str, Worker]) -> None:
        ours = workers["jax"].ask("agreement")
        found = compared(ours, workers["torch"].ask("agreement", ours))
        self._write({"kind": "agreement", "agreement": found})
        report.console.print(report.agreement_table(found))

    def _stage(self, stage: str, workers: dict[str, Worker]) -> None:
        able = {n: w for n, w in workers.items() if stage in w.ask("stages")}
        repeats = self.options.repeats
        if stage in WHOLE:
            repeats = self.options.request_repeats
        calls = {side: [worker.ask("call", stage)] for side, worker in able.items()}
        for _ in range(repeats):
            for side, worker in able.items():
                calls[side].append(worker.ask("call", stage))
        if self.cuda:
            fresh = self._worker("jax")
            peak = fresh.ask("call", stage)["peak_bytes"]
            fresh.close()
            calls["jax"] = [{**call, "peak_bytes": peak} for call in calls["jax"]]
        record = report.stage_record(stage, calls)
        record = report.with_rates(record, self.operations.get(stage), self.peaks)
        self.seconds[stage] = {
            side: found["seconds"]["median"] for side, found in record["sides"].items()
        }
        self._write({"kind": "stage", **record})
        report.console.print(report.stage_table(record))

    def _shares(self) -> None:
        """Of the projection in an unlearning step."""
        if not {"projection", "unlearning"} <= self.seconds.keys():
            return
        steps = self.options.steps
        shares = {}
        for side, seconds in self.seconds["projection"].items():
            step = self.seconds["unlearning"][side] / steps
            shares[side] = {"by_itself": seconds / PROJECTIONS / step}
            if "unprojected" in self.seconds:
                free = self.seconds["unprojected"][side] / steps
                shares[side]["by_difference"] = 1 - free / step
        self._write({"kind": "projection", "share_of_a_step": shares})
        for side, share in shares.items():
            told = ", ".join(f"{100 * v:.2f} % {k}" for k, v in share.items())
            report.console.print(f"projection's share of a step, {side}: {told}")

    def _released(self, torch: Worker) -> None:
        """Beside the statistics and subspaces of both sides, and whole requests."""
        found = torch.ask("released")
        total, seconds = found["seconds"], self.seconds
        ratios: dict[str, dict[str, float]] = {}
        if set(BASES) <= seconds.keys():
            both = {
                side: sum(seconds[stage][side] for stage in BASES)
                for side in ("jax", "torch")
            }
            ratios["statistics and subspaces"] = {
                side: total / own for side, own in both.items()
            }
            if "unsc" in seconds:
                # The port's request, with the released bases in the place of its own.
                whole = total + seconds["unsc"]["torch"] - both["torch"]
                ratios["whole request"] = {
                    side: whole / own for side, own in seconds["unsc"].items()
                }
        self._write({"kind": "released", **found, "ratio": ratios})
        report.console.print(f"released procedure: {total:.0f} s")
        for what, by_side in ratios.items():
            told = ", ".join(f"{side} {ratio:.1f}" for side, ratio in by_side.items())
            report.console.print(f"  {what}, times as fast: {told}")


if __name__ == "__main__":
    main()
