"""What `jaxunlearn sweep` leaves: its folder, its table, its costs."""

import contextlib
import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.methods.results import Sweep
from jaxunlearn.metrics import relative_change
from jaxunlearn.metrics.evaluation import evaluate, logits
from jaxunlearn.tasks import Data

LEGEND = """\
Acc_r, Acc_f: test accuracy, mean over retained and over forgotten classes, and
before, of the original. change: of the logits of the retained test images,
relative to the original's."""


def check_place(place: Path, *, overwrite: bool) -> None:
    """Refuse a place where something is that a sweep must not replace.

    Raises:
      ValueError: there is a sweep and `overwrite` is not set, or something else.
    """
    if not place.exists():
        return
    if not (place / "sweep.json").is_file():
        msg = f"{place} is there and is no sweep: choose another folder with --out."
        raise ValueError(msg)
    if not overwrite:
        msg = (
            f"{place} already holds a sweep: choose another folder with --out, or "
            "replace it with --overwrite."
        )
        raise ValueError(msg)


@contextlib.contextmanager
def new_folder(place: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `place` that becomes `place` if all goes well, and else goes.

    Raises:
      ValueError: as `check_place` does, before anything is written and at the end.
      OSError: it cannot be made.
    """
    check_place(place, overwrite=overwrite)
    temporary = place.with_name(f".{place.name}-{os.getpid()}")
    old = place.with_name(f".{place.name}-{os.getpid()}.replaced")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        msg = (
            f"The folder {place} cannot be made ({error.strerror or error}): choose "
            "another place with --out."
        )
        raise OSError(msg) from error
    try:
        yield temporary
        check_place(place, overwrite=overwrite)
        if place.exists():
            place.rename(old)
        temporary.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    except KeyboardInterrupt:
        msg = "interrupted. Nothing was written."
        raise KeyboardInterrupt(msg) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def judged(original: Classifier, swept: Sweep, test: Data) -> list[dict[str, Any]]:
    """What became of each request, on test data."""
    outputs = logits(original, test.images)
    # Without forgotten classes it is the same for all requests.
    per_class = evaluate(original, test, ()).per_class
    records = []
    parts = (swept.requests, swept.results, swept.evaluate(test))
    for classes, result, found in zip(*parts, strict=True):
        kept = ~np.isin(test.labels, classes)
        after = logits(result.classifier, test.images)
        forgotten = np.isin(np.arange(len(per_class)), classes)
        records.append(
            {
                "forget": list(classes),
                "test": found,
                "before": {
                    "retained": float(np.nanmean(per_class[~forgotten])),
                    "forgotten": float(np.nanmean(per_class[forgotten])),
                },
                "retained_logit_change": relative_change(outputs[kept], after[kept]),
                "losses": result.trace.losses,
                "ranks": result.trace.ranks,
                "samples_read": result.trace.samples_read,
            }
        )
    return records


def table(records: Sequence[dict[str, Any]], title: str) -> Table:
    """One row for each request, and the means over them."""
    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    found.add_column("forget", max_width=24)
    for heading in ("Acc_r %", "before", "Acc_f %", "before", "change"):
        found.add_column(heading, justify="right", no_wrap=True)
    rows = [
        (
            record["test"].retained,
            record["before"]["retained"],
            record["test"].forgotten,
            record["before"]["forgotten"],
            record["retained_logit_change"],
        )
        for record in records
    ]
    names = [", ".join(map(str, record["forget"])) for record in records]
    if len(rows) > 1:
        names.append("mean")
        rows.append(tuple(np.mean(rows, axis=0).tolist()))
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        last = number == len(records) - 1
        found.add_row(
            name,
            *(format(x, ".2f") for x in row[:4]),
            format(row[4], ".3f"),
            end_section=last,
        )
    return found


def cost(swept: Sweep, seconds: dict[str, float], samples: int) -> str:
    """Data passes and seconds, in sentences."""
    passes = swept.passes
    timed = ", ".join(
        f"{name} {value:.1f}" for name, value in seconds.items() if name != "compile"
    )
    if swept.proxies is None:
        source = f"{passes['statistics']} over {samples:,} training images"
    else:
        source = f"{passes['statistics']} over {len(swept.proxies):,} proxies"
    turns = "" if swept.at_once == 1 else f", {swept.at_once} at a time"
    rate = swept.tuned["learning_rate"]
    text = (
        f"{len(swept.requests)} requests at learning rate {rate:g}, "
        f"steps {swept.how}{turns}. Data passes: {source} for statistics, "
        f"{passes['labels']} for new labels. Seconds: {timed}; compilation apart "
        f"{seconds['compile']:.1f}."
    )
    return textwrap.fill(text, 80)
