"""`jaxunlearn compare`: methods, training seeds and what is forgotten, in a table."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxunlearn import methods
from jaxunlearn.cli.cells import Cells
from jaxunlearn.cli.comparison import blindness
from jaxunlearn.cli.comparison_plot import plot_comparison
from jaxunlearn.cli.comparison_tables import ALL, Comparison, Tables
from jaxunlearn.cli.console import Bars, consoles
from jaxunlearn.cli.exports import as_csv, console_table, latex, legend, markdown
from jaxunlearn.cli.folder import Kind, OutputFolder
from jaxunlearn.cli.later import told
from jaxunlearn.cli.samples import Forgotten, SampleSettings
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
from jaxunlearn.serialization import atomic_write, read_json, to_dict
from jaxunlearn.tasks import Data
from jaxunlearn.training.checkpoints import differences

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(SampleSettings, MethodSettings, TrainingSettings):
    """Compare methods over training seeds and what is forgotten, beside retraining.

    Everything is made once and kept in --cache under the hash of what it came from: a
    comparison that was killed goes on where it was, and a method that is added later
    finds all models that it needs.

    Attributes:
      forget: each class by itself, or sets of classes: 0 1,2 are two, of which the
        second forgets two classes. Or samples, by one of the next two.
      methods: the rows: names of methods, where need be with fields that are set
        otherwise, such as unsc:targets=random,projection=none; with +projected at its
        end, the change that a method made is corrected by the retained moments.
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
        "jaxunlearn compare --forget each --methods unsc unsc:projection=none",
    )
    first = (
        *("forget", "forget_indices", "forget_random", "methods", "seeds", "dataset"),
        *(
            "data_dir",
            "size",
            "model",
            "options",
            "recipe.epochs",
            "learning_rates",
            "which",
            "unlearning_seeds",
        ),
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

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> "Compare":
        """Where samples are named no class, and no method that needs one."""
        settings = dataclasses.replace(cls(), **cls.instead(given))
        if settings.forget:
            return settings
        rows = (
            n for n in cls.methods if not getattr(methods.by_name[n], "classwise", "")
        )
        return dataclasses.replace(settings, methods=tuple(rows))

    def requests(self, splits: Mapping[str, Data]) -> list[Forgotten]:
        """What to forget, each by itself."""
        train = splits["train"]
        if self.samplewise:
            return [self.forgotten(train, seed=0)]
        count = self.num_classes()
        sets = class_sets(self.forget_sets(self.forget), train, count, name="--forget")
        requests = [Forgotten(classes) for classes in sets]
        for request in requests:
            request.check_splits(splits)
        return requests

    def check(self) -> None:
        """Check what can be checked before any data are read."""
        super().check()
        rows = variants(self, self.methods)
        self.check_forgotten([variant.name for variant in rows])
        self.forget_sets(self.forget)
        for name in ("seeds", "unlearning_seeds"):
            flag, seeds = f"--{name.replace('_', '-')}", getattr(self, name)
            if not seeds or len({*seeds}) < len(seeds):
                msg = f"{flag} takes at least one seed, each once; it is {list(seeds)}."
                raise ValueError(msg)
            for seed in seeds:
                check_seed(seed, flag)
        check_seed(self.audit_seed, "--audit-seed")
        for variant in rows:
            if getattr(methods.by_name[variant.name], "from_scratch", False):
                msg = f"{variant.title} is the measure of all others and always there: leave it out of --methods."  # noqa: E501
                raise ValueError(msg)

    def audits(self) -> list[str]:
        """Names of `AUDITS`, "accuracy" among them."""
        default = [
            name
            for name, kind in AUDITS.items()
            if kind.default and (kind.samplewise or not self.samplewise)
        ]
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
        requests = self.requests(splits)
        with folder:
            with Bars(console=progress) as shown:
                comparison = Comparison(self, splits, Cells(self, splits, shown))
                tables = comparison.tables(requests, shown)
            seeds = ", ".join(map(str, self.seeds))
            title = f"{self.dataset}, {self.model}, training seeds {seeds}"
            _write(folder, self.to_dict(), comparison, tables, title, splits)
            folder.finish()
        for heading, (rows, verdicts) in tables.items():
            if len(tables) == 1 or heading == ALL:
                about = f"{title}, forget {heading}"
                results.print(console_table(rows, verdicts, about))
                results.print(legend(rows))
                if said := blindness(rows):
                    results.print(said)
        for sentence in comparison.refusals:
            results.print(sentence)
        results.print(f"Written to {folder.place}; models are kept in {self.cache}.")


def record_of(settings: Compare) -> dict[str, Any]:
    """What a comparison found; it is made unless it is there, of the same settings."""
    file = settings.place / "comparison.json"
    stored = read_json(file)["settings"] if file.is_file() else {}
    if settings.overwrite or differences(told(stored), told(settings.to_dict())):
        settings.run()
    return read_json(file)


def _write(
    folder, settings, comparison: Comparison, tables: Tables, title: str, splits
) -> None:
    """The tables in every form, and the plots."""
    texts = {
        "comparison.csv": as_csv(tables),
        "comparison.md": markdown(tables, title),
        "comparison.tex": latex(tables),
    }
    for name, text in texts.items():
        folder.write(name, lambda path, text=text: _write_text(path, text))
    rows, _ = tables.get(ALL) or next(iter(tables.values()))
    for name in ("comparison.svg", "comparison.pdf"):
        folder.write(name, lambda path: plot_comparison(path, rows, title))
    record = {
        "settings": settings,
        "tables": [
            {"forget": heading, "rows": to_dict(rows), "verdicts": verdicts}
            for heading, (rows, verdicts) in tables.items()
        ],
        "models": comparison.made,
        "cache": comparison.cache,
        **circumstances(splits),
    }
    folder.write_json("comparison.json", record)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
