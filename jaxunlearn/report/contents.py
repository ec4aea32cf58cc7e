"""What a page tells, as plain records: what a folder holds, and what it leaves out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.metrics.evaluation import class_label
from jaxunlearn.tasks import Data

Role = Literal["original", "unlearned", "retrained"]


class MissingError(Exception):
    """Something that a section needs is not there: the sentence stands in its place."""


class Cell(NamedTuple):
    """One entry of a table.

    Attributes:
      text: as people read it.
      value: what the column is sorted by; None comes last.
      note: a second, smaller line.
      within: whether it lies within the noise of retraining, where that is known.
    """

    text: str
    value: float | str | None = None
    note: str = ""
    within: bool | None = None


@dataclasses.dataclass(frozen=True)
class PageTable:
    """A table; the first cell of a row is its name.

    Attributes:
      caption: what it shows.
      heads: of each column what stands above it, and what that means.
      rows: a cell for each column.
    """

    caption: str
    heads: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]


@dataclasses.dataclass(frozen=True, eq=False)
class ShownModel:
    """A classifier that the page shows.

    Attributes:
      name: of its row.
      role: what it is in the comparison.
      record: what files say of it: "test" (an evaluation), "ranks" and the like.
      classifier: itself, or None where it was not read.
    """

    name: str
    role: Role
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classifier: Classifier | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampleSets:
    """The data that measures are taken on.

    Attributes:
      train: the training split, forgotten samples included.
      test: the test split.
      forget: the forgotten samples of the training split.
      retain: the others.
    """

    train: Data
    test: Data
    forget: Data
    retain: Data


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """All that a folder holds.

    Attributes:
      kind: "run", "comparison", "sweep" or "audit".
      title: of the page.
      what: what was forgotten, in words.
      verdicts: by the name of an unlearned model.
      remarks: what to say beside a verdict, by the same names.
      results: tables of results, the most important one first.
      models: in the order in which figures show them.
      num_classes: of the data; 0 where that is not known.
      class_names: one for each class, where they have any.
      forget_classes: `()` where samples were forgotten.
      samplewise: whether samples and not classes were forgotten.
      samples: the data; None where they were not read.
      absent: why there are no data or classifiers, in a sentence.
      proxies: images that stood in for the retained data.
      proxy_quality: what was measured of them.
      key: of the audits, so that what is drawn is drawn alike.
      note: which of several requests or seeds the figures show.
      facts: how it was made, by name.
      settings: what was asked for.
    """

    kind: str
    title: str
    what: str
    verdicts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remarks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    results: Sequence[PageTable] = ()
    models: Sequence[ShownModel] = ()
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    forget_classes: tuple[int, ...] = ()
    samplewise: bool = False
    samples: SampleSets | None = None
    absent: str = ""
    proxies: Data | None = None
    proxy_quality: Mapping[str, Any] | None = None
    key: Any = None
    note: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def label(self, number: int) -> str:
        """A class by number and name."""
        return class_label(number, self.class_names)

    def of(self, *roles: Role) -> list[ShownModel]:
        """The models in these roles."""
        return [model for model in self.models if model.role in roles]

    @property
    def original(self) -> ShownModel:
        """The model that was unlearned from."""
        found = self.of("original")
        if not found:
            msg = "There is no original classifier here to compare with."
            raise MissingError(msg)
        return found[0]

    @property
    def data(self) -> SampleSets:
        """The data, or the sentence that says why there are none."""
        if self.samples is None:
            raise MissingError(self.absent)
        return self.samples

    @property
    def loaded(self) -> list[ShownModel]:
        """The models whose classifiers were read."""
        found = [model for model in self.models if model.classifier is not None]
        if not found:
            raise MissingError(self.absent)
        return found
