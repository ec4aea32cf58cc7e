"""Folders of run and sweep, read for a report."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxunlearn.cli.images import load_images
from jaxunlearn.cli.report_inputs import (
    Asked,
    Read,
    chosen_set,
    class_labels,
    facts,
    flags_of,
    forgotten_text,
)
from jaxunlearn.cli.report_models import Listed, with_models
from jaxunlearn.cli.report_tables import (
    Results,
    every_measure,
    of_evaluation,
    of_run,
    overview,
    remarks,
)
from jaxunlearn.cli.settings import keys
from jaxunlearn.report.contents import Cell, Contents
from jaxunlearn.report.elements import number
from jaxunlearn.serialization import read_json

# What is timed, but no cost of the method at its final setting.
_APART = ("compile", "rates")


def read_run(folder: Path, file: Path, asked: Asked) -> Read:
    """Of `jaxunlearn run`."""
    metrics, config = read_json(file), read_json(folder / "config.json")
    records = metrics["classifiers"]
    rows, verdicts = of_run(metrics)
    test = records["original"]["test"]
    classes, names = tuple(config["forget"]), test["class_names"]
    samples = metrics.get("forgotten_samples")
    what = forgotten_text(classes, names)
    if samples:
        what = f"{samples['count']:,} samples of the training data forgotten"
    seconds = {n: number(_spent(r["seconds"]), ".1f") for n, r in records.items()}
    tuned = {n: Cell(_tuned(r)) for n, r in records.items()}
    more = {
        "seconds": ("at the final setting, without compilation", seconds),
        "tuned": ("chosen on validation data, or given", tuned),
    }
    main = overview(rows, verdicts, "Models on test data", more)
    contents = Contents(
        kind="run",
        title=f"{config['dataset']}, {config['model']}, seed {config['seed']}",
        what=what,
        verdicts=verdicts,
        remarks=remarks(rows, verdicts),
        results=(main, every_measure(rows)),
        class_names=None if names is None else tuple(names),
        forget_classes=classes,
        samplewise=bool(samples),
        proxies=_proxies(folder),
        proxy_quality=metrics.get("proxies"),
        key=jax.random.fold_in(keys(config["seed"])[1], 1),
        facts=facts(folder, metrics) | {"rate": metrics["learning_rate_rule"]},
        settings=config,
    )
    roles = {"original": "original", "retrained": "retrained"}
    listed = [
        Listed(n, roles.get(n, "unlearned"), r, folder / f"{n}.safetensors")
        for n, r in records.items()
    ]
    second = folder / "retrained-2.safetensors"
    if second.is_file():
        listed.append(Listed("retrained-2", "retrained", {}, second))
    absent = f"{folder} keeps no classifiers, from which this is computed."
    contents = with_models(contents, listed, flags_of(config, asked), absent)
    heading = class_labels(classes, names) or f"{samples['count']} samples"
    return Read(contents, {heading: (rows, verdicts)})


def read_sweep(folder: Path, file: Path, asked: Asked) -> Read:
    """Of `jaxunlearn sweep`."""
    stored = read_json(file)
    settings, requests = stored["settings"], stored["requests"]
    method = settings["method"]
    names = requests[0]["test"]["class_names"]
    labels = [class_labels(r["forget"], names) for r in requests]
    tables: dict[str, Results] = {}
    for label, record in zip(labels, requests, strict=True):
        aim = record["retrained"]
        rows = {"original": of_evaluation(record["before"], aim)}
        rows[method] = of_evaluation(record["test"], aim)
        rows |= {"retrained": of_evaluation(aim, None)} if aim else {}
        tables[label] = rows, {}
    chosen = labels.index(chosen_set(labels, asked.request))
    record = requests[chosen]
    note = ""
    if len(labels) > 1:
        note = f"Figures show what was made of {labels[chosen]}; tables, all. --request shows another set."  # noqa: E501
    contents = Contents(
        kind="sweep",
        title=f"{settings['dataset']}, {settings['model']}, {method}, seed {settings['seed']}",  # noqa: E501
        what=f"Forgotten, each in a copy of its own: {'; '.join(labels)}",
        results=_sweep_tables(tables, method),
        class_names=None if names is None else tuple(names),
        forget_classes=tuple(record["forget"]),
        note=note,
        facts=facts(folder, stored) | {"rate": stored["learning_rate_rule"]},
        settings=settings,
    )
    stem = folder / f"forget-{'-'.join(map(str, record['forget']))}"
    listed = [
        Listed("original", "original", {}, folder / "original.safetensors"),
        Listed(method, "unlearned", record, stem.with_suffix(".safetensors")),
    ]
    if record["retrained"]:
        twin = stem.with_name(f"{stem.name}-retrained.safetensors")
        aim = {"test": record["retrained"]}
        listed.append(Listed("retrained", "retrained", aim, twin))
    absent = (
        "A sweep keeps its classifiers with --save-classifiers only: the same command "
        "with that and --overwrite makes what this is computed from."
    )
    contents = with_models(contents, listed, flags_of(settings, asked), absent)
    return Read(contents, tables)


def _sweep_tables(tables: Mapping[str, Results], method: str):
    """A row for each request; before and after stand side by side."""
    captions = {
        method: f"After {method}, on test data",
        "original": "Before, of the original",
        "retrained": "Of networks that never saw the classes: the aim",
    }
    return [
        overview(rows, {}, caption, first="forgotten")
        for name, caption in captions.items()
        if (rows := {label: r[name] for label, (r, _) in tables.items() if name in r})
    ]


def _proxies(folder: Path):
    path = folder / "proxies.npz"
    if not path.is_file():
        return None
    try:
        return load_images(path)
    except Exception as error:
        msg = f"{path} is damaged ({error}): remove it, or make the run again."
        raise ValueError(msg) from error


def _spent(seconds: Mapping[str, float]) -> float:
    return sum(value for name, value in seconds.items() if name not in _APART)


def _tuned(record: Mapping[str, Any]) -> str:
    texts: Iterator[str] = (
        f"{name.replace('_', ' ')} {value:g}" for name, value in record["tuned"].items()
    )
    return ", ".join(texts) + " (edge)" * bool(record.get("at_edge"))
