"""`jaxunlearn run`: train, forget, compare."""

import dataclasses
import functools
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.cli.classifiers import RunClassifiers, title_of
from jaxunlearn.cli.console import (
    AUDIT_LEGEND,
    SAMPLE_AUDIT_LEGEND,
    Bars,
    audit_table,
    comparison,
    consoles,
    legend,
)
from jaxunlearn.cli.folder import Kind, OutputFolder
from jaxunlearn.cli.indices import write_indices
from jaxunlearn.cli.judging import SAMPLE_METRICS
from jaxunlearn.cli.plots import plot_accuracies
from jaxunlearn.cli.processes import Distributed, is_first, joined
from jaxunlearn.cli.samples import Forgotten, SampleSettings, short_hash
from jaxunlearn.cli.settings import (
    RATE_RULE,
    SAMPLE_RATE_RULE,
    Classes,
    File,
    Folder,
    Method,
    MethodSettings,
    SeededSettings,
    circumstances,
)
from jaxunlearn.cli.sources import given_original, with_checkpoint
from jaxunlearn.methods.rules import NotForgotten
from jaxunlearn.metrics import METRICS
from jaxunlearn.metrics.evaluation import class_label
from jaxunlearn.serialization import from_dict, read_json
from jaxunlearn.tasks import Data

RUN = Kind(
    name="run",
    settings=("request.json",),
    complete=("metrics.json",),
    written=("*.json", "*.safetensors", "*.png", "*.npz", "*.txt"),
    unfinished=("pieces", "request.json"),
    beside=True,
)

# Where a run keeps which samples it forgets.
_INDICES = "forget_indices.txt"

# Training samples up to which a run audits by itself.
_AUDITED = 5000

# Where a run goes, and on how many processes, is not part of what it is.
_ELSEWHERE = ("out", "overwrite", "config") + tuple(
    field.name for field in dataclasses.fields(Distributed)
)

_LEGEND = """\
seconds: at the final rate, without compilation, which the first to need a
program pays for all.
rate: learning rate, """

_EDGE = "edge: an end of all rates that were tried; a better one may lie beyond it."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Distributed, SampleSettings, MethodSettings, SeededSettings):
    """Train a classifier, forget classes or samples by several methods, compare.

    Attributes:
      forget: the classes to forget.
      methods: what to compare.
      checkpoint: start from this classifier instead of training one: a .safetensors
        file of jaxunlearn, which sets the defaults of --dataset, --size, --mean,
        --std, --model, --options and --split-seed; or PyTorch's parameters of that
        --model.
      audit: on data sets of at most 5,000 training samples, say what is left of the
        forgotten classes beside two retrained models; jaxunlearn audit does so for
        others.
      judge_proxies: measure how well CovarNav's proxies stand in for the retained data,
        and what it does with true images instead.
      out: the run's folder; by default runs/DATASET-forget-CLASSES-seed-SEED, or with
        random-N or the name of the file of indices instead of classes.
      overwrite: replace what is there, once the new run is complete.
      config: the config.json of a run, whose values become the defaults of all flags.
    """

    examples = (
        "jaxunlearn run --forget 3",
        "jaxunlearn run --forget 3 5 --methods unsc retrain --unsc.energy 0.95",
        "jaxunlearn run --forget-random 10% --forget-seed 0",
    )
    first = (
        *(
            "forget",
            "forget_indices",
            "forget_random",
            "methods",
            "dataset",
            "data_dir",
            "size",
            "model",
            "options",
        ),
        *("recipe.epochs", "checkpoint", "learning_rates", "audit", "judge_proxies"),
        *("seed", "out", "overwrite", "config"),
    )

    forget: Classes = (3,)
    methods: tuple[Method, ...] = ("covarnav", "unsc", "unprojected", "retrain")
    checkpoint: File | None = None
    audit: bool = True
    judge_proxies: bool = True
    out: Folder = None
    overwrite: bool = False
    config: File | None = None

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> "Run":
        """Those of a stored configuration, then of a checkpoint."""
        run = cls()
        if given.get("config") is not None:
            run = read_config(given["config"])
        if given.get("checkpoint") is not None:
            run = with_checkpoint(run, given["checkpoint"])
        return dataclasses.replace(run, **cls.instead(given))

    @property
    def place(self) -> Path:
        """Where the run goes."""
        name = f"{self.label}-forget-{self.forgotten_label}-seed-{self.seed}"
        return Path("runs") / name if self.out is None else self.out

    def check(self) -> None:
        """Check what can be checked before any data are read."""
        super().check()
        self.check_processes()
        if not self.methods or len({*self.methods}) < len(self.methods):
            msg = f"--methods takes at least one method, each once; it is {list(self.methods)}."  # noqa: E501
            raise ValueError(msg)
        self.check_forgotten(self.methods)

    def to_dict(self) -> dict[str, Any]:
        """What makes two runs the same: all but where they go."""
        return super().to_dict(self.methods, _ELSEWHERE)

    def run(self) -> None:
        """Do all of it, and print the table; alone, or as one of several processes."""
        self.check()
        numbers = () if self.samplewise else self.forget_numbers(self.forget)
        with joined(self):
            _run(dataclasses.replace(self, forget=numbers))


