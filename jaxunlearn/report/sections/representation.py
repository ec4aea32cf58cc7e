"""What is left inside: relearning, membership, and maps of the features."""

import numpy as np

from jaxunlearn.report.contents import Cell, Contents, PageTable
from jaxunlearn.report.elements import figure, number
from jaxunlearn.report.looks import looks
from jaxunlearn.report.measures import Measures
from jaxunlearn.report.plots import Series, lines, scatter

_WIDE = (400.0, 320.0)


def relearning(contents: Contents, measures: Measures) -> str:
    """How fast the forgotten classes come back."""
    found, appearance = measures["relearning"], looks(contents.models)
    series = [
        Series(name, np.arange(1, len(r.curve) + 1), r.curve, appearance[name])
        for name, r in found.curves.items()
    ]
    drawn = lines(
        "relearning",
        series,
        title="",
        axes=("minibatches", "accuracy on the forgotten, %"),
        label="Accuracy on what was forgotten against minibatches of relearning.",
        level=found.target,
        size=_WIDE,
    )
    rows = [
        (
            Cell(name),
            number(float(r.steps), ".0f", ">" * r.censored),
            number(r.curve[0], ".1f"),
            number(r.curve[len(r.curve) // 2], ".1f"),
            number(r.curve[-1], ".1f"),
        )
        for name, r in found.curves.items()
    ]
    heads = [
        ("model", ""),
        ("minibatches", "until the target; > is a bound"),
        ("after 1", "accuracy after the first minibatch, %"),
        ("half way", "accuracy after half of them, %"),
        ("at the end", "accuracy after the last, %"),
    ]
    caption = (
        f"Every model is taught again, by Adam on minibatches of {found.samples:,} "
        f"training samples, forgotten ones among them, until {found.target:.1f} % "
        f"(dashed) or for {found.cap} minibatches. One that comes back "
        "sooner than a retrained model had not lost it; one that comes back later was "
        "made to resist."
    )
    if not contents.samplewise:
        caption += (
            " The head's rows of forgotten classes are first made the mean of the "
            "others in every model, so that a masked head games nothing."
        )
    return figure([drawn], caption, PageTable("Relearning", heads, rows))


def membership(contents: Contents, measures: Measures) -> str:
    """Whether forgotten samples look trained on."""
    found, appearance = measures["membership"], looks(contents.models)
    series = [
        Series(name, *_thinned(roc), appearance[name])
        for name, roc in found.curves.items()
    ]
    drawn = lines(
        "membership",
        series,
        title="",
        axes=("false positives", "true positives"),
        label="Receiver operating characteristics of a membership attack.",
        diagonal=True,
        points=30,
        size=(380.0, 350.0),
    )
    rows = [
        (
            Cell(name),
            number(roc.auc, ".3f"),
            number(100 * float(roc.true[roc.false <= 0.01].max()), ".1f"),
            number(100 * float(roc.true[roc.false <= 0.1].max()), ".1f"),
        )
        for name, roc in found.curves.items()
    ]
    heads = [
        ("model", ""),
        ("AUC", "chance that a forgotten sample scores higher than an unseen one"),
        ("TPR at 1 %", "true positives at a false positive rate of at most 1 %, %"),
        ("TPR at 10 %", "true positives at a false positive rate of at most 10 %, %"),
    ]
    caption = (
        f"Telling {found.members:,} forgotten training samples from {found.others:,} "
        "unseen ones like them, by modified entropy. The aim is the curve of the "
        "retrained models, not the diagonal: of whole classes it says more about the "
        "class than about membership."
    )
    return figure([drawn], caption, PageTable("Membership", heads, rows))


def maps(contents: Contents, measures: Measures) -> str:
    """The features side by side."""
    found = measures["maps"]
    gone = int(found.gone.sum())
    drawn, rows = [], []
    for n, (name, points) in enumerate(found.points.items()):
        taken = found.taken[name]
        texts = [
            f"{'forgotten, ' * bool(g)}{contents.label(int(c))}, taken for "
            f"{contents.label(int(t))}"
            for g, c, t in zip(found.gone, found.labels, taken, strict=True)
        ]
        drawn.append(
            scatter(
                f"map-{n}",
                points,
                found.gone,
                texts,
                title=name,
                label=f"Map of the features of {name}.",
            )
        )
        kept = ~found.gone
        right = taken == found.labels
        rows.append(
            (
                Cell(name),
                number(100 * float(right[found.gone].mean()), ".1f"),
                number(100 * float(right[kept].mean()) if kept.any() else None, ".1f"),
                number(_neighbours(points, found.gone), ".1f"),
            )
        )
    heads = [
        ("model", ""),
        ("forgotten", "of the forgotten samples shown, taken for their own class, %"),
        ("others", "of the other samples shown, taken for their own class, %"),
        (
            "together",
            "forgotten ones among the five nearest points of one, %",
        ),
    ]
    caption = (
        f"The input of the last layer, in two dimensions by {found.how}. Triangles are "
        f"{gone} forgotten samples, dots {len(found.gone) - gone} others. In a "
        "retrained model forgotten samples may keep together too: what counts is "
        "whether an unlearned one is like it, or like the original."
    )
    return figure(drawn, caption, PageTable("What the maps show", heads, rows))


def _neighbours(points: np.ndarray, gone: np.ndarray) -> float:
    """Percent of the five nearest points of a forgotten one that are forgotten."""
    apart = np.linalg.norm(points[gone][:, None] - points[None], axis=-1)
    apart[np.arange(gone.sum()), np.flatnonzero(gone)] = np.inf
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :5]
    return 100 * float(gone[nearest].mean())


def _thinned(roc, most: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rows = np.unique(np.linspace(0, len(roc.false) - 1, most).astype(int))
    return roc.false[rows], roc.true[rows]
