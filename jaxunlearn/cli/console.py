"""What a person sees while a command works, and the table at its end."""

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from jaxunlearn.cli.processes import is_first
from jaxunlearn.metrics import METRICS, Metric

_ON_TEST = "On the test data:"

# What is timed, but not a cost of the method at its final learning rate.
_APART = ("compile", "rates")


def consoles(*, quiet: bool = False) -> tuple[Console, Console]:
    """One for results, on stdout, and one for progress, on stderr.

    Text is printed as it is: a path may hold brackets. Of several processes all but one
    are quiet.
    """
    plain = functools.partial(
        Console, markup=False, highlight=False, soft_wrap=True, quiet=quiet
    )
    return plain(), plain(stderr=True)


class Bars(Progress):
    """A bar for each classifier, with the stage of its making and a note below."""

    note = ""

    @classmethod
    def get_default_columns(cls) -> tuple[ProgressColumn, ...]:
        """Name, stage, bar, count and time."""
        return (
            TextColumn("{task.description:<12}"),
            TextColumn("{task.fields[stage]:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, and the note if there is one."""
        yield from super().get_renderables()
        if self.note:
            # The console itself cuts lines instead of breaking them.
            yield Text(self.note, no_wrap=False, overflow="fold")

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Write values below the bars: a `callback` of the library's functions."""
        del step
        self.note = "  ".join(f"{name}={value:.3g}" for name, value in values.items())

    @contextlib.contextmanager
    def row(
        self, name: str, *, keep: bool = True
    ) -> Iterator[Callable[[str, int, int], None]]:
        """A bar for the `with` statement, moved by (stage, done, total)."""
        task = self.add_task(name, total=None, stage="preparing")

        def move(stage: str, done: int, total: int) -> None:
            self.update(task, stage=stage, completed=done, total=total)

        yield move
        self.update(task, stage="done", visible=keep)


def loaded(names: Sequence[str], load: Callable[[str], Any]) -> list[Any]:
    """What `load` makes of each name; a bar shows that it takes a while.

    What it warns of is shown once.
    """
    console = consoles(quiet=not is_first())[1]
    quiet = {"transient": True, "disable": not console.is_terminal}
    some = []
    with (
        warnings.catch_warnings(record=True) as caught,
        Bars(console=console, **quiet) as shown,
        shown.row("data") as move,
    ):
        warnings.simplefilter("always", UserWarning)
        for number, name in enumerate(names):
            move(name, number, len(names))
            some.append(load(name))
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        console.print(message)
    return some


@contextlib.contextmanager
def library_warnings(console: Console) -> Iterator[None]:
    """What the library warns of, above the progress bars."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: console.print(record.getMessage())
    logger = logging.getLogger("jaxunlearn")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def classes_left_out() -> Iterator[None]:
    """Training in which it is the purpose, and no warning, that a class is missing."""
    logger = logging.getLogger("jaxunlearn.training")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def table(title: str | None, names: Iterable[str], numbers: Iterable[str]) -> Table:
    """A table without rows: columns of names on the left, of numbers on the right."""
    empty = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in names:
        empty.add_column(name, no_wrap=True)
    for heading in numbers:
        empty.add_column(heading, justify="right", no_wrap=True)
    return empty


def metric_cells(
    records: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric] = METRICS
) -> Iterator[tuple[str, str]]:
    """Heading and text of every metric, means over records as JSON files hold them.

    Beside a metric stand the original's and the retrained network's, where the records
    have them.
    """
    for name, metric in metrics.items():
        # An accuracy on test data, or an entry of its own.
        values = [record["test"].get(name, record.get(name)) for record in records]
        mean = None if None in values else np.mean(values)
        yield f"{metric.heading} {metric.unit}".strip(), metric.text(mean)
        for other in ("before", "retrained"):
            if name in (records[0].get(other) or ()):
                beside = [record[other][name] for record in records]
                yield other, metric.text(np.mean(beside))


def comparison(
    records: Mapping[str, Mapping[str, Any]],
    title: str,
    metrics: Mapping[str, Metric] = METRICS,
) -> Table:
    """One row for each classifier, of what `metrics.json` holds of it."""
    headings = [heading for heading, _ in metric_cells(list(records.values()), metrics)]
    # A line of 80 characters holds seven columns of numbers beside the names.
    timed = ["seconds", "compile"] if len(headings) < 5 else ["seconds"]
    rows = table(title, ["classifier"], [*headings, *timed, "rate"])
    for name, record in records.items():
        seconds, tuned = record["seconds"], record["tuned"].items()
        spent = sum(seconds[s] for s in seconds if s not in _APART)
        costs = dict(seconds=spent, compile=seconds["compile"])
        rows.add_row(
            name,
            *(text for _, text in metric_cells([record], metrics)),
            *(f"{costs[name]:.1f}" for name in timed),
            # A learning rate stands for itself.
            ", ".join(f"{n} {x:g}" for n, x in tuned).removeprefix("learning_rate ")
            + " (edge)" * bool(record.get("at_edge")),
        )
    return rows


def legend(metrics: Mapping[str, Metric] = METRICS, head: str = _ON_TEST) -> str:
    """What the columns of the metrics are."""
    lines = (f"{m.heading}: {m.legend}." for m in metrics.values())
    return "\n".join(filter(None, (head, *lines)))


# The rows of an audit that a run shows; its JSON has all.
_AUDITED = {
    "probe": "probe",
    "class-mean": "mean",
    "prototype": "proto",
    "relearn": "relearn",
    "membership": "member",
}

# The same where samples were forgotten.
_AUDITED_SAMPLES = {
    "accuracy/samples": "forget",
    "accuracy/retained": "test",
    "membership": "member",
}

SAMPLE_AUDIT_LEGEND = """\
What is left of the forgotten samples, as the gap to two retrained models; "="
is within their noise. forget, test: accuracy on the forgotten samples and,
a mean over classes, on test data, in points. member: AUC of membership."""

AUDIT_LEGEND = """\
What is left of the forgotten classes, as the gap to two retrained models; "="
is within their noise. probe, mean: recall by logistic regression and by the
nearest class mean, in points. proto: after five samples are mixed into the
head. relearn: batches until 95 % of the accuracy is back. member: AUC."""


def audit_table(audits: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each audited classifier, the verdict first; the target stands below."""
    named = {name: {r["name"]: r for r in a["rows"]} for name, a in audits.items()}
    first = next(iter(named.values()))
    columns = _AUDITED_SAMPLES if "accuracy/samples" in first else _AUDITED
    rows = table(None, ["classifier", "verdict"], list(columns.values()))
    rows.columns[1].no_wrap = False
    for name, audit in audits.items():
        shown = (_gap(named[name].get(row)) for row in columns)
        rows.add_row(name, audit["verdict"], *shown)
    rows.add_row("retrained", "the target", *(_target(first.get(r)) for r in columns))
    return rows


def _gap(row: Mapping[str, Any] | None) -> str:
    if row is None or row["gap"] is None:
        return ""
    if row["within"] or (row["within"] is None and row["gap"] == 0):
        return "="
    return f"{row['gap']:+.3g}"


def _target(row: Mapping[str, Any] | None) -> str:
    if row is None or not row["retrained"]:
        return ""
    bound = ">" if any(row["censored"][2:]) else ""
    return f"{bound}{sum(row['retrained']) / len(row['retrained']):.3g}"
