"""Accuracies of each class, and what is taken for what."""

import numpy as np

from jaxunlearn.report.contents import Cell, Contents, PageTable
from jaxunlearn.report.elements import figure, number, paragraph
from jaxunlearn.report.looks import looks
from jaxunlearn.report.measures import Measures
from jaxunlearn.report.plots import bars, matrix

# Rows of a figure; a table has all of them.
_MOST_CLASSES = 40


def per_class(contents: Contents, measures: Measures) -> str:
    """Before and after, by the classes' names."""
    found = measures["evaluations"]
    count = len(next(iter(found.values())).per_class)
    gone = contents.forget_classes
    labels = [_marked(contents, c) for c in range(count)]
    rows = [
        (Cell(labels[c], c), *(number(e.per_class[c], ".1f") for e in found.values()))
        for c in range(count)
    ]
    heads = [("class", ""), *((name, "test accuracy, %") for name in found)]
    numbers = PageTable("Test accuracy of each class, %", heads, rows)
    shown = _most_moved(found, gone)
    drawn = bars(
        "classes",
        {name: [e.per_class[c] for c in shown] for name, e in found.items()},
        [labels[c] for c in shown],
        looks(contents.models),
        axis="test accuracy, %",
        label="Test accuracy of each class and model; the table below has the numbers.",
        percent=True,
    )
    caption = "Accuracy on test data."
    if gone:
        caption = "Accuracy on test data; forgotten classes are marked by ▸."
    if len(shown) < count:
        caption += (
            f" The forgotten classes and those of which accuracy moved most, "
            f"{len(shown)} of {count}."
        )
    return figure([drawn], caption, numbers)


def confusions(contents: Contents, measures: Measures) -> str:
    """A matrix for each model, and what forgotten samples are taken for."""
    found = measures["evaluations"]
    count = len(next(iter(found.values())).per_class)
    labels = [contents.label(c) for c in range(count)]
    short = [_short_label(contents, c) for c in range(count)]
    gone = contents.forget_classes
    drawn = [
        matrix(
            f"confusion-{n}",
            e.confusion,
            short,
            gone,
            title=name,
            label=f"Confusion matrix of {name} on test data.",
        )
        for n, (name, e) in enumerate(found.items())
    ]
    rows = [
        (
            Cell(name),
            Cell(labels[i], int(i)),
            Cell(labels[j], int(j)),
            Cell(str(e.confusion[i, j]), int(e.confusion[i, j])),
            number(100 * e.confusion[i, j] / e.confusion[i].sum(), ".1f"),
        )
        for name, e in found.items()
        for i, j in _told(e.confusion, gone)
    ]
    heads = [
        ("model", ""),
        ("is", "the class of the samples"),
        ("taken for", "the class that they are taken for"),
        ("samples", "how many"),
        ("share", "of the samples of the class, %"),
    ]
    title = "What is taken for what" if gone else "The most frequent mistakes"
    numbers = PageTable(title, heads, rows)
    caption = (
        "A row is a class, a column what its samples are taken for; the stronger "
        "the shade, the larger the share of the row."
    )
    if gone:
        caption += " Rows of forgotten classes have another colour."
    text = figure(drawn, caption, numbers)
    if gone and contents.of("retrained"):
        text += paragraph(
            "Where samples of forgotten classes go in a retrained model is where they "
            "should go: a row that sends all of them to one class gives the "
            "unlearning away."
        )
    return text


def _marked(contents: Contents, number: int) -> str:
    return "▸ " * (number in contents.forget_classes) + contents.label(number)


def _short_label(contents: Contents, number: int) -> str:
    """The name where there is one: a number says less."""
    return contents.label(number).partition(": ")[2] or str(number)


def _most_moved(found, gone) -> list[int]:
    values = np.array([e.per_class for e in found.values()])
    spread = np.nanmax(values, 0, initial=-1) - np.nanmin(values, 0, initial=101)
    spread[list(gone)] = np.inf
    order = np.argsort(-spread, kind="stable")[:_MOST_CLASSES]
    return sorted(order.tolist())


def _told(confusion, gone):
    """Of forgotten classes everything; of others the mistakes, the largest first."""
    apart = [(i, j) for i in gone for j in np.flatnonzero(confusion[i])]
    wrong = confusion * ~np.eye(len(confusion), dtype=bool)
    wrong[list(gone)] = 0
    order = np.argsort(-wrong, axis=None, kind="stable")[:12]
    pairs = (np.unravel_index(place, wrong.shape) for place in order)
    return apart + [(i, j) for i, j in pairs if wrong[i, j]]