def read_config(path: Path) -> Run:
    """A run's stored configuration."""
    if not path.is_file():
        msg = f"There is no file {path}: --config takes the config.json of a run."
        raise ValueError(msg)
    stored = read_json(path)
    try:
        return from_dict(Run(), stored)
    except (ValueError, TypeError) as error:
        msg = f"{path} is no configuration of a run. {error}"
        raise ValueError(msg) from error


def _run(settings: Run) -> None:
    results, progress = consoles(quiet=not is_first())
    splits = settings.load_splits()
    forgotten = settings.forgotten(splits["train"], settings.seed)
    forgotten.check_splits(splits)
    if samples := forgotten.record():
        settings = dataclasses.replace(settings, samples_sha256=samples["sha256"])
    given = given_original(settings, splits["train"].images)
    folder = OutputFolder(
        settings.place,
        settings.to_dict(),
        kind=RUN,
        resume=True,
        overwrite=settings.overwrite,
    )
    if folder.resumed:
        progress.print(f"Taking up the unfinished run in {folder.work}.")
    with folder, warnings.catch_warnings():
        # It stands in the records, and below the table.
        warnings.simplefilter("ignore", NotForgotten)
        if samples:
            write = functools.partial(write_indices, indices=forgotten.indices)
            folder.write(_INDICES, write)
        with Bars(console=progress) as shown:
            classifiers = RunClassifiers(settings, splits, folder, shown, forgotten)
            records = {"original": classifiers.original(given)}
            for name in settings.methods:
                records[title_of(name)] = classifiers.unlearned(name)
            judged = settings.judge_proxies and "covarnav" in settings.methods
            proxies = classifiers.proxies() if judged else None
            audited = settings.audit and len(splits["train"]) <= _AUDITED
            # A retrained model is the measure, and something else is measured.
            audited &= "retrain" in settings.methods and len(settings.methods) > 1
            audits = classifiers.audits() if audited else None
        found = {"classifiers": records, "proxies": proxies, "audits": audits}
        _write(settings, folder, splits, found, forgotten)
        folder.finish()
    _print(settings, results, found, forgotten, splits["test"].class_names)
    results.print(f"Written to {folder.place}.")


def _print(settings: Run, results, found, forgotten: Forgotten, names) -> None:
    """The tables, and what is to be said of them."""
    records, samples = found["classifiers"], forgotten.record()
    what = ", ".join(class_label(c, names) for c in forgotten.classes)
    if samples:
        what = f"{samples['count']} samples ({short_hash(samples['sha256'])})"
    title = f"{settings.dataset}, {settings.model}, forget {what}, seed {settings.seed}"
    metrics = SAMPLE_METRICS if samples else METRICS
    results.print(comparison(records, title, metrics))
    results.print(legend(metrics, "") if samples else legend())
    chosen = "chosen on validation data by one rule for all."
    results.print(_LEGEND + (chosen if settings.learning_rates else "set by hand."))
    if any(record.get("at_edge") for record in records.values()):
        results.print(_EDGE)
    if samples:
        drawn = "" if samples["seed"] is None else f", drawn by seed {samples['seed']}"
        said = f"The samples{drawn}: {_INDICES}, SHA-256\n{samples['sha256']}."
        results.print(said)
    for record in records.values():
        if record.get("caution"):
            results.print(textwrap.fill(record["caution"], 80))
    if found["proxies"] is not None:
        results.print(_judgement(found["proxies"]))
    if found["audits"]:
        results.print(audit_table(found["audits"]))
        results.print(SAMPLE_AUDIT_LEGEND if samples else AUDIT_LEGEND)


def _write(
    settings: Run,
    folder: OutputFolder,
    splits: dict[str, Data],
    found: dict[str, Any],
    forgotten: Forgotten,
) -> None:
    """The files that need all of the run: configuration, metrics, accuracies."""
    folder.write_json("config.json", settings.to_dict())
    samples = forgotten.record()
    rule = (
        f"the smallest of the grid whose {SAMPLE_RATE_RULE if samples else RATE_RULE}"
    )
    metrics = found | {"learning_rate_rule": rule}
    if samples:
        metrics["forgotten_samples"] = samples
    folder.write_json("metrics.json", metrics | circumstances(splits))
    per_class = {n: r["test"]["per_class"] for n, r in found["classifiers"].items()}
    marked = {"forget_classes": forgotten.classes}
    marked["class_names"] = splits["test"].class_names
    folder.write(
        "accuracies.png", lambda path: plot_accuracies(path, per_class, **marked)
    )


def _judgement(proxies: dict[str, Any]) -> str:
    """What the numbers on proxies come to."""
    captured = {n: c for n, c in proxies["captured_energy"].items() if c is not None}
    least = min(captured, key=captured.__getitem__)
    second = proxies["second_accuracy"]
    others = "" if second is None else f", the retrained one {second:.0f} %"
    true = proxies["with_true_images"]
    shown = SAMPLE_METRICS if "test_samples" in true else METRICS
    values = ", ".join(f"{m.heading} {m.text(true[n])}" for n, m in shown.items())
    text = (
        f"CovarNav's proxies capture at least {100 * captured[least]:.1f} % of the "
        f"retained data's energy in a layer ({least}). The original recognises "
        f"{proxies['accuracy']:.0f} %{others}. With as many true images instead: "
        f"{values}."
    )
    return textwrap.fill(text, 80)
