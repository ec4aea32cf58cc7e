"""`jaxunlearn study`: an open question, its stored comparisons, and what they say."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

from jaxunlearn.cli.compare import Compare, record_of
from jaxunlearn.cli.comparison import COLUMNS, Column
from jaxunlearn.cli.console import Bars, consoles
from jaxunlearn.cli.flags import Command, parse
from jaxunlearn.cli.measurements import MEASUREMENTS, Measured, measure
from jaxunlearn.cli.settings import Folder
from jaxunlearn.cli.stored import check_named, listing, minutes, names_in, read_stored
from jaxunlearn.cli.study_page import correlations, table_of
from jaxunlearn.cli.study_plot import plot_study
from jaxunlearn.serialization import atomic_write, to_dict, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question that comparisons answer, or measurements of their own.

    Attributes:
      question: in a sentence.
      source: who asks it.
      comparisons: flags of `jaxunlearn compare`, by a title of each.
      measured: what no comparison measures, by a title of each.
      full: comparisons at the papers' size, for a GPU; empty where there are none.
      measures: what the picture shows, as gaps to retraining where there are any.
      correlated: pairs of measures; of each the rank correlation over all rows that
        have both.
      minutes: how long it takes on two cores, from nothing; 0 if that is not known.
      answer: what was found, how sure that is, and what would change it: five lines,
        or none yet.
    """

    question: str
    source: str
    comparisons: dict[str, str] = dataclasses.field(default_factory=dict)
    measured: dict[str, Measured] = dataclasses.field(default_factory=dict)
    full: dict[str, str] = dataclasses.field(default_factory=dict)
    measures: tuple[str, ...] = ("accuracy/forgotten", "accuracy/retained", "probe")
    correlated: tuple[tuple[str, str], ...] = ()
    minutes: float = 0.0
    answer: tuple[str, ...] = ()

    def settings(self, *, full: bool = False) -> dict[str, Compare]:
        """Of every comparison and measurement, by its title."""
        asked = self.full
        if not full:
            measured = {title: one.command for title, one in self.measured.items()}
            asked = self.comparisons | measured
        return {t: parse("compare", Compare, shlex.split(f)) for t, f in asked.items()}

    @property
    def columns(self) -> dict[str, Column]:
        """Of all that it can report."""
        own = (MEASUREMENTS[one.measurement].columns for one in self.measured.values())
        return dict(COLUMNS) | {name: c for some in own for name, c in some.items()}


def names() -> list[str]:
    """All that there are."""
    return names_in("studies")


def question(name: str) -> Question:
    """The one of this name, which is one of `names()`."""
    return read_stored(Question, "studies", name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Command):
    """List the studies, or make one: its tables beside retraining, a plot, an answer.

    A comparison that is there already, of the same settings, is not made again; what
    was killed is taken up by the same command. `--full` makes comparisons alone.

    Attributes:
      name: which one; without it all are listed.
      full: at the papers' size, for a GPU.
      data_dir: where TFDS keeps its sets; by default $TFDS_DATA_DIR.
      cache: where models, records and audits are kept.
      out: the folder of the study; by default runs/studies/NAME.
      overwrite: replace the comparisons that are there.
    """

    examples = ("jaxunlearn study", "jaxunlearn study labels")
    positional = "name"

    name: Annotated[str | None, "NAME"] = None
    full: bool = False
    data_dir: Folder = None
    cache: Annotated[Path, "FOLDER"] = Path("runs/studies/cache")
    out: Folder = None
    overwrite: bool = False

    @property
    def place(self) -> Path:
        """Where everything goes."""
        end = "-full" * self.full
        return Path(f"runs/studies/{self.name}{end}") if self.out is None else self.out

    def check(self) -> None:
        """Refuse a name that there is not."""
        super().check()
        if self.name is None:
            return
        check_named("study", self.name, names())
        if self.full and not question(self.name).full:
            msg = f"The study {self.name} has no larger form: leave out --full."
            raise ValueError(msg)

    def run(self) -> None:
        """List them; or make one, and say what is known of its question."""
        self.check()
        results, progress = consoles()
        if self.name is None:
            results.print(_list())
            return
        asked = question(self.name)
        mine = {
            title: dataclasses.replace(settings, **self._own, out=self.place / title)
            for title, settings in asked.settings(full=self.full).items()
        }
        for settings in mine.values():
            settings.check()  # All, before the first takes its time.
        self.place.mkdir(parents=True, exist_ok=True)
        measured = {} if self.full else asked.measured
        rows = {
            title: record_of(settings)["tables"][-1]["rows"]
            for title, settings in mine.items()
            if title not in measured
        }
        pages = {t: (self.place / t / "comparison.md").read_text("utf-8") for t in rows}
        for title, one in measured.items():
            with Bars(console=progress) as shown:
                made = measure(one, mine[title], shown)
            rows[title], columns = to_dict(made), MEASUREMENTS[one.measurement].columns
            pages[title] = table_of(made, columns, f"{title}: {one.measurement}")
            write_json(self.place / f"{title}.json", {"asked": one, "rows": made})
        found = correlations(rows, asked.correlated, asked.columns)
        headings = {name: asked.columns[name].heading for name in asked.measures}
        plot_study(self.place / "study.svg", rows, headings, asked.question)
        parts = [f"# {asked.question}", f"Source: {asked.source}.", *asked.answer]
        parts += ["![what was found](study.svg)", *found, *pages.values()]
        with atomic_write(self.place / "study.md") as temporary:
            text = "\n\n".join(part.strip() for part in parts)
            temporary.write_text(f"{text}\n", encoding="utf-8")
        results.print(asked.question)
        results.print("\n".join(asked.answer) or "It has not been answered yet.")
        for said in found:
            results.print(said)
        results.print(f"Written to {self.place}.")

    @property
    def _own(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in ("data_dir", "cache", "overwrite")}


def _list() -> str:
    entries = ((name, question(name)) for name in names())
    return listing(
        (
            name,
            ("answered, " if one.answer else "not answered, ") + minutes(one.minutes),
            one.question,
        )
        for name, one in entries
    )
