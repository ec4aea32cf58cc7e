"""How long-running functions report what they do: one protocol for all of them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

from jaxunlearn.checks import short

Report = Callable[[str, int, int], Any]  # (stage, done, total), now and then
Progress = Report | Literal["bar"] | None


@contextlib.contextmanager
def reporting(progress: Any) -> Iterator[Report]:
    """The function to report to, for as long as the `with` statement.

    A function that is handed on to another one that takes `progress` stays itself, so
    that what is nested reports to the same place.

    Args:
      progress: a `Progress`. None reports to nobody; "bar" draws a bar for each stage,
        in a terminal or a notebook; a function is called with (stage, done, total).

    Raises:
      TypeError: it is none of these.

    >>> seen = []
    >>> with reporting(lambda *report: seen.append(report)) as report:
    ...     report("steps", 1, 2)
    >>> seen
    [('steps', 1, 2)]
    """
    if progress is None:
        yield _to_nobody
    elif callable(progress):
        yield progress
    elif isinstance(progress, str) and progress == "bar":
        with _bars() as report:
            yield report
    else:
        msg = (
            'progress must be None, "bar" or a function (stage, done, total); it is '
            f"{short(progress)}."
        )
        raise TypeError(msg)


def _to_nobody(stage: str, done: int, total: int) -> None:
    del stage, done, total


@contextlib.contextmanager
def _bars() -> Iterator[Report]:
    from tqdm.auto import tqdm  # a quarter of a second, and only here

    bars: dict[str, Any] = {}

    def report(stage: str, done: int, total: int) -> None:
        bar = bars.get(stage)
        if bar is None or bar.total != total or done < bar.n:
            if bar is not None:
                bar.close()
            bar = bars[stage] = tqdm(desc=stage, total=total)
        bar.update(done - bar.n)

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()
