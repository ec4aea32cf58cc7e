"""What is computed for the page from classifiers and data, each part by itself."""

from collections.abc import Callable
from typing import Any

from jaxunlearn.progress import Progress, reporting
from jaxunlearn.report.attacks import membership, relearning
from jaxunlearn.report.contents import Contents, MissingError
from jaxunlearn.report.limits import Limits
from jaxunlearn.report.maps import feature_maps
from jaxunlearn.report.outputs import evaluations
from jaxunlearn.report.spectra import statistics

Found = dict[str, Any]

MEASURES: dict[str, Callable[[Contents, Limits], Any]] = {
    "evaluations": evaluations,
    "statistics": statistics,
    "relearning": relearning,
    "membership": membership,
    "maps": feature_maps,
}


class Measures:
    """What was measured, by name; what could not be is the sentence that says why."""

    def __init__(self, found: Found):
        self._found = found

    def __getitem__(self, name: str) -> Any:
        value = self._found[name]
        if isinstance(value, MissingError):
            raise value
        return value


def measure(
    contents: Contents, limits: Limits | None = None, *, progress: Progress = None
) -> Measures:
    """Every measure of the page.

    Args:
      contents: what a folder holds.
      limits: how much is computed.
      progress: None, "bar", or a function `(stage, done, total)`.
    """
    limits = Limits() if limits is None else limits
    found: Found = {}
    with reporting(progress) as report:
        for done, (name, function) in enumerate(MEASURES.items()):
            report(name, done, len(MEASURES))
            try:
                found[name] = function(contents, limits)
            except MissingError as error:
                found[name] = error
        report("measures", len(MEASURES), len(MEASURES))
    return Measures(found)
