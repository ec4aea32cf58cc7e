"""A comparison as tables for people and papers: console, Markdown, LaTeX, CSV."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from jaxunlearn.cli.comparison import COLUMNS, Column, Summary, blindness
from jaxunlearn.cli.console import table

# The most telling first; so many of them fit beside a name into 80 columns.
_SHOWN = (
    *("accuracy/forgotten", "accuracy/retained", "accuracy/samples", "share", "probe"),
    *("class-mean", "relearn", "shifted/forgotten", "attacked/forgotten"),
)
_MOST = 6

Rows = Mapping[str, Mapping[str, Summary]]
Columns = Mapping[str, Column]

LEGEND = """\
Means over training seeds with 95 % t-intervals; below, the gap to the models
retrained from the same seeds, or "=" within their noise."""

NOTE = (
    "Mean ± half a 95 % t-interval over training seeds. In brackets the gap to the "
    "models retrained from the same seeds; (=) is within their noise. The target "
    "of every column is the retrained row."
)


def columns_of(rows: Rows, columns: Columns = COLUMNS) -> list[str]:
    """Those of the columns that some row has."""
    return [name for name in columns if any(name in row for row in rows.values())]


def _shown(rows: Rows) -> list[str]:
    names = columns_of(rows)
    first = [name for name in _SHOWN if name in names][:_MOST]
    return [name for name in names if name in first]


def console_table(rows: Rows, verdicts: Mapping[str, str], title: str) -> Table:
    """The most telling columns: mean and interval, and under them the gap."""
    names = _shown(rows)
    shown = table(title, ["model"], [COLUMNS[name].heading for name in names])
    first = shown.columns[0]
    first.no_wrap, first.min_width, first.max_width = False, 19, 24
    first.overflow = "fold"
    for title, row in rows.items():
        cells = (_short(row.get(name), COLUMNS[name].form) for name in names)
        said = f"\n{verdicts[title]}" if title in verdicts else ""
        shown.add_row(title + said, *cells)
    return shown


def legend(rows: Rows) -> str:
    """What the columns of the console's table are."""
    names = _shown(rows)
    lines = (f"{COLUMNS[n].heading}: {COLUMNS[n].legend}." for n in names)
    return "\n".join((*lines, LEGEND))


def wide_table(
    rows: Rows, verdicts: Mapping[str, str], form: str, columns: Columns = COLUMNS
) -> str:
    """All columns in a format of tabulate, such as "github" or "latex_booktabs".

    Verdicts are a column where there are any.
    """
    from tabulate import tabulate

    names, last = columns_of(rows, columns), ["verdict"] * bool(verdicts)
    lines = [
        [title, *(_cell(row.get(n), columns[n].form) for n in names)]
        + [verdicts.get(title, "")] * bool(verdicts)
        for title, row in rows.items()
    ]
    heads = ["model", *(columns[name].heading for name in names), *last]
    align = ["left", *["right"] * len(names), *["left"] * len(last)]
    text = tabulate(lines, heads, tablefmt=form, colalign=align, disable_numparse=True)
    return text + "\n"


def markdown(
    tables: Mapping[str, tuple[Rows, Mapping[str, str]]], title: str, note: str = NOTE
) -> str:
    """Every table under its heading, and what the columns are."""
    parts = [f"# {title}"]
    for heading, (rows, verdicts) in tables.items():
        parts += [f"## {heading}", wide_table(rows, verdicts, "github").strip()]
        if said := blindness(rows):
            parts.append(said)
    every = {name: None for rows, _ in tables.values() for name in columns_of(rows)}
    lines = [f"- {COLUMNS[name].heading}: {COLUMNS[name].legend}" for name in every]
    return "\n\n".join((*parts, "\n".join(lines), note)) + "\n"


def latex(tables: Mapping[str, tuple[Rows, Mapping[str, str]]]) -> str:
    """A tabular of booktabs for each table."""
    parts = (
        f"% {heading}\n{wide_table(rows, verdicts, 'latex_booktabs')}"
        for heading, (rows, verdicts) in tables.items()
    )
    return "% \\usepackage{booktabs}\n" + "\n".join(parts)


def as_csv(tables: Mapping[str, tuple[Rows, Mapping[str, str]]]) -> str:
    """A line for each forgotten set, model and measure."""
    text = io.StringIO()
    fields = [*Summary.__dataclass_fields__]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["forgotten", "model", "verdict", "measure", *fields])
    for heading, (rows, verdicts) in tables.items():
        for title, row in rows.items():
            about = heading, title, verdicts.get(title, "")
            for name, summary in row.items():
                writer.writerow([*about, name, *map(_plain, vars(summary).values())])
    return text.getvalue()


def _short(summary: Summary | None, form: str) -> str:
    """The interval in one digit or two, since columns are narrow."""
    if summary is None:
        return ""
    width = summary.half_width
    text = dataclasses.replace(summary, half_width=math.nan).text(form)
    if width > 0:
        text += f"±{width:.1g}" if width < 10 else f"±{width:.0f}"
    return f"{text}\n{summary.against(form)}".rstrip()


def _cell(summary: Summary | None, form: str) -> str:
    if summary is None:
        return ""
    gap, value = summary.against(form), summary.text(form, " ± ")
    return f"{value} ({gap})" if gap else value


def _plain(value: Any) -> Any:
    return "" if value is None or value != value else value
