"""The picture of a study: gaps to retraining, so that data sets stand side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.serialization import atomic_write

Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]

_COLOURS = ("#1f5fa8", "#b4540a", "#2a7a3b", "#7a2a7a", "#555555", "#8a6d00")


def plot_study(
    path: Path, tables: Mapping[str, Rows], measures: Mapping[str, str], title: str
) -> None:
    """A panel for each measure: of every row its gap to the retrained models.

    `tables` are rows by the title of their comparison, which has a colour; `measures`
    are headings of panels. Where no row has a gap, as in a study that measures without
    a retrained model, a panel shows the values. Bars are 95 % t-intervals over training
    seeds, the grey behind a point is the noise of retraining; within it points are
    filled. SVG, the same for the same results.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = [
        (place, row, record)
        for place, rows in enumerate(tables.values())
        for row, record in rows.items()
        if row != "retrained"
    ]
    figure = Figure(
        figsize=(2.4 + 2.3 * len(measures), 1.0 + 0.24 * len(shown)),
        layout="constrained",
    )
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for panel, (name, heading) in zip(panels, measures.items(), strict=True):
        _panel(panel, shown, name, heading)
    labels = [row for _, row, _ in shown]
    panels[0].set_yticks(range(len(shown)), labels, parse_math=False, fontsize=7)
    panels[0].invert_yaxis()
    for (place, _, _), label in zip(shown, panels[0].get_yticklabels(), strict=True):
        label.set_color(_COLOURS[place % len(_COLOURS)])
    for place, name in enumerate(tables):
        panels[0].plot([], "o", color=_COLOURS[place % len(_COLOURS)], label=name)
    figure.legend(loc="outside lower center", fontsize=7, ncols=min(len(tables), 4))
    figure.suptitle(title, fontsize=8, parse_math=False)
    fixed = matplotlib.rc_context({"svg.hashsalt": "jaxunlearn"})
    with atomic_write(path) as temporary, fixed:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _panel(axes, shown, name: str, heading: str) -> None:
    found = [
        (place, number, record[name])
        for place, (number, _, record) in enumerate(shown)
        if record.get(name) is not None
    ]
    gaps = any(measure["gap"] is not None for *_, measure in found)
    value, width = ("gap", "gap_half_width") if gaps else ("mean", "half_width")
    if gaps:
        axes.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    for place, number, measure in found:
        if measure[value] is None:
            continue
        colour = _COLOURS[number % len(_COLOURS)]
        if gaps and measure["floor"]:
            wide = 2 * measure["floor"]
            axes.barh(place, wide, left=-wide / 2, height=0.8, color="0.9", zorder=0)
        axes.errorbar(
            measure[value],
            place,
            xerr=measure[width] or 0.0,
            fmt="o",
            markersize=4.0,
            color=colour,
            markerfacecolor=colour if measure["within"] or not gaps else "white",
            elinewidth=0.9,
            zorder=2,
        )
    axes.set_title(heading + ", gap" * gaps, fontsize=8, parse_math=False)
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)
