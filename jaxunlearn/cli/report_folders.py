"""What kind of folder it is, and who reads it for a report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxunlearn.cli.places import partial_of
from jaxunlearn.cli.report_audits import is_audit, read_audits, read_comparison
from jaxunlearn.cli.report_inputs import Asked, Read
from jaxunlearn.cli.report_runs import read_run, read_sweep


def read_folder(place: Path, asked: Asked) -> Read:
    """What lies in a folder, or in one file of an audit.

    Raises:
      ValueError: there is nothing, something else, or something damaged.
    """
    if not place.exists():
        unfinished = partial_of(place) if place.name else place
        if (unfinished / "request.json").is_file():
            msg = (
                f"What is in {unfinished} is unfinished: the command that began it "
                "takes it up; report on it when it is done."
            )
            raise ValueError(msg)
        msg = f"There is no {place}: report takes the folder of a run, comparison, sweep or audit."  # noqa: E501
        raise ValueError(msg)
    if place.is_file():
        return _checked(place, read_audits, place.parent, [place], asked)
    for name, read in _READERS.items():
        if (place / name).is_file():
            return _checked(place / name, read, place, place / name, asked)
    audits = [path for path in sorted(place.glob("*.json")) if is_audit(path)]
    if audits:
        return _checked(audits[0], read_audits, place, audits, asked)
    wanted = ", ".join(_READERS)
    msg = (
        f"{place} holds none of {wanted} and no JSON of an audit: report takes the "
        "folder of a finished run, comparison, sweep or audit."
    )
    raise ValueError(msg)


def _checked(path: Path, read: Callable[..., Read], *arguments: Any) -> Read:
    try:
        return read(*arguments)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        msg = (
            f"{path} lacks what the command writes there ({type(error).__name__}: "
            f"{error}): it is damaged or of another version; make it again."
        )
        raise ValueError(msg) from error


_READERS: dict[str, Callable[[Path, Path, Asked], Read]] = {
    "metrics.json": read_run,
    "comparison.json": read_comparison,
    "sweep.json": read_sweep,
}
