"""What every reader of a report needs: flags, data, facts."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.cli.report_models import DataFlags
from jaxunlearn.cli.report_tables import Results
from jaxunlearn.metrics.evaluation import class_label
from jaxunlearn.report.contents import Contents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Of the flags, what decides about what is read.

    Attributes:
      compute: whether classifiers and data are read at all.
      data_dir: where data sets are, if elsewhere than the folder says.
      cache: where a comparison keeps its models, likewise.
      request: which of several forgotten sets the figures show; the first is 1.
    """

    compute: bool = True
    data_dir: Path | None = None
    cache: Path | None = None
    request: int = 1


class Read(NamedTuple):
    """A folder: what the page shows, and its results for other formats."""

    contents: Contents
    tables: dict[str, Results]


def chosen_set(sets: list[str], request: int) -> str:
    """The forgotten set that figures show, of several."""
    if not 1 <= request <= len(sets):
        msg = f"--request must be from 1 to {len(sets)}, the sets that were forgotten; it is {request}."  # noqa: E501
        raise ValueError(msg)
    return sets[request - 1]


def flags_of(settings: Mapping[str, Any], asked: Asked) -> DataFlags | None:
    """Where the data are; None where nothing is to be computed."""
    if not asked.compute:
        return None
    stored = settings.get("data_dir")
    where = asked.data_dir or (None if stored is None else Path(stored))
    return DataFlags(where, settings.get("dataset"), bool(settings.get("grey_to_rgb")))


def facts(folder: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """How it was made, of what every record says."""
    samples = (f"{split} {count:,}" for split, count in record["samples"].items())
    packages = (f"{name} {number}" for name, number in record["versions"].items())
    return {
        "folder": str(folder),
        "samples": ", ".join(samples),
        "device": f"{record['devices']} x {record['device']}",
        "versions": ", ".join(packages),
    }


def forgotten_text(classes, names) -> str:
    """What was forgotten, in words."""
    kind = "class" if len(classes) == 1 else "classes"
    return f"Forgotten: {kind} {class_labels(classes, names)}"


def class_labels(classes, names) -> str:
    """Classes by number and name."""
    return ", ".join(class_label(c, names) for c in classes)
