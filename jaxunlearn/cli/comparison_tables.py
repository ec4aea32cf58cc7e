"""A comparison as it is made: every cell in turn, and a table of each request."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.cli.cells import Cell, Cells
from jaxunlearn.cli.comparison import (
    Measure,
    Place,
    Summary,
    costs,
    mean_of_requests,
    measures_of_audit,
    measures_of_reference,
    summarise,
    verdict,
)
from jaxunlearn.cli.console import Bars
from jaxunlearn.cli.samples import Forgotten, short_hash
from jaxunlearn.cli.variants import variants
from jaxunlearn.metrics.evaluation import class_label
from jaxunlearn.tasks import Data

# The rows, and the verdicts of those that unlearned.
Table = tuple[dict[str, dict[str, Summary]], dict[str, str]]
Tables = dict[str, Table]

# The heading of the means over all that was forgotten.
ALL = "mean of all"


class Comparison:
    """Makes the cells in turn, and sums them up.

    Attributes:
      refusals: sentences of methods that could not.
      made: what every model is and what it cost.
      cache: where the models are kept.
    """

    def __init__(self, settings: Any, splits: Mapping[str, Data], cells: Cells):
        self._settings, self._cells = settings, cells
        self._names = splits["test"].class_names
        self._rows = variants(settings, settings.methods)
        self.refusals: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.cache = str(settings.cache)

    def tables(self, requests: Sequence[Forgotten], shown: Bars) -> Tables:
        """A table for each request, and one of means if there are several."""
        seeds, tables, every = self._settings.seeds, {}, []
        with shown.row("comparison") as progress:
            for done, forgotten in enumerate(requests):
                progress("forget", done, len(requests))
                heading = self._heading(forgotten)
                every.append(self._of_request(forgotten, heading))
                tables[heading] = _table(every[-1], seeds)
            progress("forget", len(requests), len(requests))
        if len(requests) > 1:
            titles = [t for t in every[0] if all(t in one for one in every)]
            means = {
                title: {
                    seed: [
                        mean_of_requests(
                            one for some in every for one in some[title].get(seed, ())
                        )
                    ]
                    for seed in seeds
                }
                for title in titles
            }
            tables[ALL] = _table(means, seeds)
        return tables

    def _heading(self, forgotten: Forgotten) -> str:
        if forgotten.classes:
            return ", ".join(class_label(c, self._names) for c in forgotten.classes)
        said = forgotten.record()
        return f"{said['count']} samples ({short_hash(said['sha256'])})"

    def _of_request(self, forgotten, heading):
        """Measures by row and training seed."""
        settings, cells = self._settings, self._cells
        originals = {seed: cells.original(seed) for seed in settings.seeds}
        retrained = {seed: cells.retrained(seed, forgotten) for seed in settings.seeds}
        measured: dict[str, dict[int, list[dict[str, Measure]]]] = {}
        for index, seed in enumerate(settings.seeds):
            place = Place(index, len(settings.seeds))
            twin = retrained[seed]
            made = self._unlearned(originals[seed], seed, forgotten, heading)
            audits = cells.audits(
                {name: cell for name, (_, cell) in made.items()},
                originals[seed],
                list(retrained.values()),
                forgotten,
                settings.audit_seed,
            )
            for which, cell in (("original", originals[seed]), ("retrained", twin)):
                if audits:
                    audit = next(iter(audits.values()))
                    own = measures_of_reference(audit, which, place)
                    own |= costs(cell.record, twin.record)
                    measured.setdefault(which, {})[seed] = [own]
            for name, (title, cell) in made.items():
                audit = audits[name]
                given = cell.record, audit, twin.record, place
                measured.setdefault(title, {}).setdefault(seed, []).append(
                    measures_of_audit(*given)
                )
        for role, models in (("original", originals), ("retrained", retrained)):
            for seed, cell in models.items():
                about = {"forget": heading, "training_seed": seed, "model": role}
                self.made.append(about | {"file": cell.digest, **_told(cell)})
        return measured

    def _unlearned(
        self, original: Cell, seed: int, forgotten: Forgotten, heading: str
    ) -> dict[str, tuple[str, Cell]]:
        """By a name of its own: the row that a model is part of, and the model."""
        made = {}
        for variant in self._rows:
            for again in self._settings.unlearning_seeds:
                cell = self._cells.unlearned(variant, original, forgotten, again)
                about = {"forget": heading, "training_seed": seed}
                about |= {"model": variant.title, "unlearning_seed": again}
                self.made.append(about | {"file": cell.digest, **_told(cell)})
                if "refused" in cell.record:
                    said = f"{variant.title}, forget {heading}, seed {seed}: {cell.record['refused']}"  # noqa: E501
                    self.refusals.append(said)
                else:
                    made[f"{variant.title}, seed {again}"] = variant.title, cell
        return made


def _table(measured, seeds) -> Table:
    """Only rows of which there is something; a verdict of all but the first two."""
    rows = {
        title: summarise([by_seed[seed] for seed in seeds if seed in by_seed])
        for title, by_seed in measured.items()
    }
    judged = [title for title in rows if title not in ("original", "retrained")]
    given = rows.get("original", {}), rows.get("retrained", {})
    return rows, {title: verdict(rows[title], *given) for title in judged}


def _told(cell: Cell) -> dict[str, Any]:
    names = (
        "tuned",
        "at_edge",
        "caution",
        "seconds",
        "samples_read",
        "peak_memory",
        "refused",
    )
    said = {name: cell.record[name] for name in names if name in cell.record}
    # Where classes are of unequal size, means over them hide the small ones.
    test = cell.record.get("test")
    return said if test is None else said | {"per_class": test["per_class"]}
