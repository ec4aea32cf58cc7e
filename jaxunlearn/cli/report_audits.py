"""Comparisons, and the JSON of audits, read for a report."""

import contextlib
import dataclasses
from pathlib import Path

import jax

from jaxunlearn.cli.comparison_tables import ALL
from jaxunlearn.cli.pieces import Pieces
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
    every_measure,
    of_audits,
    overview,
    remarks,
    summary,
)
from jaxunlearn.cli.settings import keys
from jaxunlearn.report.contents import Contents
from jaxunlearn.serialization import read_json


def read_comparison(folder: Path, file: Path, asked: Asked) -> Read:
    """Of `jaxunlearn compare`."""
    stored = read_json(file)
    settings = stored["settings"]
    tables = {
        one["forget"]: (
            {
                title: {name: summary(s) for name, s in row.items()}
                for title, row in one["rows"].items()
            },
            one["verdicts"],
        )
        for one in stored["tables"]
    }
    sets = [heading for heading in tables if heading != ALL]
    chosen = chosen_set(sets, asked.request)
    main = ALL if ALL in tables else chosen
    order = [main, *(heading for heading in tables if heading != main)]
    results = [
        overview(*tables[heading], f"Forget {heading}, means over training seeds")
        for heading in order
    ]
    seed = settings["seeds"][0]
    note = ""
    if len(sets) > 1 or len(settings["seeds"]) > 1:
        note = (
            f"Figures show what was made of training seed {seed} where {chosen} was "
            "forgotten; tables, all. --request shows another set."
        )
    contents = Contents(
        kind="comparison",
        title=f"{settings['dataset']}, {settings['model']}, {len(settings['seeds'])} training seeds",  # noqa: E501
        what=f"Forgotten: {', '.join(sets)}",
        verdicts=tables[main][1],
        remarks=remarks(*tables[main]),
        results=(*results, every_measure(tables[main][0])),
        key=jax.random.fold_in(keys(settings["audit_seed"])[1], 1),
        note=note,
        facts=facts(folder, stored),
        settings=settings,
    )
    cache = asked.cache or Path(stored.get("cache") or "")
    listed = _listed_cells(stored["models"], cache, chosen, settings["seeds"])
    absent = (
        f"The models of this comparison are not in {cache}, or it is of a version that "
        "does not say which they are: --cache says where they are, and the same "
        "jaxunlearn compare with --overwrite writes it anew."
    )
    contents = with_models(contents, listed, flags_of(settings, asked), absent)
    return Read(contents, tables)


def _listed_cells(made, cache: Path, forget: str, seeds) -> list[Listed]:
    """Of the first training seed every model, and a second retrained one."""
    found, pieces = {}, Pieces(cache)
    for one in made:
        name = one["model"]
        own = one["forget"] == forget and "refused" not in one
        if not own or one["training_seed"] not in seeds[: 1 + (name == "retrained")]:
            continue
        if name == "retrained" and one["training_seed"] != seeds[0]:
            name = f"retrained, seed {one['training_seed']}"
        digest = one["file"]
        piece = pieces.intact(f"records/{digest}.json")
        record = {} if piece is None else piece["record"]
        role = {"original": "original"}.get(name, "unlearned")
        role = "retrained" if name.startswith("retrained") else role
        file = cache / "models" / f"{digest}.safetensors"
        found.setdefault(name, Listed(name, role, record, file))
    rank = {"original": 0, "unlearned": 1, "retrained": 2}
    return sorted(found.values(), key=lambda one: rank[one.role])


def read_audits(folder: Path, files: list[Path], asked: Asked) -> Read:
    """Of `jaxunlearn audit`, one or several of the same data."""
    audits = _named([(path.stem, read_json(path)) for path in files])
    rows, verdicts = of_audits(audits)
    first = next(iter(audits.values()))
    classes = tuple(first["forget_classes"])
    settings = first.get("settings") or {}
    contents = Contents(
        kind="audit",
        title=f"Audit of {', '.join(audits)}",
        what=forgotten_text(classes, None) if classes else "Samples were forgotten",
        verdicts=verdicts,
        remarks=remarks(rows, verdicts),
        results=(overview(rows, verdicts, "Models on test data"), every_measure(rows)),
        forget_classes=classes,
        samplewise=not classes,
        key=keys(settings.get("seed", 0))[1],
        facts={"folder": str(folder)},
        settings=settings,
    )
    listed = []
    for name, audit in audits.items():
        path = _found((audit.get("files") or {}).get("unlearned"), folder)
        listed.append(Listed(name, "unlearned", {}, path))
    made = first.get("files") or {}
    if made:
        path = _found(made["original"], folder)
        listed.insert(0, Listed("original", "original", {}, path))
        for n, one in enumerate(made["retrained"], 1):
            name = "retrained" if n == 1 else f"retrained-{n}"
            listed.append(Listed(name, "retrained", {}, _found(one, folder)))
    absent = (
        "The files that were audited are not where the audit found them, or its JSON "
        "does not name them: jaxunlearn audit --out FILE writes it anew."
    )
    contents = with_models(contents, listed, flags_of(settings, asked), absent)
    if contents.class_names:
        what = forgotten_text(contents.forget_classes, contents.class_names)
        contents = dataclasses.replace(contents, what=what)
    heading = class_labels(classes, contents.class_names) or "samples"
    return Read(contents, {heading: (rows, verdicts)})


def is_audit(path: Path) -> bool:
    """Whether a JSON file is what an audit writes."""
    with contextlib.suppress(ValueError):
        return {"rows", "verdict", "forget_classes"} <= read_json(path).keys()
    return False


def _named(audits: list[tuple[str, dict]]) -> dict[str, dict]:
    """By the audited file's name where that tells them apart, else by the JSON's."""
    own = [(made.get("files") or {}).get("unlearned") for _, made in audits]
    stems = [Path(name).stem for name in own if name is not None]
    apart = len(set(stems)) == len(audits)
    names = stems if apart else [name for name, _ in audits]
    return dict(zip(names, (made for _, made in audits), strict=True))


def _found(name: str | None, folder: Path) -> Path | None:
    """Where a file is, or beside the record if it was moved along with it."""
    if name is None:
        return None
    path = Path(name)
    return path if path.is_file() else folder / path.name
