"""The verdict and the tables of numbers."""

from jaxunlearn.report.contents import Contents, MissingError
from jaxunlearn.report.elements import escaped, paragraph, table, unfolded
from jaxunlearn.report.measures import Measures

# What verdicts mean, and whether all is well: a sign stands beside the colour.
_MEANINGS = {
    "within the noise of retraining": (
        "✓",
        "By accuracy, and by the probe, class means and relearning as far as they were "
        "made, it cannot be told from models that never saw the forgotten data.",
    ),
    "not forgotten": (
        "✗",
        "Accuracy on what was to be forgotten lies outside the noise of retraining, on "
        "the original's side.",
    ),
    "output-level only": (
        "✗",
        "The answers have changed, but probes, class means or relearning still find "
        "what was to be forgotten, nearer to the original than to retraining.",
    ),
    "over-forgotten": (
        "✗",
        "It lies beyond retrained models, on the side away from the original: that it "
        "was made to forget can be seen.",
    ),
    "between the original and retraining": (
        "≈",
        "Something inside lies outside the noise, nearer to retraining than to the "
        "original.",
    ),
    "retained accuracy lost": (
        "✗",
        "What was to be forgotten is gone, and more accuracy on the rest than "
        "retraining costs.",
    ),
}


def verdicts(contents: Contents, measures: Measures) -> str:
    """One card for each unlearned model."""
    del measures
    if not contents.verdicts:
        msg = (
            "No verdict: it needs an audit beside retrained models. `jaxunlearn run` "
            "makes one where retrain is among --methods (on data sets of at most 5,000 "
            "training samples), `jaxunlearn audit` of any saved classifier, and "
            "`jaxunlearn compare` always."
        )
        raise MissingError(msg)
    cards = "".join(
        _card(name, verdict, contents.remarks.get(name, ""))
        for name, verdict in contents.verdicts.items()
    )
    note = paragraph(
        "The target of every number is the value of models retrained without what was "
        "to be forgotten, on both sides; the noise floor is the range among them, or "
        "two standard errors, whichever is larger."
    )
    return f'<ul class="cards">{cards}</ul>{note}'


def _card(name: str, verdict: str, remark: str) -> str:
    sign, meaning = _MEANINGS.get(verdict, ("?", ""))
    kind = {"✓": "good", "≈": "middling"}.get(sign, "bad")
    return (
        f'<li class="card {kind}"><h3>{escaped(name)}</h3><p class="verdict">'
        f'<span aria-hidden="true">{sign}</span> {escaped(verdict)}</p>'
        f"<p>{escaped(meaning)}</p>{paragraph(remark)}</li>"
    )


def tables(contents: Contents, measures: Measures) -> str:
    """The most important table, and all others to be opened."""
    del measures
    if not contents.results:
        msg = "There are no results in this folder."
        raise MissingError(msg)
    first, *others = contents.results
    legend = "".join(
        f"<li><b>{escaped(head)}</b>: {escaped(meaning)}</li>"
        for head, meaning in first.heads
        if meaning
    )
    said = paragraph(
        "Under a value stands its gap to retraining and, after ±, the noise floor that "
        "the gap must exceed to mean something; = is within it. A press of a heading "
        "sorts by its column.",
        "note",
    )
    more = "".join(unfolded(one.caption, table(one)) for one in others)
    return f"{table(first)}{said}<ul class='legend'>{legend}</ul>{more}"
