"""Pictures of a run. Matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jaxunlearn.saving import written_whole


def plot_images(
    path: Path,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    *,
    columns: int = 12,
) -> None:
    """A row of images for each class, written as a PNG.

    Grey levels and colours are cut to [0, 1]; images in another range are rescaled.
    """
    from matplotlib.figure import Figure

    if images.min() < 0 or images.max() > 1:
        images = (images - images.min()) / max(float(np.ptp(images)), 1e-12)
    classes = np.unique(labels)
    columns = min(columns, int(np.bincount(labels).max()))
    height, width, channels = images.shape[1:]
    figure = Figure(figsize=(0.6 * columns + 0.6, 0.6 * len(classes) * height / width))
    for row, label in enumerate(classes):
        shown = images[labels == label][:columns]
        for column, image in enumerate(shown):
            axes = figure.add_subplot(len(classes), columns, row * columns + column + 1)
            axes.imshow(
                image[..., 0] if channels == 1 else image,
                cmap="gray",
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(str(label), rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.3)
    _save(figure, path)


def plot_accuracies(
    path: Path,
    per_class: Mapping[str, Sequence[float]],
    forget_classes: Sequence[int],
) -> None:
    """Accuracy on each class as bars, a colour for each classifier, as a PNG."""
    from matplotlib.figure import Figure

    count = len(next(iter(per_class.values())))
    figure = Figure(figsize=(max(6, 0.9 * count), 3.6))
    axes = figure.add_subplot()
    width = 0.8 / len(per_class)
    for number, (name, values) in enumerate(per_class.items()):
        places = np.arange(count) - 0.4 + (number + 0.5) * width
        axes.bar(places, np.nan_to_num(np.asarray(values)), width, label=name)
    for label in forget_classes:
        axes.axvspan(label - 0.5, label + 0.5, color="0.9", zorder=0)
    axes.set_xticks(range(count))
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(0, 100)
    axes.set_xlabel("class (shaded: forgotten)")
    axes.set_ylabel("test accuracy, %")
    figure.legend(loc="outside upper center", ncols=len(per_class), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    _save(figure, path)


def _save(figure, path: Path) -> None:
    with written_whole(Path(path)) as temporary:
        figure.savefig(temporary, dpi=120)
