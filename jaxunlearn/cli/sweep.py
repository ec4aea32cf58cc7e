"""`jaxunlearn sweep`: forget every class by itself, or any sets, in one program."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.table import Table

from jaxunlearn import parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.classifiers import further_metrics
from jaxunlearn.cli.console import Bars, consoles, legend, table, value_of
from jaxunlearn.cli.folder import Kind, OutputFolder
from jaxunlearn.cli.settings import (
    UNLEARNING,
    File,
    Folder,
    MethodSettings,
    Rates,
    TrainingSettings,
    check_names,
    keys,
)
from jaxunlearn.cli.sources import given_original, train_original, with_checkpoint
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.methods import Sweep as Swept
from jaxunlearn.methods import sweep
from jaxunlearn.methods.grid import TOLERANCE, trial_records
from jaxunlearn.methods.requests import class_sets
from jaxunlearn.methods.stacked import WAYS
from jaxunlearn.metrics import METRICS
from jaxunlearn.metrics.evaluation import evaluate, logits
from jaxunlearn.models.files import versions
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, check_classes, split_by_class

SWEEP = Kind(
    name="sweep",
    settings=("request.json",),
    complete=("sweep.json",),
    unfinished=("request.json",),
    beside=True,
)

# Where a sweep goes is not part of what it is.
_ELSEWHERE = ("out", "overwrite", "save_classifiers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(MethodSettings, TrainingSettings):
    """Forget every class by itself, or any sets of classes, each in its own copy.

    Attributes:
      forget: "each" class by itself, or sets of classes such as 0 1,2 for two requests,
        of which the second forgets two classes.
      method: what to forget with.
      learning_rates: the grid from which one rate for all requests is taken: the
        smallest whose mean of Acc_r - Acc_f on validation data is within a point of the
        best. Empty: the method's own, such as --unsc.learning-rate.
      checkpoint: start from this classifier instead of training one, as for run.
      how: how a step of all requests is computed: "vmap", "map" (a loop on the device),
        "one by one", or "auto", whichever is fast here.
      save_classifiers: write every unlearned classifier too.
      out: the sweep's folder; by default runs/DATASET-sweep-METHOD-seed-SEED.
      overwrite: replace the sweep that is there, once the new one is complete.
    """

    examples = (
        "jaxunlearn sweep --forget each",
        "jaxunlearn sweep --forget 3 0,1 --method unsc --save-classifiers",
    )
    first = (
        *("forget", "method", "dataset", "data_dir", "size", "model", "options"),
        *("checkpoint", "learning_rates", "seed", "save_classifiers", "out"),
        "overwrite",
    )

    choices = TrainingSettings.choices | {"method": UNLEARNING}

    forget: Annotated[tuple[str, ...], "each|CLASS,CLASS"] = ("each",)
    method: Annotated[str, "METHOD"] = "unsc"
    learning_rates: Rates = (1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    checkpoint: File | None = None
    how: Annotated[str, "WAY"] = "auto"
    save_classifiers: bool = False
    out: Folder = None
    overwrite: bool = False

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> "Sweep":
        """Those of a checkpoint."""
        path = given.get("checkpoint")
        return cls() if path is None else with_checkpoint(cls(), path)

    @property
    def place(self) -> Path:
        """Where the sweep goes."""
        name = f"{self.label}-sweep-{self.method}-seed-{self.seed}"
        return Path("runs") / name if self.out is None else self.out

    @property
    def requests(self) -> str | list[tuple[int, ...]]:
        """The requests as `jaxunlearn.sweep` takes them."""
        if self.forget == ("each",):
            return "each"
        try:
            return [tuple(map(int, text.split(","))) for text in self.forget]
        except ValueError as error:
            msg = (
                '--forget takes "each" by itself, or sets of classes with commas '
                "inside and blanks between them, such as 0 1,2; it is "
                f"{' '.join(self.forget)!r}."
            )
            raise ValueError(msg) from error

    def check(self) -> None:
        """Check what can be checked before any data are read."""
        super().check()
        check_names("method that a sweep can share", [self.method], UNLEARNING)
        self.check_rates()
        known = ("auto", *WAYS)
        if self.how not in known:
            msg = f"--how must be one of {', '.join(map(repr, known))}; it is {self.how!r}."  # noqa: E501
            raise ValueError(msg)
        for classes in () if self.requests == "each" else self.requests:
            check_classes(classes, self.num_classes(), name="--forget")

    def to_dict(self) -> dict[str, Any]:
        """What decides about the results."""
        return super().to_dict([self.method], _ELSEWHERE)

    def run(self) -> None:
        """Train or load the original, unlearn all requests, print a table, write it."""
        results, progress = consoles()
        self.check()
        folder = OutputFolder(
            self.place, self.to_dict(), kind=SWEEP, overwrite=self.overwrite
        )
        splits = self.load_splits()
        train = splits["train"]
        sets = class_sets(self.requests, train, self.num_classes(), name="--forget")
        for classes in sets:
            for split in ("validation", "test"):
                split_by_class(splits[split], classes)
        given, watch = given_original(self, train.images), Stopwatch()
        with folder:
            with Bars(console=progress) as shown:
                with shown.row("original") as move, watch.stage("original"):
                    original = given or train_original(self, splits, train, move)
                with shown.row(self.method) as move:
                    swept = sweep(
                        original,
                        train,
                        sets,
                        self.settings_of(self.method),
                        key=keys(self.seed)[1],
                        validation=splits["validation"],
                        rates=self.grid_of(self.method),
                        how=self.how,
                        progress=move,
                    )
            watch.add(swept.seconds)
            with watch.stage("evaluation"):
                records = _judge(original, swept, splits["test"])
            if self.save_classifiers:
                _save(self, folder, original, swept, records, train.images.shape[1:])
            record = _record(self, swept, records, splits, watch.seconds)
            folder.write_json("sweep.json", record)
            folder.finish()
        title = f"{self.dataset}, {self.model}, {self.method}, seed {self.seed}"
        results.print(_table(records, title))
        results.print(f"{legend()}\nbefore: of the original.")
        results.print(_cost(swept, watch.seconds, len(train)))
        results.print(f"Written to {self.place}.")


def _record(settings: Sweep, swept: Swept, records, splits, seconds) -> dict[str, Any]:
    """What `sweep.json` holds."""
    names = ("how", "step_seconds", "passes", "samples_read")
    return {
        "settings": settings.to_dict(),
        "requests": records,
        **swept.tuned,
        **{name: getattr(swept, name) for name in names},
        "validation_trials": trial_records(swept.tuned, swept.trials),
        "learning_rate_rule": "the smallest of the grid whose mean over requests of "
        f"Acc_r - Acc_f on validation data is within {TOLERANCE:g} of the best",
        "seconds": seconds,
        "samples": {split: len(data) for split, data in splits.items()},
        "versions": versions(),
        "device": parallel.device_kind(),
    }


def _save(settings: Sweep, folder: OutputFolder, original, swept, records, shape):
    """The original and every unlearned classifier, each with its card."""
    card = {"image_shape": shape, "forgotten": ()}
    settings.save(folder, "original", original, {}, name="original", **card)
    for record, result in zip(records, swept.results, strict=True):
        card["forgotten"] = tuple(record["forget"])
        name = f"forget-{'-'.join(map(str, record['forget']))}"
        details = {"accuracies": {"test": record["test"]}}
        settings.save(
            folder, name, result.classifier, details, name=settings.method, **card
        )


def _judge(original: Classifier, swept: Swept, test: Data) -> list[dict[str, Any]]:
    """What became of each request, on test data."""
    outputs = logits(original, test.images)
    # Without forgotten classes it is the same for all requests.
    per_class = evaluate(original, test, ()).per_class
    records = []
    parts = (swept.requests, swept.results, swept.evaluate(test))
    for classes, result, evaluation in zip(*parts, strict=True):
        kept = ~np.isin(test.labels, classes)
        after = logits(result.classifier, test.images)[kept]
        forgotten = np.isin(np.arange(len(per_class)), classes)
        before = {"retained": ~forgotten, "forgotten": forgotten}
        records.append(
            {
                "forget": list(classes),
                "test": evaluation,
                "before": {n: np.nanmean(per_class[c]) for n, c in before.items()},
                **further_metrics(evaluation, after, outputs[kept]),
                "losses": result.trace.losses,
                "ranks": result.trace.ranks,
                "samples_read": result.trace.samples_read,
            }
        )
    return to_dict(records)


def _table(records: Sequence[dict[str, Any]], title: str) -> Table:
    """One row for each request, and the means over them."""
    # An accuracy has the original's beside it.
    before, headings = records[0]["before"], []
    for name, metric in METRICS.items():
        headings.append(f"{metric.heading} {metric.unit}".strip())
        headings += ["before"] * (name in before)
    rows = table(title, ["forget"], headings)
    rows.columns[0].no_wrap, rows.columns[0].max_width = False, 24

    def add(label: str, records: Sequence[dict[str, Any]]) -> None:
        cells = []
        for name, metric in METRICS.items():
            cells.append(metric.text(np.mean([value_of(r, name) for r in records])))
            if name in before:
                values = [record["before"][name] for record in records]
                cells.append(metric.text(np.mean(values)))
        rows.add_row(label, *cells)

    for record in records:
        add(", ".join(map(str, record["forget"])), [record])
    if len(records) > 1:
        rows.add_section()
        add("mean", records)
    return rows


def _cost(swept: Swept, seconds: dict[str, float], samples: int) -> str:
    """Data passes and seconds, in sentences."""
    passes = swept.passes
    timed = ", ".join(
        f"{name} {value:.1f}" for name, value in seconds.items() if name != "compile"
    )
    if swept.proxies is None:
        source = f"{passes['statistics']} over {samples:,} training images"
    else:
        source = f"{passes['statistics']} over {len(swept.proxies):,} proxies"
    turns = "" if swept.at_once == 1 else f", {swept.at_once} at a time"
    tuned = "".join(f"{n.replace('_', ' ')} {x:g}, " for n, x in swept.tuned.items())
    text = (
        f"{len(swept.requests)} requests at {tuned}"
        f"steps {swept.how}{turns}. Data passes: {source} for statistics, "
        f"{passes['labels']} for new labels. Seconds: {timed}; compilation apart "
        f"{seconds['compile']:.1f}."
    )
    return textwrap.fill(text, 80)
