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
        method = record.get("method", {})
        row = [record["model"], f"{record['retained']:.1f}"]
        row += [f"{record['forgotten']:.1f}"]
        if method:
            tuned = [f"{name} {value:.3g}" for name, value in method["tuned"].items()]
            row += [f"{record['change']:.3f}", f"{max(record['drift'].values()):.3f}"]
            row += [", ".join(tuned), str(method["samples_read"].get("retain", 0))]
        rows.append(row + [""] * (7 - len(row)))
    heads = ["", "Acc_r", "Acc_f"]
    heads += ["change of retained logits", "largest drift", "chosen"]
    return table([*heads, "retained samples read"], rows)


def audits(records: list[dict]) -> str:
    """What is left of the class, beside networks trained without it."""
    audited = [record for record in records if "audited" in record]
    again = {r["taught"]: r["relearn"] for r in records if "taught" in r}
    known = audited[0]["rows"]
    names = [name for name in AUDITS if name in known]
    values = {"original": [known[n]["original"] for n in names]}
    for i in range(len(known[names[0]]["retrained"])):
        title = f"trained here, without it, {i + 1}"
        values[title] = [known[n]["retrained"][i] for n in names]
    for record in audited:
        values[record["audited"]] = [record["rows"][n]["unlearned"] for n in names]
    verdicts = {record["audited"]: record["verdict"] for record in audited}
    rows = [
        [title, *map(_number, numbers), again.get(title, ""), verdicts.get(title, "")]
        for title, numbers in values.items()
    ]
    return table(["", *names, "batches until it is back", "verdict"], rows)


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
        if "method" in record:
            columns[record["model"]] = record["drift"]
            if "drift_on_proxies" in record["method"]:
                title = f"{record['model']}, by its proxies"
                columns[title] = record["method"]["drift_on_proxies"]
    if not columns:
        return ""
    layers = list(next(iter(columns.values())))
    rows = [[name, *(f"{c[name]:.3f}" for c in columns.values())] for name in layers]
    return table(["layer", *columns], rows)


def _number(value):
    return (
        "" if value is None else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    )


# By title: the keys of the records of which it is made, and how; the first must occur.
TABLES = {
    "Accuracies": (("model",), accuracies),
    "Audits": (("audited", "taught"), audits),
    "Proxies": (("source",), proxies),
    "Drift": (("model",), drifts),
}


def report(records: list[dict]) -> str:
    """All tables of every class."""
    parts = []
    for forget in dict.fromkeys(r["forget"] for r in records if "forget" in r):
        own = [r for r in records if r.get("forget") == forget]
        for title, (kinds, write) in TABLES.items():
            chosen = [r for r in own if any(kind in r for kind in kinds)]
            told = any(kinds[0] in r for r in chosen)
            text = write(chosen) if told else ""
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
