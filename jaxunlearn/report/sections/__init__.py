"""The sections of the page, in their order.

A section is a function of what a folder holds and of what was measured, and a row of
`SECTIONS`. What it lacks it says by raising `MissingError`.
"""

import dataclasses
from collections.abc import Callable

from jaxunlearn.report.contents import Contents
from jaxunlearn.report.measures import Measures
from jaxunlearn.report.sections import (
    accuracies,
    layers,
    making,
    proxies,
    representation,
    results,
)


@dataclasses.dataclass(frozen=True)
class SectionKind:
    """A row of `SECTIONS`.

    Attributes:
      title: its heading.
      build: `(contents, measures) -> HTML`.
    """

    title: str
    build: Callable[[Contents, Measures], str]


SECTIONS: dict[str, SectionKind] = {
    "verdict": SectionKind("Verdict", results.verdicts),
    "results": SectionKind("Results, gaps and noise floors", results.tables),
    "classes": SectionKind("Accuracy of each class", accuracies.per_class),
    "confusion": SectionKind("Confusion matrices", accuracies.confusions),
    "spectrum": SectionKind("Spectra and chosen ranks", layers.spectra),
    "gradient": SectionKind(
        "What the projection leaves of the forget gradient", layers.gradients
    ),
    "drift": SectionKind("Drift certificates", layers.drifts),
    "proxies": SectionKind("Proxy images", proxies.images),
    "relearning": SectionKind("Relearning", representation.relearning),
    "membership": SectionKind("Membership", representation.membership),
    "features": SectionKind("Maps of the features", representation.maps),
    "making": SectionKind("How this was made", making.facts),
}
