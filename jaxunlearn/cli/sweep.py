"""`jaxunlearn sweep`: forget every class by itself, or any sets, in one program."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from rich.table import Table

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.classifiers import further_metrics
from jaxunlearn.cli.console import (
    Bars,
    classes_left_out,
    consoles,
    legend,
    metric_cells,
    table,
)
from jaxunlearn.cli.folder import Kind, OutputFolder
from jaxunlearn.cli.plots import plot_requests
from jaxunlearn.cli.settings import (
    RATE_RULE,
    File,
    Folder,
    MethodSettings,
    Rates,
    SeededSettings,
    UnlearningMethod,
    circumstances,
    keys,
)
from jaxunlearn.cli.sources import given_original, train_network, with_checkpoint
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.methods import Sweep as Swept
from jaxunlearn.methods import sweep
from jaxunlearn.methods.grid import trial_records
from jaxunlearn.methods.requests import class_sets
from jaxunlearn.methods.stacked import WAYS
from jaxunlearn.metrics import METRICS
from jaxunlearn.metrics.evaluation import class_label, evaluate, logits
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, split_by_class

SWEEP = Kind(
    name="sweep",
    settings=("request.json",),
    complete=("sweep.json",),
    unfinished=("request.json",),
    beside=True,
)

# Training samples up to which networks are retrained unless told otherwise.
_RETRAINED = 5000

# Where a sweep goes is not part of what it is.
_ELSEWHERE = ("out", "overwrite", "save_classifiers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(MethodSettings, SeededSettings):
    """Forget every class by itself, or any sets of classes, each in its own copy.

    Attributes:
      forget: each class by itself; or sets of classes: 0 1,2 are two requests, of which
        the second forgets two classes.
      method: what to forget with.
      learning_rates: the grid from which one rate for all requests is taken: the
        smallest whose mean of Acc_r - Acc_f on validation data is within a point of the
        best. Empty: the method's own, such as --unsc.learning-rate.
      checkpoint: start from this classifier instead of training one, as for run.
      retrained: train a network without the classes of each request, the target of all
        numbers. By default on data sets of at most 5,000 training samples;
        --no-retrained never.
      how: how a step of all requests is computed; map is a loop on the device, and
        auto whichever is fast here.
      save_classifiers: write every unlearned classifier, and the retrained ones, too.
      out: the sweep's folder; by default runs/DATASET-sweep-METHOD-seed-SEED.
      overwrite: replace the sweep that is there, once the new one is complete.
    """

    examples = (
        "jaxunlearn sweep --forget each",
        "jaxunlearn sweep --forget 3 0,1 --method unsc --save-classifiers",
    )
    first = (
        *("forget", "method", "dataset", "data_dir", "size", "model", "options"),
        *("checkpoint", "learning_rates", "retrained", "seed"),
        *("save_classifiers", "out", "overwrite"),
    )

    forget: Annotated[tuple[str, ...], "each|CLASS,CLASS"] = ("each",)
    method: UnlearningMethod = "unsc"
    learning_rates: Rates = (1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    checkpoint: File | None = None
    retrained: bool | None = None
    how: Literal["auto", *WAYS] = "auto"
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

    def check(self) -> None:
        """Check what can be checked before any data are read."""
        super().check()
        self.forget_sets(self.forget)

    def retrains(self, train: Data) -> bool:
        """Whether networks are retrained."""
        return len(train) <= _RETRAINED if self.retrained is None else self.retrained

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
        if folder.is_done(results):
            return
        splits = self.load_splits()
        train = splits["train"]
        sets = class_sets(
            self.forget_sets(self.forget), train, self.num_classes(), name="--forget"
        )
        for classes in sets:
            for split in ("validation", "test"):
                split_by_class(splits[split], classes)
        given, watch = given_original(self, train.images), Stopwatch()
        with folder:
            with Bars(console=progress) as shown:
                with shown.row("original") as move, watch.stage("original"):
                    original = given or train_network(self, splits, train, move)
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
                retrained = []
                if self.retrains(train):
                    with shown.row("retrained") as move, watch.stage("retrained"):
                        retrained = _retrained(self, splits, sets, original, move)
            watch.add(swept.seconds)
            with watch.stage("evaluation"):
                records = _judge(original, swept, retrained, splits["test"])
            if self.save_classifiers:
                made = original, swept, retrained
                _save(self, folder, *made, records, train.images.shape[1:])
            title = f"{self.dataset}, {self.model}, {self.method}, seed {self.seed}"
            for file in ("accuracies.png", "accuracies.pdf"):
                folder.write(file, lambda path: _draw(path, self, records, title))
            record = _record(self, swept, records, splits, watch.seconds)
            folder.write_json("sweep.json", record)
            folder.finish()
        results.print(_table(records, title))
        results.print(f"{legend()}\nbefore: of the original.")
        if retrained:
            results.print(
                "retrained: of a network that never saw the classes: the aim."
            )
        results.print(_cost(swept, watch.seconds, len(train)))
        results.print(f"Written to {self.place}.")


def _record(settings: Sweep, swept: Swept, records, splits, seconds) -> dict[str, Any]:
    """What `sweep.json` holds."""
    shared = ("at_edge", "how", "step_seconds", "passes", "samples_read")
    return {
        "settings": settings.to_dict(),
        "requests": records,
        **swept.tuned,
        **{name: getattr(swept, name) for name in shared},
        "validation_trials": trial_records(swept.tuned, swept.trials),
        "learning_rate_rule": "the smallest of the grid whose mean over requests of "
        + RATE_RULE,
        "seconds": seconds,
        **circumstances(splits),
    }


def _retrained(settings: Sweep, splits, sets, original, progress) -> list[Classifier]:
    """A network for each request, trained without its classes as `run` trains one."""
    given = {"key": keys(settings.seed)[1], "preprocess": original.preprocess}
    made = []
    for classes in sets:
        progress("networks", len(made), len(sets))
        kept = split_by_class(splits["train"], classes)[1]
        with classes_left_out():
            made.append(train_network(settings, splits, kept, None, **given))
    progress("networks", len(made), len(sets))
    return made


def _save(
    settings: Sweep, folder: OutputFolder, original, swept, retrained, records, shape
):
    """The original and every classifier of a request, each with its card."""
    card = {"image_shape": shape, "forgotten": ()}
    settings.save(folder, "original", original, {}, name="original", **card)
    for number, record in enumerate(records):
        card["forgotten"] = tuple(record["forget"])
        file = f"forget-{'-'.join(map(str, record['forget']))}"
        made = {settings.method: (file, swept.results[number].classifier, "test")}
        if retrained:
            file = f"{file}-retrained"
            made["retrained"] = (file, retrained[number], "retrained")
        for name, (file, classifier, entry) in made.items():
            details = {"accuracies": {"test": record[entry]}}
            settings.save(folder, file, classifier, details, name=name, **card)


def _judge(
    original: Classifier, swept: Swept, retrained: Sequence[Classifier], test: Data
) -> list[dict[str, Any]]:
    """What became of each request, on test data."""
    outputs = logits(original, test.images)
    # Without forgotten classes it is the same for all requests.
    per_class = evaluate(original, test, ()).per_class
    records = []
    parts = (swept.requests, swept.results, swept.evaluate(test))
    for number, (classes, result, evaluation) in enumerate(zip(*parts, strict=True)):
        kept = ~np.isin(test.labels, classes)
        after = logits(result.classifier, test.images)[kept]
        forgotten = np.isin(np.arange(len(per_class)), classes)
        before = {"retained": ~forgotten, "forgotten": forgotten}
        before = {n: np.nanmean(per_class[c]) for n, c in before.items()}
        target = gap = None
        if retrained:
            target = evaluate(retrained[number], test, classes)
            gap = {n: getattr(evaluation, n) - getattr(target, n) for n in before}
        spent = ("losses", "ranks", "surviving_gradient", "samples_read")
        records.append(
            {
                "forget": list(classes),
                "test": evaluation,
                "before": before,
                "retrained": target,
                "gap": gap,
                **further_metrics(evaluation, after, outputs[kept]),
                **{name: getattr(result.trace, name) for name in spent},
            }
        )
    return to_dict(records)


def _table(records: Sequence[dict[str, Any]], title: str) -> Table:
    """One row for each request, and the means over them."""
    headings = [heading for heading, _ in metric_cells(records)]
    rows = table(title, ["forget"], headings)
    rows.columns[0].no_wrap, rows.columns[0].max_width = False, 24
    rows.pad_edge, rows.collapse_padding = False, True

    def add(label: str, records: Sequence[dict[str, Any]]) -> None:
        rows.add_row(label, *(text for _, text in metric_cells(records)))

    for record in records:
        add(_label(record), [record])
    if len(records) > 1:
        rows.add_section()
        add("mean", records)
    return rows


def _label(record: Mapping[str, Any]) -> str:
    names = record["test"]["class_names"]
    return ", ".join(class_label(c, names) for c in record["forget"])


def _draw(path: Path, settings: Sweep, records, title: str) -> None:
    """The table as a picture."""
    named = {"original": "before", settings.method: "test", "retrained": "retrained"}
    accuracies = {
        name: {
            f"{metric.heading}, {metric.unit}": [record[entry][m] for record in records]
            for m, metric in METRICS.items()
            if m in records[0]["before"]
        }
        for name, entry in named.items()
        if records[0][entry]
    }
    plot_requests(path, accuracies, [_label(r) for r in records], title=title)


def _cost(swept: Swept, seconds: dict[str, float], samples: int) -> str:
    """Data passes and seconds, in sentences."""
    timed = (f"{name} {x:.1f}" for name, x in seconds.items() if name != "compile")
    read = f"{samples:,} training images"
    if swept.proxies is not None:
        read = f"{len(swept.proxies):,} proxies"
    tuned = "".join(f"{n.replace('_', ' ')} {x:g}, " for n, x in swept.tuned.items())
    turns = "" if swept.at_once == 1 else f", {swept.at_once} at a time"
    text = (
        f"{len(swept.requests)} requests at {tuned}steps {swept.how}{turns}. Data "
        f"passes: {swept.passes['statistics']} over {read} for statistics, "
        f"{swept.passes['labels']} for new labels. Seconds: {', '.join(timed)}; "
        f"compilation apart {seconds['compile']:.1f}."
    )
    return textwrap.fill(text, 80)
