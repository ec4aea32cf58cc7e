"""Pieces of the page: every text is escaped here, and nowhere else."""

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxunlearn.report.contents import Cell, PageTable

_ROW = ' scope="row"'


def escaped(text: Any) -> str:
    """Text as HTML shows it, inside an attribute too."""
    return html.escape(str(text), quote=True)


def number(value: float | None, form: str = ".2f", bound: str = "") -> Cell:
    """A number of a table; nothing where there is none."""
    if value is None or math.isnan(value):
        return Cell("", None)
    return Cell(f"{bound}{format(value, form)}", value)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text, of which what stands in backticks is code."""
    told = re.sub("`([^`]+)`", r"<code>\1</code>", escaped(text))
    return f"<p{_class(kind)}>{told}</p>"


def table(shown: PageTable) -> str:
    """A table whose columns sort by click and by keyboard, in a box that scrolls."""
    heads = "".join(
        f'<th scope="col"{_class(_kind(shown, place))} aria-sort="none">'
        f'<button type="button" title="{escaped(meaning or head)}">'
        f"{escaped(head)}</button></th>"
        for place, (head, meaning) in enumerate(shown.heads)
    )
    rows = "".join(_row(row) for row in shown.rows)
    label = escaped(shown.caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="Table: {label}">'
        f"<table><caption>{label}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _kind(shown: PageTable, place: int) -> str:
    """Numbers stand on the right, and so do their headings."""
    numbers = (isinstance(row[place].value, float | int) for row in shown.rows)
    return "number" if place and any(numbers) else ""


def _row(row: Sequence[Cell]) -> str:
    first, *others = row
    cells = "".join(_cell(cell, "td") for cell in others)
    return f"<tr>{_cell(first, 'th', _ROW)}{cells}</tr>"


def _cell(cell: Cell, tag: str, more: str = "") -> str:
    value = "" if cell.value is None else f' data-value="{escaped(cell.value)}"'
    kind = "number" if isinstance(cell.value, float | int) else ""
    state = {True: "within", False: "outside", None: ""}[cell.within]
    note = f"<small>{escaped(cell.note)}</small>" if cell.note else ""
    classes = _class(f"{kind} {state}".strip())
    return f"<{tag}{more}{classes}{value}>{escaped(cell.text)}{note}</{tag}>"


def figure(drawn: Sequence[str], caption: str, numbers: PageTable | None = None) -> str:
    """Panels with a caption, and the numbers behind them in a table to be opened."""
    panels = "".join(f'<div class="panel">{svg}</div>' for svg in drawn)
    kind = "panels" if len(drawn) > 1 else "single"
    more = "" if numbers is None else unfolded("The numbers", table(numbers))
    said = f"<figcaption>{escaped(caption)}</figcaption>"
    return f'<figure><div class="{kind}">{panels}</div>{said}{more}</figure>'


def unfolded(summary: str, content: str, *, opened: bool = False) -> str:
    """Content that opens by click or key."""
    state = " open" if opened else ""
    return f"<details{state}><summary>{escaped(summary)}</summary>{content}</details>"


def definitions(entries: Iterable[tuple[str, str]]) -> str:
    """Names and what they are."""
    items = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>"
        for name, value in entries
    )
    return f"<dl>{items}</dl>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
