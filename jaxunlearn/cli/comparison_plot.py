"""The picture of a comparison: every model beside the noise of retraining."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxunlearn.cli.comparison import COLUMNS, Summary
from jaxunlearn.cli.exports import columns_of
from jaxunlearn.serialization import atomic_write

_PER_ROW = 4


def plot_comparison(
    path: Path, rows: Mapping[str, Mapping[str, Summary]], title: str
) -> None:
    """A panel for each measure; its band is the retrained mean and the noise floor.

    Filled points lie within it, bars are 95 % t-intervals over training seeds. Vector
    graphics, by the path's suffix.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = columns_of(rows)
    across = min(_PER_ROW, len(names))
    down = -(-len(names) // across)
    tall = 0.9 + 0.26 * len(rows)
    figure = Figure(
        figsize=(2.0 + 2.1 * across, 0.5 + tall * down), layout="constrained"
    )
    axes = np.ravel(figure.subplots(down, across, squeeze=False, sharey=True))
    for panel, name in zip(axes, names, strict=False):
        _panel(panel, rows, name)
    for panel in axes[len(names) :]:
        panel.set_axis_off()
    for number, panel in enumerate(axes[: len(names)]):
        if number % across == 0:
            panel.set_yticks(range(len(rows)), list(rows), parse_math=False, fontsize=8)
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=9, parse_math=False)
    # Without a date and random names, so that the same results are the same file.
    fixed = matplotlib.rc_context({"svg.hashsalt": "jaxunlearn"})
    with atomic_write(Path(path)) as temporary, fixed:
        figure.savefig(temporary, metadata=_NO_DATE.get(path.suffix))


_NO_DATE = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def _panel(axes, rows, name) -> None:
    target = rows.get("retrained", {}).get(name)
    floors = [r[name].floor for r in rows.values() if name in r and r[name].floor]
    if target is not None:
        floor = float(np.mean(floors)) if floors else 0.0
        axes.axvspan(target.mean - floor, target.mean + floor, color="0.88", zorder=0)
        axes.axvline(target.mean, color="0.6", linewidth=0.8, zorder=1)
    for place, row in enumerate(rows.values()):
        if name not in row or np.isnan(row[name].mean):
            continue
        summary = row[name]
        axes.errorbar(
            summary.mean,
            place,
            xerr=None if np.isnan(summary.half_width) else summary.half_width,
            fmt="o",
            markersize=4.5,
            color="#1f5fa8",
            markerfacecolor="#1f5fa8" if summary.within else "white",
            elinewidth=0.9,
            zorder=2,
        )
    axes.set_title(COLUMNS[name].heading, fontsize=8, parse_math=False)
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)
