"""`jaxunlearn study`: an open question, its stored comparisons, and what they say."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

from jaxunlearn.cli.compare import Compare, record_of
from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.flags import Command, parse
from jaxunlearn.cli.settings import Folder
from jaxunlearn.cli.stored import check_named, listing, minutes, names_in, read_stored
from jaxunlearn.cli.study_plot import plot_study
from jaxunlearn.serialization import atomic_write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question that comparisons answer.

    Attributes:
      question: in a sentence.
      source: who asks it.
      comparisons: flags of `jaxunlearn compare`, by a title of each.
      full: the same at the papers' size, for a GPU; empty where there is nothing more.
      measures: what the picture shows, as gaps to retraining.
      minutes: how long it takes on two cores, from nothing; 0 if that is not known.
      answer: what was found, how sure that is, and what would change it: five lines,
        or none yet.
    """

    question: str
    source: str
    comparisons: dict[str, str]
    full: dict[str, str] = dataclasses.field(default_factory=dict)
    measures: tuple[str, ...] = ("accuracy/forgotten", "accuracy/retained", "probe")
    minutes: float = 0.0
    answer: tuple[str, ...] = ()

    def settings(self, *, full: bool = False) -> dict[str, Compare]:
        """Of every comparison, by its title."""
        asked = self.full if full else self.comparisons
        return {t: parse("compare", Compare, shlex.split(f)) for t, f in asked.items()}


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
    was killed is taken up by the same command.

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
        results, _ = consoles()
        if self.name is None:
            results.print(_list())
            return
        asked = question(self.name)
        own = {n: getattr(self, n) for n in ("data_dir", "cache", "overwrite")}
        made = {
            title: record_of(
                dataclasses.replace(settings, **own, out=self.place / title)
            )
            for title, settings in asked.settings(full=self.full).items()
        }
        rows = {t: record["tables"][-1]["rows"] for t, record in made.items()}
        plot_study(self.place / "study.svg", rows, asked.measures, asked.question)
        with atomic_write(self.place / "study.md") as temporary:
            temporary.write_text(self._page(asked, made), encoding="utf-8")
        results.print(asked.question)
        results.print("\n".join(asked.answer) or "It has not been answered yet.")
        results.print(f"Written to {self.place}.")

    def _page(self, asked: Question, made: dict[str, Any]) -> str:
        """Question, answer, and the tables that the comparisons wrote."""
        parts = [f"# {asked.question}", f"Source: {asked.source}.", *asked.answer]
        parts.append("![gaps to retraining](study.svg)")
        parts += [
            (self.place / title / "comparison.md").read_text(encoding="utf-8").strip()
            for title in made
        ]
        return "\n\n".join(parts) + "\n"


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
