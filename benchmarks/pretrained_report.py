"""Tables of what `pretrained.py` printed.

python benchmarks/pretrained_report.py RESULTS.jsonl
"""

import argparse
import json
from pathlib import Path

# Which rows are shown.
AUDITS = ("probe", "class-mean", "neighbour", "distribution/js-forgotten")


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown, numbers to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracies(records: list[dict]) -> str:
    """What every model keeps and forgets, and what that took."""
    rows = []
    for record in records:
        method = record["method"] or {}
        tuned = (method.get("tuned") or {}).items()
        tuned = [f"{name} {value:.3g}" for name, value in tuned]
        read = (method.get("samples_read") or {}).get("retain", "")
        numbers = [f"{record[name]:.1f}" for name in ("retained", "forgotten")]
        largest = f"{max(record['drift'].values()):.3f}" if method else ""
        change = f"{record['change']:.3f}" if method else ""
        rows.append([record["model"], *numbers, change, largest, ", ".join(tuned)])
        rows[-1] += [str(read), f"{method['seconds']:.0f}" if method else ""]
    heads = ["", "Acc_r", "Acc_f", "change of retained logits", "largest drift"]
    return table([*heads, "chosen", "retained samples read", "s"], rows)


def audits(records: list[dict]) -> str:
    """What is left of the class, beside networks trained without it."""
    audited = [record for record in records if record["audit"]]
    if not audited:
        return ""
    known = audited[0]["audit"]["rows"]
    names = [name for name in AUDITS if name in known]

    def cells(values):
        return [_number(values[name]) for name in names]

    rows = [["original", *cells({n: known[n]["original"] for n in names})]]
    seeds = range(len(known[names[0]]["retrained"]))
    rows += [
        [f"trained without it, {i + 1}"]
        + cells({n: known[n]["retrained"][i] for n in names})
        for i in seeds
    ]
    for record in audited:
        found = record["audit"]["rows"]
        rows.append(
            [record["model"], *cells({n: found[n]["unlearned"] for n in names})]
        )
    again = {record["model"]: record["relearn"] for record in records}
    again |= {f"trained without it, {i + 1}": _twin(again, i) for i in seeds}
    verdicts = {record["model"]: record["audit"]["verdict"] for record in audited}
    rows = [[*row, again[row[0]], verdicts.get(row[0], "")] for row in rows]
    return table(["", *names, "batches until it is back", "verdict"], rows)


def _twin(again, number):
    return again.get(f"trained here, without it, {number + 1}", "")


def proxies(records: list[dict]) -> str:
    """What a tenth of each layer's directions captures of unread retained images."""
    rows = [
        [r["source"], str(r["images"]), f"{r['accuracy']:.0f}"]
        + [f"{r[name]:.3f}" for name in ("mean", "least")]
        for r in records
    ]
    heads = ["", "images", "read as their label, %", "captured, mean", "least"]
    return table(heads, rows)


def drifts(records: list[dict]) -> str:
    """The certificate layer by layer; CovarNav's also by the moments of its proxies."""
    columns = {}
    for record in records:
        if record["method"]:
            columns[record["model"]] = record["drift"]
            if "drift_on_proxies" in record["method"]:
                title = f"{record['model']}, by its proxies"
                columns[title] = record["method"]["drift_on_proxies"]
    layers = list(next(iter(columns.values()), {}))
    rows = [[name, *(f"{c[name]:.3f}" for c in columns.values())] for name in layers]
    return table(["layer", *columns], rows)


def _number(value):
    return (
        "" if value is None else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    )


TABLES = {
    "Accuracies": ("model", accuracies),
    "Audits": ("model", audits),
    "Proxies": ("source", proxies),
    "Drift": ("model", drifts),
}


def report(records: list[dict]) -> str:
    """All tables of every class."""
    parts = []
    for forget in dict.fromkeys(r["forget"] for r in records if "forget" in r):
        own = [r for r in records if r.get("forget") == forget]
        for title, (kind, write) in TABLES.items():
            chosen = [r for r in own if kind in r]
            text = write(chosen) if chosen else ""
            parts += [f"## Class {forget}: {title}", text] if text else []
    return "\n\n".join(parts)


def main() -> None:
    """Print the tables of a file of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    lines = parser.parse_args().results.read_text().splitlines()
    print(report([json.loads(line) for line in lines]))


if __name__ == "__main__":
    main()
