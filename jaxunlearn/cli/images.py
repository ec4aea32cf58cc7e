"""Inverted images: their files, a sheet of each class, and who recognises them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.console import table
from jaxunlearn.cli.folder import OutputFolder
from jaxunlearn.cli.plots import plot_sheet
from jaxunlearn.cli.saved import SavedClassifier
from jaxunlearn.metrics.evaluation import class_label, evaluate, logits
from jaxunlearn.serialization import atomic_write
from jaxunlearn.tasks import Data


def save_images(path: Path, data: Data, seed: int) -> None:
    """Images, labels and the seed that they were drawn from."""
    arrays = {"images": np.asarray(data.images), "labels": data.labels}
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays, seed=np.int64(seed))


def load_images(path: Path) -> Data:
    """What `save_images` wrote, without the seed."""
    with np.load(path) as arrays:
        return Data(arrays["images"], arrays["labels"])


class FinishedBatches(list[np.ndarray]):
    """Images of whole batches, each in a file that is written when it is appended."""

    def __init__(self, folder: OutputFolder):
        self._folder = folder
        while folder.intact(f"{self._name}.json") is not None:
            super().append(np.load(folder.work / f"{self._name}.npy"))

    @property
    def _name(self) -> str:
        return f"batches/{len(self)}"

    def append(self, images: np.ndarray) -> None:
        """Write them, all or nothing."""
        name = f"{self._name}.npy"

        def save(path: Path) -> None:
            with atomic_write(path) as temporary:
                np.save(temporary, images)

        self._folder.piece(f"{self._name}.json", lambda: self._folder.write(name, save))
        super().append(images)


def recognition(classifier: Classifier, data: Data) -> dict[str, Any]:
    """Percent of the images that are taken for their class: of all, and of each."""
    evaluation = evaluate(classifier, data, ())
    classes = np.unique(data.labels).tolist()
    per_class = {str(c): float(evaluation.per_class[c]) for c in classes}
    return {"overall": evaluation.retained_weighted, "per_class": per_class}


def recognition_table(
    accuracies: Mapping[str, Any], count: int, names: Sequence[str] | None = None
) -> Table:
    """One row for each class, and one for all."""
    judges = [judge for judge in accuracies.values() if judge is not None]
    headings = ("class", "images", "recognised %", "by the second %")
    rows = table(None, (), headings[: 2 + len(judges)])
    classes = list(judges[0]["per_class"])
    for name in classes:
        shares = (f"{judge['per_class'][name]:.1f}" for judge in judges)
        rows.add_row(class_label(int(name), names), str(count), *shares)
    rows.add_section()
    shares = (f"{judge['overall']:.1f}" for judge in judges)
    rows.add_row("all", str(count * len(classes)), *shares)
    return rows


def write_sheets(folder: OutputFolder, data: Data, original: SavedClassifier) -> None:
    """A sheet for each class; below each image what the classifier takes it for."""
    names = original.card.class_names or list(
        map(str, range(original.card.num_classes))
    )
    outputs = logits(original.classifier, data.images).astype(np.float64)
    names = original.card.class_names or [str(c) for c in range(outputs.shape[1])]
    odds = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares = odds.max(axis=1) / odds.sum(axis=1)
    taken = outputs.argmax(axis=1)
    for label in np.unique(data.labels):
        own = data.labels == label
        wrong = taken[own] != label
        called = "" if names[label] == str(label) else f" ({names[label]})"
        sheet = {
            "captions": [
                f"{_short(names[c])}: {100 * share:.0f} %"
                for c, share in zip(taken[own], shares[own], strict=True)
            ],
            "title": f"class {label}{called}: the classifier takes {(~wrong).sum()} "
            f"of {own.sum()} images for it",
            "marked": wrong,
        }
        write = functools.partial(plot_sheet, images=data.images[own], **sheet)
        folder.write(f"class-{label}.png", write)


def _short(name: str) -> str:
    """At most as much of a name as fits below an image, a probability beside it."""
    return name if len(name) <= 11 else f"{name[:10]}…"
