"""`jaxunlearn reproduce`: the published comparisons, listed and made again."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

from jaxunlearn.cli.compare import record_of
from jaxunlearn.cli.comparison import COLUMNS
from jaxunlearn.cli.console import consoles, table
from jaxunlearn.cli.flags import Command
from jaxunlearn.cli.published import (
    Compared,
    Published,
    compared,
    hashes,
    most_outside,
    names,
    published,
)
from jaxunlearn.cli.settings import Folder
from jaxunlearn.cli.stored import check_named, listing, minutes
from jaxunlearn.serialization import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduce(Command):
    """List the published comparisons, or make one again beside its numbers.

    Exits with 1 where more of its means lie outside their stored intervals than chance
    explains. What was killed is taken up by the same command; a finished comparison of
    the same settings is not made again.

    Attributes:
      name: which one; without it all are listed.
      data_dir: where TFDS keeps its sets; by default $TFDS_DATA_DIR.
      cache: where models, records and audits are kept.
      out: the comparison's folder; by default runs/reproduce/NAME. What was found
        beside the stored intervals is written to NAME.json beside it.
      overwrite: replace the comparison that is there, once the new one is complete.
    """

    examples = ("jaxunlearn reproduce", "jaxunlearn reproduce digits-class-3")
    positional = "name"

    name: Annotated[str | None, "NAME"] = None
    data_dir: Folder = None
    cache: Annotated[Path, "FOLDER"] = Path("runs/reproduce/cache")
    out: Folder = None
    overwrite: bool = False

    @property
    def place(self) -> Path:
        """Where the comparison goes."""
        return Path(f"runs/reproduce/{self.name}") if self.out is None else self.out

    def check(self) -> None:
        """Refuse a name that there is not."""
        super().check()
        if self.name is not None:
            check_named("comparison", self.name, names())

    def run(self) -> None:
        """List them; or make one, write and say what was found, and exit by it."""
        self.check()
        results, _ = consoles()
        if self.name is None:
            results.print(_list())
            return
        entry = published(self.name)
        own = {n: getattr(self, n) for n in ("data_dir", "cache", "overwrite")}
        settings = dataclasses.replace(entry.settings(), **own, out=self.place)
        _check_data(entry, hashes(settings, settings.load("train")))
        made = record_of(settings)
        found = compared(entry.intervals, made["tables"])
        outside = [one for one in found if not one.within]
        reproduced = len(outside) <= most_outside(len(found))
        record = {
            "name": self.name,
            "reproduced": reproduced if found else None,
            "numbers": [one._asdict() | {"within": one.within} for one in found],
            "most_outside": most_outside(len(found)),
            "others": _beside(entry, made),
            "versions": {"stored": entry.versions, "here": made["versions"]},
        }
        write_json(self.place.with_name(f"{self.place.name}.json"), record)
        for said in _said(entry, found, outside, record["others"]):
            results.print(said)
        if not reproduced:
            raise SystemExit(1)


def _list() -> str:
    entries = ((name, published(name)) for name in names())
    return listing(
        (name, one.awaits or minutes(one.minutes), f"{one.about} {one.where}")
        for name, one in entries
    )


def _check_data(entry: Published, found: dict[str, str]) -> None:
    for forgotten, known in entry.forgets.items():
        if found.get(forgotten) != known:
            msg = (
                f"The training samples to forget ({forgotten}) are others than those "
                f"of the published numbers: their indices have the hash "
                f"{str(found.get(forgotten))[:12]} and not {known[:12]}. The data set "
                "in --data-dir is another version or in another order."
            )
            raise ValueError(msg)


def _beside(entry: Published, made: dict[str, Any]) -> list[dict[str, Any]]:
    """What others have published, and what it is here."""
    rows = made["tables"][-1]["rows"]
    return [
        {"row": row, "measure": name, "published": value, "here": here}
        for row, measures in entry.others.items()
        for name, value in measures.items()
        if (here := rows.get(row, {}).get(name, {}).get("mean")) is not None
    ]


def _said(entry, found: list[Compared], outside: list[Compared], others) -> list[Any]:
    """What to print at the end."""
    said: list[Any] = []
    if others:
        heads = ["published", "here"]
        shown = table("Published by others", ["model", "measure"], heads)
        for one in others:
            numbers = f"{one['published']:.2f}", f"{one['here']:.2f}"
            shown.add_row(one["row"], COLUMNS[one["measure"]].heading, *numbers)
        said.append(shown)
    if not found:
        return [*said, f"No intervals are stored yet: {entry.awaits}."]
    if outside:
        heads = ["stored", "here"]
        shown = table("Outside their intervals", ["model", "measure"], heads)
        for one in outside:
            heading, form = COLUMNS[one.measure].heading, COLUMNS[one.measure].form
            low, high = (format(end, form) for end in one.interval)
            here = "none" if math.isnan(one.value) else format(one.value, form)
            shown.add_row(one.row, heading, f"{low} to {high}", here)
        said.append(shown)
    most, count = most_outside(len(found)), len(found)
    inside = count - len(outside)
    verdict = "reproduced" if len(outside) <= most else "NOT reproduced"
    return [
        *said,
        f"{inside} of {count} means lie within their 95 % intervals; by chance up to "
        f"{most} lie outside: {verdict}.",
    ]
