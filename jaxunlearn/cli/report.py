"""`jaxunlearn report`: the page that people read, made of what a folder holds."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from jaxunlearn.cli.comparison_plot import plot_comparison
from jaxunlearn.cli.console import Bars, consoles
from jaxunlearn.cli.exports import as_csv, latex, markdown
from jaxunlearn.cli.flags import Command
from jaxunlearn.cli.places import Lock, check_reachable
from jaxunlearn.cli.report_folders import read_folder
from jaxunlearn.cli.report_inputs import Asked, Read
from jaxunlearn.cli.report_tables import NOTE
from jaxunlearn.cli.settings import File, Folder
from jaxunlearn.report.limits import Limits
from jaxunlearn.report.measures import measure
from jaxunlearn.report.page import page
from jaxunlearn.serialization import atomic_write

Format = Literal["csv", "md", "tex", "svg", "pdf"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Write what a run, comparison, sweep or audit found as one HTML file.

    It needs no network and no other file. What a folder does not hold is computed from
    its classifiers and data, as far as seconds allow, or left out with a sentence.

    Attributes:
      folder: of a finished run, comparison, sweep or audit; or the JSON of one audit.
      out: the file to write; by default report.html in the folder.
      overwrite: replace a file that is there.
      formats: write the table of results in these formats too, beside the page: for a
        spreadsheet, Markdown, LaTeX with booktabs, or as a vector plot.
      compute: read classifiers and data for what files do not hold; --no-compute
        leaves that out and takes a second.
      samples: the most training and test samples that are looked at.
      points: the most samples in a map of features.
      map: how features become two numbers.
      relearn_steps: the most minibatches of relearning; by default 150, and fewer or
        none where the network is large.
      request: of several forgotten sets, which the figures show; the first is 1.
      data_dir: where data sets are kept, if elsewhere than the folder says.
      cache: where the models of a comparison are kept, if elsewhere than it says.
    """

    examples = (
        "jaxunlearn report runs/digits-forget-3-seed-0",
        "jaxunlearn report runs/digits-compare --formats csv tex pdf",
    )
    positional = "folder"

    folder: Annotated[Path, "FOLDER"]
    out: File | None = None
    overwrite: bool = False
    formats: tuple[Format, ...] = ()
    compute: bool = True
    samples: int = 2000
    points: int = 400
    map: Literal["tsne", "pca"] = "tsne"
    relearn_steps: int | None = None
    request: int = 1
    data_dir: Folder = None
    cache: Folder = None

    @property
    def place(self) -> Path:
        """Where the page goes."""
        if self.out is not None:
            return self.out
        at = self.folder.parent if self.folder.is_file() else self.folder
        return at / "report.html"

    def check(self) -> None:
        """Refuse what cannot be written or counted."""
        super().check()
        for name in ("samples", "points", "relearn_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = f"--{name.replace('_', '-')}"
                msg = f"{flag} must be at least 1; it is {value}."
                raise ValueError(msg)
        if self.place.suffix not in (".html", ".htm"):
            msg = f"--out must end in .html; it is {self.place}."
            raise ValueError(msg)
        for path in (self.place, *map(self._beside, self.formats)):
            check_reachable(path)
            if path.is_dir() or (path.exists() and not self.overwrite):
                msg = f"{path} is there: choose another file with --out, or replace it with --overwrite."  # noqa: E501
                raise ValueError(msg)

    def run(self) -> None:
        """Read, compute, write."""
        begun, (results, progress) = time.perf_counter(), consoles()
        asked = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(Asked)
        }
        limits = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(Limits)
        }
        if self.folder.exists():
            self.check()
        read = read_folder(self.folder, Asked(**asked))
        with Bars(console=progress) as shown, shown.row("report") as move:
            measures = measure(read.contents, Limits(**limits), progress=move)
        text = page(read.contents, measures)
        self.place.parent.mkdir(parents=True, exist_ok=True)
        with Lock(self.place).held():
            _write(self.place, text)
            for form in self.formats:
                path = self._beside(form)
                _FORMS[form](path, read)
        megabytes, seconds = len(text.encode()) / 1e6, time.perf_counter() - begun
        results.print(f"Written to {self.place}: {megabytes:.2f} MB, {seconds:.0f} s.")

    def _beside(self, form: str) -> Path:
        return self.place.with_suffix(f".{form}")


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plot(path: Path, read: Read) -> None:
    rows, _ = next(iter(read.tables.values()))
    plot_comparison(path, rows, f"{read.contents.title}; {read.contents.what}")


_FORMS: dict[str, Callable[[Path, Read], None]] = {
    "csv": lambda path, read: _write(path, as_csv(read.tables)),
    "md": lambda path, read: _write(
        path, markdown(read.tables, read.contents.title, NOTE)
    ),
    "tex": lambda path, read: _write(path, latex(read.tables)),
    "svg": _plot,
    "pdf": _plot,
}
