"""Pictures of a run. Matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxunlearn.metrics.evaluation import class_label
from jaxunlearn.serialization import atomic_write
from jaxunlearn.tasks import Data

# Inches: no picture grows without bounds with the number of classes.
_LARGEST = 40.0

_DPI = 120

# Neither grey nor white, as the edges of images may be.
_FRAME = (0.6, 0.7, 0.85)

# Told apart without colours, too: where requests start, where they end, the target.
_LOOKS = (
    {"color": "0.45", "marker": "o", "linestyle": "", "fillstyle": "none"},
    {"color": "C0", "marker": "o", "linestyle": "", "zorder": 3},
    {"color": "C1", "marker": "_", "linestyle": "", "ms": 14, "mew": 2, "zorder": 2},
)


def plot_classes(path: Path, data: Data, *, title: str, most: int = 96) -> None:
    """A contact sheet of the first images of each class."""
    classes, counts = np.unique(data.labels, return_counts=True)
    each = min(12, max(1, most // len(classes)), int(counts.max()))
    shown = np.concatenate([np.flatnonzero(data.labels == c)[:each] for c in classes])
    plot_sheet(
        path,
        np.asarray(data.images)[shown],
        [class_label(c, data.class_names) for c in data.labels[shown].tolist()],
        title=title,
        marked=np.zeros(len(shown), bool),
        columns=each if each > 5 else 12,
        most=most,
    )


def plot_sheet(
    path: Path,
    images: Float[np.ndarray, "n h w c"],
    captions: Sequence[str],
    *,
    title: str,
    marked: Bool[np.ndarray, " n"],
    columns: int = 8,
    most: int = 64,
) -> None:
    """A contact sheet: images with a caption below each, written as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    images = _visible(images)
    shown = min(len(images), most)
    if shown < len(images):
        title += f"; the first {shown}"
    columns = min(columns, shown)
    rows = -(-shown // columns)
    height, width = images.shape[1:3]
    # Inches: wide enough for a caption, and for the image's own pixels.
    wide = max(1.2, width / _DPI)
    wide *= min(
        1, _LARGEST / (columns * wide), _LARGEST * width / (rows * height * wide)
    )
    tall = wide * height / width
    margin, gap, caption, head = 0.15, 0.12, 0.24, 0.4
    column, row = wide + gap, tall + caption + gap
    size = (max(columns * column + 2 * margin - gap, 5.5), head + rows * row)
    figure = Figure(figsize=size)
    # All images in one subplot, measured in inches: one for each takes minutes.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.text(margin, head / 2, title, va="center", fontsize=10, parse_math=False)
    for number in range(shown):
        x = margin + number % columns * column
        y = head + number // columns * row
        image = np.clip(images[number], 0, 1)
        axes.imshow(
            np.broadcast_to(image, (*image.shape[:2], 3)),
            extent=(x, x + wide, y + tall, y),
            interpolation="nearest",
        )
        # An image may be white at its edges, as the page is.
        axes.add_patch(Rectangle((x, y), wide, tall, fill=False, color=_FRAME))
        axes.text(
            x + wide / 2,
            y + tall + 0.04,
            captions[number],
            ha="center",
            va="top",
            fontsize=8,
            color="#b00000" if marked[number] else "black",
            parse_math=False,
        )
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="auto")
    axes.set_axis_off()
    _save(figure, path)


def plot_accuracies(
    path: Path,
    per_class: Mapping[str, Sequence[Any]],
    forget_classes: Sequence[int],
    class_names: Sequence[str] | None = None,
) -> None:
    """Accuracy on each class as bars, a colour for each classifier, as a PNG."""
    from matplotlib.figure import Figure

    count = len(next(iter(per_class.values())))
    inches = min(max(6, 0.18 * count * len(per_class)), _LARGEST)
    labels = [class_label(c, class_names) for c in range(count)]
    labels = [text if len(text) < 25 else f"{text[:23]}…" for text in labels]
    longest = max(map(len, labels))
    size = (inches, 3.6 + 0.07 * longest * (longest > 3))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(per_class)
    for number, (name, values) in enumerate(per_class.items()):
        places = np.arange(count) - 0.4 + (number + 0.5) * width
        heights = np.nan_to_num(np.array(values, np.float64))
        axes.bar(places, heights, width, label=name)
    for label in forget_classes:
        axes.axvspan(label - 0.5, label + 0.5, color="0.9", zorder=0)
    axes.set_xticks(range(count), labels, parse_math=False, rotation=90 * (longest > 3))
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(0, 100)
    axes.set_xlabel("class (shaded: forgotten)")
    axes.set_ylabel("test accuracy, %")
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    _save(figure, path)


def plot_requests(
    path: Path,
    accuracies: Mapping[str, Mapping[str, Sequence[float]]],
    labels: Sequence[str],
    *,
    title: str,
) -> None:
    """Accuracies of many requests as dots, by the suffix of the path a picture or PDF.

    `accuracies[classifier][metric]` has one for each request: metrics, by the text of
    their axes, are one below the other, and the first classifier is where requests
    start from.
    """
    from matplotlib.figure import Figure

    first, *others = accuracies
    metrics = list(accuracies[first])
    longest = max(map(len, labels))
    inches = min(max(6.0, 0.3 * len(labels) + 1.2), _LARGEST)
    size = (inches, 1.2 + 2.1 * len(metrics) + 0.07 * longest * (longest > 3))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
    places = np.arange(len(labels))
    looks = dict(zip(accuracies, _LOOKS, strict=False))
    for axes, metric in zip(panels, metrics, strict=True):
        ends = [accuracies[name][metric] for name in (first, others[0])]
        axes.vlines(places, *ends, color="0.75", linewidth=1, zorder=1)
        for name, look in looks.items():
            axes.plot(places, accuracies[name][metric], label=name, **look)
        # A difference of a point is to look like one.
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, high - 10), high)
        axes.set_ylabel(metric)
        axes.grid(axis="y", color="0.9")
    panels[-1].set_xticks(places, labels, parse_math=False, rotation=90 * (longest > 3))
    panels[-1].set_xlim(-0.6, len(labels) - 0.4)
    panels[-1].set_xlabel("forgotten")
    figure.suptitle(title, fontsize=10, parse_math=False)
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=5, frameon=False)
    _save(figure, path)


def _visible(images):
    """Grey or colour images in [0, 1], into which they are rescaled if need be."""
    channels = images.shape[-1]
    if channels not in (1, 3):
        # Colour and opacity, or who knows what.
        images = images[..., :3] if channels == 4 else images.mean(-1, keepdims=True)
    if images.min() < 0 or images.max() > 1:
        return (images - images.min()) / max(float(np.ptp(images)), 1e-12)
    return images


def _save(figure, path: Path) -> None:
    with atomic_write(Path(path)) as temporary:
        figure.savefig(temporary, dpi=_DPI)
