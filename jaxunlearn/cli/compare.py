"""`jaxunlearn compare`: methods, training seeds and what is forgotten, in a table."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxunlearn import methods
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
)
from jaxunlearn.cli.comparison_plot import plot_comparison
from jaxunlearn.cli.console import Bars, consoles
from jaxunlearn.cli.exports import (
    as_csv,
    console_table,
    latex,
    legend,
    markdown,
    verdict_of,
)
from jaxunlearn.cli.folder import Kind, OutputFolder
from jaxunlearn.cli.settings import (
    Folder,
    MethodSettings,
    TrainingSettings,
    check_seed,
    circumstances,
)
from jaxunlearn.cli.sources import given_original
from jaxunlearn.cli.variants import variants
from jaxunlearn.methods.requests import class_sets
from jaxunlearn.metrics.audits import AUDITS
from jaxunlearn.metrics.evaluation import class_label
from jaxunlearn.serialization import atomic_write, to_dict
from jaxunlearn.tasks import Data, split_by_class

COMPARISON = Kind(
    name="comparison",
    settings=("request.json",),
    complete=("comparison.json",),
    written=("*.csv", "*.md", "*.tex", "*.svg", "*.pdf"),
    unfinished=("request.json",),
    beside=True,
)

# Where a comparison goes is not part of what it is.
_ELSEWHERE = ("out", "overwrite", "cache", "data_dir")

Seeds = Annotated[tuple[int, ...], "SEED"]
Tables = dict[str, tuple[dict[str, dict[str, Summary]], dict[str, str]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(MethodSettings, TrainingSettings):
    """Compare methods over training seeds and forgotten classes, beside retraining.

    Everything is made once and kept in --cache under the hash of what it came from: a
    comparison that was killed goes on where it was, and a method that is added later
    finds all models that it needs.

    Attributes:
      forget: each class by itself, or sets of classes: 0 1,2 are two, of which the
        second forgets two classes.
      methods: the rows: names of methods, where need be with fields that are set
        otherwise, such as unsc:targets=random,projection=none.
      seeds: training seeds; for each an original and a retrained model start alike. A
        row is the mean over them, and the spread of the retrained is its noise.
      unlearning_seeds: of the methods, over which each training seed's mean is taken.
      audit_seed: of what audits draw.
      which: audits to make; by default those that need no long training.
      cache: where models, records and audits are kept.
      out: the comparison's folder; by default runs/DATASET-compare.
      overwrite: replace the comparison that is there, once the new one is complete.
    """

    examples = (
        "jaxunlearn compare --forget 3 --methods covarnav unsc last-layers-reset",
        "jaxunlearn compare --forget each --seeds 0 1 2 3 4 --methods unsc "
        "unsc:targets=random unsc:projection=none",
    )
    first = (
        *("forget", "methods", "seeds", "dataset", "data_dir", "size", "model"),
        *("options", "recipe.epochs", "learning_rates", "which", "unlearning_seeds"),
        *("audit_seed", "cache", "out", "overwrite"),
    )

    forget: Annotated[tuple[str, ...], "each|CLASS,CLASS"] = ("3",)
    methods: Annotated[tuple[str, ...], "METHOD[:FIELD=VALUE,...]"] = (
        *("covarnav", "unsc", "unprojected", "fine-tune", "random-labels"),
        *("last-layers-reset", "mask-head"),
    )
    seeds: Seeds = (0, 1, 2)
    unlearning_seeds: Seeds = (0,)
    audit_seed: int = 0
    which: tuple[Literal[tuple(AUDITS)], ...] | None = None
    cache: Annotated[Path, "FOLDER"] = Path("runs/cache")
    out: Folder = None
    overwrite: bool = False

    @property
    def place(self) -> Path:
        """Where the comparison goes."""
        return Path(f"runs/{self.label}-compare") if self.out is None else self.out

    def requests(self) -> str | list[tuple[int, ...]]:
        """What is forgotten, as `class_sets` takes it."""
        if self.forget == ("each",):
            return "each"
        if "each" in self.forget:
            msg = f"--forget takes each by itself, or sets of classes; it is {' '.join(self.forget)!r}."  # noqa: E501
            raise ValueError(msg)
        return [self.forget_numbers([word]) for word in self.forget]

    def check(self) -> None:
        """Check what can be checked before any data are read."""
        super().check()
        self.requests()
        for name in ("seeds", "unlearning_seeds"):
            flag, seeds = f"--{name.replace('_', '-')}", getattr(self, name)
            if not seeds or len({*seeds}) < len(seeds):
                msg = f"{flag} takes at least one seed, each once; it is {list(seeds)}."
                raise ValueError(msg)
            for seed in seeds:
                check_seed(seed, flag)
        check_seed(self.audit_seed, "--audit-seed")
        for variant in variants(self, self.methods):
            if getattr(methods.by_name[variant.name], "from_scratch", False):
                msg = f"{variant.title} is the measure of all others and always there: leave it out of --methods."  # noqa: E501
                raise ValueError(msg)

    def audits(self) -> list[str]:
        """Names of `AUDITS`, "accuracy" among them."""
        default = [name for name, kind in AUDITS.items() if kind.default]
        return sorted({"accuracy", *(default if self.which is None else self.which)})

    def to_dict(self) -> dict[str, Any]:
        """What decides about the results."""
        used = [variant.name for variant in variants(self, self.methods)]
        return super().to_dict(used, _ELSEWHERE) | {"which": self.audits()}

    def run(self) -> None:
        """Make what is missing, write tables and plots, and print the table."""
        results, progress = consoles()
        self.check()
        folder = OutputFolder(
            *(self.place, self.to_dict()),
            kind=COMPARISON,
            resume=True,
            overwrite=self.overwrite,
        )
        splits = self.load_splits()
        given_original(self, splits["train"].images)  # refuses what is not for it
        count = self.num_classes()
        sets = class_sets(self.requests(), splits["train"], count, name="--forget")
        for classes in sets:
            for data in splits.values():
                split_by_class(data, classes)  # both parts must be there
        with folder:
            with Bars(console=progress) as shown:
                comparison = _Comparison(self, splits, Cells(self, splits, shown))
                tables = comparison.tables(sets, shown)
            seeds = ", ".join(map(str, self.seeds))
            title = f"{self.dataset}, {self.model}, training seeds {seeds}"
            _write(folder, comparison, tables, title, splits)
            folder.finish()
        for heading, (rows, verdicts) in tables.items():
            if len(tables) == 1 or heading == _ALL:
                about = f"{title}, forget {heading}"
                results.print(console_table(rows, verdicts, about))
                results.print(legend(rows))
        for sentence in comparison.refusals:
            results.print(sentence)
        results.print(f"Written to {folder.place}; models are kept in {self.cache}.")


# The heading of the means over all that was forgotten.
_ALL = "mean of all"


class _Comparison:
    """Makes the cells in turn, and sums them up."""

    def __init__(self, settings: Compare, splits: Mapping[str, Data], cells: Cells):
        self._settings, self._cells = settings, cells
        self._names = splits["test"].class_names
        self.settings = settings.to_dict()
        self._rows = variants(settings, settings.methods)
        self.refusals: list[str] = []
        self.made: list[dict[str, Any]] = []

    def tables(self, sets: Sequence[tuple[int, ...]], shown: Bars) -> Tables:
        """A table for each set of classes, and one of means if there are several."""
        seeds, tables, every = self._settings.seeds, {}, []
        with shown.row("comparison") as progress:
            for done, classes in enumerate(sets):
                progress("forget", done, len(sets))
                heading = ", ".join(class_label(c, self._names) for c in classes)
                measured, verdicts = self._of_request(classes, heading)
                every.append(measured)
                tables[heading] = _summaries(measured, seeds), verdicts
            progress("forget", len(sets), len(sets))
        if len(sets) > 1:
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
            tables[_ALL] = _summaries(means, seeds), _common(tables, titles)
        return tables

    def _of_request(self, classes, heading):
        """Measures by row and training seed, and the verdict of each row."""
        settings, cells = self._settings, self._cells
        originals = {seed: cells.original(seed) for seed in settings.seeds}
        retrained = {seed: cells.retrained(seed, classes) for seed in settings.seeds}
        measured: dict[str, dict[int, list[dict[str, Measure]]]] = {}
        verdicts: dict[str, list[str]] = {}
        for index, seed in enumerate(settings.seeds):
            place = Place(index, len(settings.seeds))
            twin = retrained[seed]
            made = self._unlearned(originals[seed], seed, classes, heading)
            audits = cells.audits(
                {name: cell for name, (_, cell) in made.items()},
                originals[seed],
                list(retrained.values()),
                classes,
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
                verdicts.setdefault(title, []).append(audit["verdict"])
        return measured, {t: verdict_of(v) for t, v in verdicts.items()}

    def _unlearned(
        self, original: Cell, seed: int, classes: tuple[int, ...], heading: str
    ) -> dict[str, tuple[str, Cell]]:
        """By a name of its own: the row that a model is part of, and the model."""
        made = {}
        for variant in self._rows:
            for again in self._settings.unlearning_seeds:
                cell = self._cells.unlearned(variant, original, classes, again)
                about = {"forget": list(classes), "training_seed": seed}
                about |= {"model": variant.title, "unlearning_seed": again}
                self.made.append(about | {"file": cell.digest, **_told(cell)})
                if "refused" in cell.record:
                    said = f"{variant.title}, forget {heading}, seed {seed}: {cell.record['refused']}"  # noqa: E501
                    self.refusals.append(said)
                else:
                    made[f"{variant.title}, seed {again}"] = variant.title, cell
        return made


def _summaries(measured, seeds) -> dict[str, dict[str, Summary]]:
    """Only rows of which there is something."""
    return {
        title: summarise([by_seed[seed] for seed in seeds if seed in by_seed])
        for title, by_seed in measured.items()
    }


def _common(tables: Tables, titles: Sequence[str]) -> dict[str, str]:
    """The verdicts of every request together."""
    each = [verdicts for _, verdicts in tables.values()]
    common = {title: [v[title] for v in each if title in v] for title in titles}
    return {title: verdict_of(some) for title, some in common.items() if some}


def _told(cell: Cell) -> dict[str, Any]:
    names = ("tuned", "at_edge", "seconds", "samples_read", "peak_memory", "refused")
    return {name: cell.record[name] for name in names if name in cell.record}


def _write(folder, comparison, tables: Tables, title: str, splits) -> None:
    """The tables in every form, and the plots."""
    texts = {
        "comparison.csv": as_csv(tables),
        "comparison.md": markdown(tables, title),
        "comparison.tex": latex(tables),
    }
    for name, text in texts.items():
        folder.write(name, lambda path, text=text: _write_text(path, text))
    rows, _ = tables.get(_ALL) or next(iter(tables.values()))
    for name in ("comparison.svg", "comparison.pdf"):
        folder.write(name, lambda path: plot_comparison(path, rows, title))
    record = {
        "settings": comparison.settings,
        "tables": [
            {"forget": heading, "rows": to_dict(rows), "verdicts": verdicts}
            for heading, (rows, verdicts) in tables.items()
        ],
        "models": comparison.made,
        **circumstances(splits),
    }
    folder.write_json("comparison.json", record)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
