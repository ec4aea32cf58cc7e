"""Pictures of a run. Matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxunlearn.saving import written_whole

# Inches: no picture grows without bounds with the number of classes.
_LARGEST = 40.0

# Neither grey nor white, as the edges of images may be.
_BETWEEN = (0.6, 0.7, 0.85)


def plot_images(
    path: Path,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    *,
    columns: int = 12,
) -> None:
    """A row of images for each class, written as a PNG.

    Args:
      path: of the PNG.
      images: with one channel (grey) or three; shown from 0 to 1, and rescaled if they
        are in another range.
      labels: the class of each.
      columns: images of a class, at most.
    """
    from matplotlib.figure import Figure

    if images.min() < 0 or images.max() > 1:
        images = (images - images.min()) / max(float(np.ptp(images)), 1e-12)
    classes, counts = np.unique(labels, return_counts=True)
    columns = min(columns, int(counts.max()))
    height, width = images.shape[1:3]
    # One picture of all: a matplotlib subplot for each image takes minutes.
    gap = max(1, height // 16)
    rows, row, column = len(classes), height + gap, width + gap
    mosaic = np.empty((rows * row - gap, columns * column - gap, 3), np.float32)
    mosaic[:] = _BETWEEN
    for y, label in enumerate(classes):
        for x, image in enumerate(images[labels == label][:columns]):
            top, left = y * row, x * column
            mosaic[top : top + height, left : left + width] = image
    shape = np.array(mosaic.shape[1::-1])
    size = shape * min(0.6 / width, _LARGEST / shape.max())
    figure = Figure(figsize=(size[0] + 0.5, size[1] + 0.1), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_ylabel("class")
    axes.set_yticks(np.arange(rows) * row + (height - 1) / 2, classes.tolist())
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def plot_accuracies(
    path: Path,
    per_class: Mapping[str, Sequence[Any]],
    forget_classes: Sequence[int],
) -> None:
    """Accuracy on each class as bars, a colour for each classifier, as a PNG.

    Args:
      path: of the PNG.
      per_class: of each classifier, percent; None or NaN for a class without samples.
      forget_classes: shaded.
    """
    from matplotlib.figure import Figure

    count = len(next(iter(per_class.values())))
    inches = min(max(6, 0.18 * count * len(per_class)), _LARGEST)
    figure = Figure(figsize=(inches, 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(per_class)
    for number, (name, values) in enumerate(per_class.items()):
        places = np.arange(count) - 0.4 + (number + 0.5) * width
        heights = np.nan_to_num(np.array(values, np.float64))
        axes.bar(places, heights, width, label=name)
    for label in forget_classes:
        axes.axvspan(label - 0.5, label + 0.5, color="0.9", zorder=0)
    axes.set_xticks(range(count))
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(0, 100)
    axes.set_xlabel("class (shaded: forgotten)")
    axes.set_ylabel("test accuracy, %")
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    with written_whole(Path(path)) as temporary:
        figure.savefig(temporary, dpi=120)
