"""The kinds of figures that sections are made of."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.report.drawing import ACCENT, FAINT, PAPER, SERIES, SOFT, Drawing
from jaxunlearn.report.looks import Look, short

# A pixel of the page; a phone is 390 of them wide.
PANEL = (340.0, 250.0)
SQUARE = (300.0, 300.0)
# Of a figure by itself: no wider, so that its letters stay readable on a phone.
_WIDTH = 400.0


class Series(NamedTuple):
    """A line, and what the pointer shows at its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look


def lines(
    name: str,
    series: Sequence[Series],
    *,
    title: str,
    axes: tuple[str, str],
    label: str,
    level: float | None = None,
    marks: Sequence[tuple[float, str, str]] = (),
    log: bool = False,
    diagonal: bool = False,
    points: int = 40,
    size: tuple[float, float] = PANEL,
) -> str:
    """Lines in one panel; `marks` are (x, what, colour) of upright ones."""
    with Drawing(name, *size) as drawing:
        panel = drawing.axes
        if diagonal:
            panel.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":")
        if level is not None:
            panel.axhline(level, color=SOFT, linewidth=1, linestyle="--")
        for one in series:
            x, y = np.asarray(one.x, float), np.asarray(one.y, float)
            look = one.look
            panel.plot(x, y, color=look.colour, linestyle=look.dash, label=one.name)
            some = _spread(len(x), points)
            shapes = panel.plot(
                *(x[some], y[some]),
                linestyle="",
                marker=look.marker,
                markersize=4,
                color=look.colour,
                clip_on=False,
            )
            pairs = zip(x[some], y[some], strict=True)
            told = f"{one.name}: {axes[0]} {{:.4g}}, {axes[1]} {{:.4g}}"
            texts = [told.format(*pair) for pair in pairs]
            drawing.tip(shapes[0], texts)
        for x, what, colour in marks:
            upright = panel.axvline(x, color=colour, linewidth=1.4, label=what)
            drawing.tip(upright, [what])
        if log:
            panel.set_yscale("log")
            _plain_powers(panel.yaxis)
        panel.set(xlabel=axes[0], ylabel=axes[1], title=title)
        if marks or len(series) > 1:
            every = list(zip(*panel.get_legend_handles_labels(), strict=True))
            shown = every[-len(marks) :] if marks else every
            panel.legend(*zip(*shown, strict=True), fontsize=9)
        return drawing.svg(label)


def bars(
    name: str,
    values: Mapping[str, Sequence[float | None]],
    labels: Sequence[str],
    appearance: Mapping[str, Look],
    *,
    axis: str,
    label: str,
    log: bool = False,
    percent: bool = False,
) -> str:
    """Points in rows: a row for each label, a marker for each model."""
    row_height = min(34.0, max(24.0, 7.0 * len(values)))
    height = 70 + row_height * max(len(labels), 2) + 16 * math.ceil(len(values) / 3)
    with Drawing(name, _WIDTH, height) as drawing:
        panel = drawing.axes
        rows = np.arange(len(labels))
        for number, (model, row) in enumerate(values.items()):
            look = appearance[model]
            shift = (number - (len(values) - 1) / 2) * min(0.2, 0.8 / len(values))
            known = [i for i, v in enumerate(row) if v is not None and math.isfinite(v)]
            if log:
                known = [i for i in known if row[i] > 0]
            shapes = panel.plot(
                [row[i] for i in known],
                [rows[i] + shift for i in known],
                linestyle="",
                marker=look.marker,
                markersize=7.5,
                color=look.colour,
                markeredgecolor=PAPER,
                markeredgewidth=0.6,
                label=model,
                clip_on=False,
            )
            form = (lambda v: f"{v:.1f} %") if percent else (lambda v: f"{v:.3g}")
            texts = [f"{labels[i]}, {model}: {form(row[i])}" for i in known]
            drawing.tip(shapes[0], texts)
        panel.set_yticks(rows, [short(text) for text in labels])
        panel.set_ylim(len(labels) - 0.5, -0.5)
        if log:
            panel.set_xscale("log")
            _plain_powers(panel.xaxis)
        elif percent:
            panel.set_xlim(0, 100)
        panel.set_xlabel(axis)
        drawing.figure.legend(
            loc="outside upper center",
            ncols=3,
            fontsize=10,
            handletextpad=0.2,
            columnspacing=1,
        )
        return drawing.svg(label)


def matrix(
    name: str,
    counts: np.ndarray,
    labels: Sequence[str],
    marked: Sequence[int],
    *,
    title: str,
    label: str,
) -> str:
    """Shares of each row as shades; forgotten rows are marked.

    Of more than thirty classes as a picture, without numbers under the pointer.
    """
    from matplotlib.patches import Rectangle

    k = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = k <= 30
    with Drawing(name, *SQUARE) as drawing:
        panel = drawing.axes
        panel.grid(visible=False)
        if few:
            for i, j in np.argwhere(counts > 0):
                box = Rectangle(
                    (j - 0.5, i - 0.5),
                    *(1, 1),
                    facecolor=ACCENT if i in marked else SERIES[0],
                    alpha=round(0.15 + 0.85 * float(shares[i, j]), 2),
                    linewidth=0,
                )
                panel.add_patch(box)
                share = f"{counts[i, j]} of {counts[i].sum()}"
                text = f"{labels[i]} taken for {labels[j]}: {share}"
                drawing.tip(box, [text])
        else:
            # The middle of what either scheme has: a picture knows no variables.
            shades = np.zeros((k, k, 4))
            shades[..., :3] = np.array([47, 111, 187]) / 255
            shades[list(marked), :, :3] = np.array([196, 78, 32]) / 255
            shades[..., 3] = np.sqrt(shares)
            panel.imshow(shades, interpolation="nearest", aspect="auto")
        panel.set(xlim=(-0.5, k - 0.5), ylim=(k - 0.5, -0.5), title=title)
        panel.set(xlabel="taken for", ylabel="is")
        step = max(1, math.ceil(k / 20))
        ticks = range(0, k, step)
        texts = [short(labels[i], 10) for i in ticks]
        turned = 90 if max(map(len, texts)) > 2 else 0
        panel.set_xticks(ticks, texts, rotation=turned, fontsize=9)
        panel.set_yticks(ticks, texts, fontsize=9)
        for side in ("top", "right"):
            panel.spines[side].set_visible(True)
        panel.spines[:].set_color(FAINT)
        return drawing.svg(label)


def scatter(
    name: str,
    points: np.ndarray,
    gone: np.ndarray,
    texts: Sequence[str],
    *,
    title: str,
    label: str,
) -> str:
    """Retained samples as small dots, forgotten ones as triangles above them."""
    with Drawing(name, *SQUARE) as drawing:
        panel = drawing.axes
        kinds = (
            (~gone, {"marker": "o", "s": 9, "color": SOFT, "alpha": 0.55}),
            (gone, {"marker": "^", "s": 26, "color": ACCENT, "alpha": 0.9}),
        )
        for rows, look in kinds:
            shapes = panel.scatter(*points[rows].T, linewidths=0, **look)
            drawing.tip(shapes, [texts[i] for i in np.flatnonzero(rows)])
        panel.set(title=title)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.margins(0.05)
        for side in ("top", "right"):
            panel.spines[side].set_visible(True)
        panel.spines[:].set_color(FAINT)
        return drawing.svg(label)


def _plain_powers(axis) -> None:
    """Powers of ten as numbers: there is no mathematics in the text of a page."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _spread(count: int, most: int) -> np.ndarray:
    """So many places of `count`, evenly, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
