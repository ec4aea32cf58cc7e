"""What a person sees while a command works, and the table at its end."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


class Bars:
    """Progress bars, one for each stage of each piece of work."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def update(self, name: str, done: int, total: int) -> None:
        """Move the bar `name`, which appears when it is first named."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text)


@contextlib.contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """Bars that live as long as the `with` statement."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:>5.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


def comparison(records: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """One row for each classifier."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("classifier")
    for heading in (
        "Acc_r %",
        "Acc_f %",
        "logit change",
        "seconds",
        "compile s",
        "rate",
    ):
        table.add_column(heading, justify="right")
    for name, record in records.items():
        change = record["retained_logit_change"]
        rate = record.get("learning_rate")
        seconds = dict(record["seconds"])
        compiling = seconds.pop("compile", 0.0)
        table.add_row(
            name,
            f"{record['test']['retained']:.2f}",
            f"{record['test']['forgotten']:.2f}",
            "" if change is None else f"{change:.3f}",
            f"{sum(seconds.values()):.1f}",
            f"{compiling:.1f}",
            "" if rate is None else f"{rate:g}",
        )
    return table
