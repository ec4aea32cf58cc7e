"""Results of every kind of folder as one kind of table, for the page and for papers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxunlearn.cli.comparison import COLUMNS, INNER, Summary, blindness, costs
from jaxunlearn.cli.exports import Rows, columns_of
from jaxunlearn.report.contents import Cell, PageTable
from jaxunlearn.report.elements import number

# Rows of models by measure, and the verdicts of those that unlearned.
Results = tuple[dict[str, dict[str, Summary]], dict[str, str]]

NOTE = (
    "In brackets the gap to the mean of the retrained models; (=) is within their "
    "noise. The target of every column is the retrained row."
)

# What an audit cannot tell.
_BLIND = (
    " So are all those of the original: these audits cannot tell what was forgotten "
    "from what was not."
)

# Numbers of a remark.
_REMARKS = 6

# Where there is no audit, what an evaluation on test data says.
_ACCURACIES = {"accuracy/retained": "retained", "accuracy/forgotten": "forgotten"}


def of_run(metrics: Mapping[str, Any]) -> Results:
    """What `metrics.json` of a run comes to."""
    records, audits = metrics["classifiers"], metrics["audits"] or {}
    retrained = records.get("retrained")
    target = None if retrained is None else retrained["test"]
    rows = of_audits(audits)[0] if audits else {}
    for name, record in records.items():
        row = rows.get(name) or of_evaluation(
            record["test"], None if name == "retrained" else target
        )
        if retrained is not None and name != "original":
            found = costs(record, retrained)
            more = {n: single(m.value) for n, m in found.items() if n in COLUMNS}
            row = row | more
        rows[name] = row
    ordered = {name: rows[name] for name in records}
    return ordered, {name: audit["verdict"] for name, audit in audits.items()}


def of_audits(audits: Mapping[str, Mapping[str, Any]]) -> Results:
    """What audits of several models come to, all beside the same retrained ones."""
    rows: dict[str, dict[str, Summary]] = {}
    first = next(iter(audits.values()))
    rows["original"] = {r["name"]: _of_row(r, "original", 1) for r in first["rows"]}
    for name, audit in audits.items():
        rows[name] = {r["name"]: _of_row(r, "unlearned", 0) for r in audit["rows"]}
    rows["retrained"] = {
        r["name"]: single(_mean(r["retrained"]), bound=">" * any(r["censored"][2:]))
        for r in first["rows"]
        if r["retrained"]
    }
    return rows, {name: audit["verdict"] for name, audit in audits.items()}


def of_evaluation(
    test: Mapping[str, Any], target: Mapping[str, Any] | None
) -> dict[str, Summary]:
    """Accuracies, and their gaps to those of one retrained model."""
    found = {}
    for name, key in _ACCURACIES.items():
        value, aim = _number(test.get(key)), _number((target or {}).get(key))
        if not math.isnan(value):
            gap = None if math.isnan(aim) else value - aim
            found[name] = single(value, gap)
    return found


def single(
    value: float,
    gap: float | None = None,
    floor: float | None = None,
    within: bool | None = None,
    bound: str = "",
) -> Summary:
    """Of one model: there is no interval."""
    return Summary(value, math.nan, gap, None, floor, within, 1, bound)


def summary(stored: Mapping[str, Any]) -> Summary:
    """As `comparison.json` holds it, where null is what is not known."""
    plain = {name: _number(stored[name]) for name in ("mean", "half_width")}
    return Summary(**{**stored, **plain})


def overview(
    rows: Rows,
    verdicts: Mapping[str, str],
    caption: str,
    more: Mapping[str, tuple[str, Mapping[str, Cell]]] | None = None,
    first: str = "model",
) -> PageTable:
    """A row for each model, the verdict first, gap and floor under every value.

    `more` are further columns: by heading what it means, and a cell for each model.
    """
    names, more = columns_of(rows), more or {}
    heads = [(first, "")]
    heads += [("verdict", "of the audit")] if verdicts else []
    heads += [(COLUMNS[n].heading, COLUMNS[n].legend) for n in names]
    heads += [(heading, meaning) for heading, (meaning, _) in more.items()]
    lines = []
    for title, row in rows.items():
        line = [Cell(title)]
        if verdicts:
            aim = "the target" if title.startswith("retrained") else ""
            line.append(Cell(verdicts.get(title, aim)))
        line += [summary_cell(row.get(name), COLUMNS[name].form) for name in names]
        line += [cells.get(title, Cell("")) for _, cells in more.values()]
        lines.append(line)
    return PageTable(caption, heads, lines)


def remarks(rows: Rows, verdicts: Mapping[str, str]) -> dict[str, str]:
    """What lies outside the noise, of each model with a verdict."""
    judged = [s.within for s in rows.get("original", {}).values()]
    blind = False not in judged and True in judged
    told = _BLIND if blind else f" {blindness(rows)}".rstrip()
    return {
        name: _remark(rows[name]) + _not_made(rows[name]) + told
        for name in verdicts
        if name in rows
    }


def _not_made(row: Mapping[str, Summary]) -> str:
    """What the verdict would have read, where classes were forgotten."""
    if "accuracy/forgotten" not in row:
        return ""
    missing = [name for name in INNER if name not in row]
    return f" Not made: {', '.join(missing)}." if missing else ""


def _remark(row: Mapping[str, Summary]) -> str:
    outside = [n for n, s in row.items() if s.within is False and s.gap is not None]
    if outside:
        shown = (f"{name} {row[name].gap:+.3g}" for name in outside[:_REMARKS])
        more = len(outside) - _REMARKS
        rest = f" and {more} more" if more > 0 else ""
        return f"Outside the noise: {', '.join(shown)}{rest}."
    known = [name for name, found in row.items() if found.within is not None]
    if not known:
        return "How large the noise is takes two retrained models or more to tell."
    return f"All {len(known)} numbers that could be judged are within the noise."


def every_measure(rows: Rows) -> PageTable:
    """A row for each measure and model: nothing is left out."""
    heads = [
        ("measure", ""),
        ("model", ""),
        ("value", ""),
        ("gap", "to the retrained models"),
        ("floor", "the noise of retraining"),
        ("within", "whether the gap is within the noise"),
    ]
    measures = dict.fromkeys(name for row in rows.values() for name in row)
    lines = [
        [
            Cell(name),
            Cell(title),
            number(row[name].mean, ".4g", row[name].bound),
            number(row[name].gap, "+.3g"),
            number(row[name].floor, ".3g"),
            Cell({True: "within", False: "outside", None: ""}[row[name].within]),
        ]
        for name in measures
        for title, row in rows.items()
        if name in row and not math.isnan(row[name].mean)
    ]
    return PageTable("Every measure", heads, lines)


def summary_cell(found: Summary | None, form: str) -> Cell:
    """Value, and below it the gap and the floor."""
    if found is None or math.isnan(found.mean):
        return Cell("")
    note = ""
    if found.gap is not None and not math.isnan(found.gap):
        note = "= " * bool(found.within) + format(found.gap, f"+{form}")
        if found.floor is not None and not math.isnan(found.floor):
            note += f" ± {format(found.floor, form)}"
    return Cell(found.text(form, " ± "), found.mean, note, found.within)


def _of_row(row: Mapping[str, Any], which: str, place: int) -> Summary:
    value, target = _number(row[which]), _mean(row["retrained"])
    gap, floor = value - target, _number(row["floor"])
    bound = ">" * row["censored"][place]
    bounds = (row["censored"][place], *row["censored"][2:])
    known = len(row["retrained"]) > 1 and not all(bounds) and not math.isnan(gap)
    return single(
        value,
        None if math.isnan(gap) else gap,
        None if math.isnan(floor) else floor,
        abs(gap) <= floor if known else None,
        bound,
    )


def _mean(values: Iterable[float | None]) -> float:
    known: Sequence[float] = [v for v in values if v is not None]
    return sum(known) / len(known) if known else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
