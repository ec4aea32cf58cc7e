"""What a person sees while a command works, and the table at its end."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

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
    def row(self, name: str) -> Iterator[Callable[[str, int, int], None]]:
        """A bar for as long as the `with` statement, moved by (stage, done, total)."""
        task = self.add_task(name, total=None, stage="preparing")

        def move(stage: str, done: int, total: int) -> None:
            self.update(task, stage=stage, completed=done, total=total)

        yield move
        self.update(task, stage="done")


def bars(console: Console) -> Bars:
    """Bars that live as long as a `with` statement."""
    return Bars(
        TextColumn("{task.description:<12}"),
        TextColumn("{task.fields[stage]:<10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


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


def comparison(records: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """One row for each classifier, of what `metrics.json` holds of it."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("classifier", no_wrap=True)
    for heading in ("Acc_r %", "Acc_f %", "change", "seconds", "compile", "rate"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, record in records.items():
        seconds = record["seconds"]
        table.add_row(
            name,
            _number(record["test"]["retained"], ".2f"),
            _number(record["test"]["forgotten"], ".2f"),
            _number(record["retained_logit_change"], ".3f"),
            _number(sum(seconds[s] for s in seconds if s not in _APART), ".1f"),
            _number(seconds["compile"], ".1f"),
            _number(record["learning_rate"], "g"),
        )
    return table


def _number(value, form):
    return "" if value is None else format(value, form)
