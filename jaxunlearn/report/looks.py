"""How models are told apart in every figure, and names cut to what fits."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxunlearn.report.contents import ShownModel
from jaxunlearn.report.drawing import ORIGINAL, RETRAINED, SERIES

_LONGEST = 18


class Look(NamedTuple):
    """How a model is told from others, in colour and without."""

    colour: str
    marker: str
    dash: str


_MARKERS = "^vDPX*"


def looks(models: Sequence[ShownModel]) -> dict[str, Look]:
    """A look for each model: grey circles start, squares are the aim."""
    fixed = {
        "original": Look(ORIGINAL, "o", ":"),
        "retrained": Look(RETRAINED, "s", "--"),
    }
    unlearned = [m.name for m in models if m.role == "unlearned"]
    found = {m.name: fixed[m.role] for m in models if m.role in fixed}
    second = [m.name for m in models if m.role == "retrained"][1:]
    found |= {name: Look(RETRAINED, "h", "-.") for name in second}
    for n, name in enumerate(unlearned):
        colour, marker = SERIES[n % len(SERIES)], _MARKERS[n % len(_MARKERS)]
        found[name] = Look(colour, marker, "-" if n < len(SERIES) else "-.")
    return found


def short(text: str, longest: int = _LONGEST) -> str:
    """As much of a name as fits beside a figure; under the pointer it is whole.

    >>> short("a rather long name of a class")
    'a rather long na…'
    """
    return text if len(text) < longest else f"{text[: longest - 2]}…"
