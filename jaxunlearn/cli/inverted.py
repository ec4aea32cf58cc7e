"""An inversion's folder: images, a sheet of each class, and what is known of them."""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich import box
from rich.table import Table

from jaxunlearn import datasets, parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.images import save_images
from jaxunlearn.cli.plots import plot_sheet
from jaxunlearn.metrics.evaluation import evaluate, logits
from jaxunlearn.models.files import Card, versions
from jaxunlearn.serialization import atomic_write, read_json, to_dict, write_json
from jaxunlearn.tasks import Data
from jaxunlearn.training.checkpoints import differences

# What an inversion writes. The settings and batches go once the record, which is
# written last, stands for all of it.
_RECORD, _SETTINGS = "inversion.json", "inversion-settings.json"
_IMAGES, _BATCHES = "images.npz", "batches"
LAST_FINITE = "last-finite.npz"
_SHEET = re.compile(r"class-\d+\.png")
# What is left of a file when an inversion is killed.
_HALF_WRITTEN = re.compile(
    r"\.(inversion|inversion-settings|images|last-finite|class-\d+)-\d+\.(json|npz|png)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """Images, and who judges them.

    Attributes:
      images: in pixel space.
      labels: the class of each.
      seed: from which they were drawn.
      classifier: the one that was inverted.
      card: its card.
      second: another one, or None.
      data_dir: where its data set lies, for the names of classes.
    """

    images: Float[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    seed: int
    classifier: Classifier
    card: Card
    second: Classifier | None
    data_dir: str | None


class InversionFolder:
    """Where an inversion writes.

    Attributes:
      place: the folder.
      record: what decides about the images, and who is to judge them.
      batches: the folder of those that are finished.
    """

    def __init__(self, place: Path, record: Mapping[str, Any]):
        self.place, self.record = place, record
        self.batches = place / _BATCHES

    def finished_batches(self) -> "FinishedBatches":
        """Those of an inversion that was interrupted; further ones are written."""
        return FinishedBatches(self.batches)

    def is_finished(self, *, resume: bool, overwrite: bool) -> bool:
        """Whether all is done, and then no more is there than should be.

        Raises:
          ValueError: the folder holds something else, or an inversion that is neither
            to be gone on with nor replaced, or one with other settings.
        """
        place = self.place
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            return False
        known = [place / n for n in (_RECORD, _SETTINGS) if (place / n).is_file()]
        if not known:
            if place.is_dir() and all(
                _HALF_WRITTEN.fullmatch(p.name) for p in place.iterdir()
            ):
                return False  # killed before anything was written
            msg = f"{place} is there and is no inversion: choose another folder with --out."  # noqa: E501
            raise ValueError(msg)
        if overwrite:
            return False
        if not resume:
            msg = (
                f"{place} already holds an inversion: go on with --resume, replace it "
                "with --overwrite, or choose another folder with --out."
            )
            raise ValueError(msg)
        finished = (place / _RECORD).is_file() and (place / _IMAGES).is_file()
        try:
            there, here = (
                _deciding(record, finished)
                for record in (read_json(known[0]), self.record)
            )
        except ValueError as error:
            msg = (
                f"{error} The inversion there cannot be gone on with: start anew with "
                "--overwrite, or choose another folder with --out."
            )
            raise ValueError(msg) from error
        others = differences(there, here)
        if others:
            msg = (
                f"{place} holds an inversion with other settings, which differ in "
                f"{'; '.join(others)}: give the flags of that one, replace it with "
                "--overwrite, or choose another folder with --out."
            )
            raise ValueError(msg)
        if finished:
            self._clear()
        return finished

    def prepare(self, *, overwrite: bool) -> None:
        """The folder with the settings in it, and nothing of one to be replaced.

        Raises:
          OSError: the folder cannot be made.
        """
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            if overwrite:
                # First what says that the rest is complete.
                (self.place / _RECORD).unlink(missing_ok=True)
                for name in (_IMAGES, LAST_FINITE):
                    (self.place / name).unlink(missing_ok=True)
                for path in self.place.iterdir():
                    if _SHEET.fullmatch(path.name):
                        path.unlink()
                self._clear()
            for path in self.place.iterdir():
                if _HALF_WRITTEN.fullmatch(path.name):
                    path.unlink()
            if not (self.place / _SETTINGS).exists():
                self.write_json(_SETTINGS, self.record)
        except OSError as error:
            msg = (
                f"The folder {self.place} cannot be made ({error.strerror or error}): "
                "choose another place with --out."
            )
            raise OSError(msg) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a record, all or nothing."""
        write_json(self.place / name, value)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the record, and remove what only an unfinished inversion needs."""
        self.write_json(_RECORD, record)
        (self.place / LAST_FINITE).unlink(missing_ok=True)
        self._clear()

    def _clear(self):
        if self.batches.is_dir():
            shutil.rmtree(self.batches)
        (self.place / _SETTINGS).unlink(missing_ok=True)


class FinishedBatches(list[np.ndarray]):
    """Images of whole batches, each in a file that is written when it is appended."""

    def __init__(self, folder: Path):
        self._folder = folder
        while self._file.exists():
            super().append(np.load(self._file))

    @property
    def _file(self) -> Path:
        return self._folder / f"{len(self)}.npy"

    def append(self, images: np.ndarray) -> None:
        """Write them, all or nothing."""
        self._folder.mkdir(exist_ok=True)
        with atomic_write(self._file) as temporary:
            np.save(temporary, images)
        super().append(images)


def write_results(
    folder: InversionFolder, judged: Judged, details: Mapping[str, Any]
) -> dict[str, Any]:
    """Images, sheets and the record; returns the record's accuracies.

    Args:
      folder: where to.
      judged: what was made.
      details: further entries of the record.
    """
    data = Data(judged.images, judged.labels)
    save_images(folder.place / _IMAGES, data, judged.seed)
    outputs = logits(judged.classifier, judged.images)
    accuracies = {"classifier": _accuracy(judged.classifier, judged), "second": None}
    if judged.second is not None:
        accuracies["second"] = _accuracy(judged.second, judged)
    names = _class_names(judged.card, judged.data_dir)
    for label in np.unique(judged.labels):
        _sheet(folder.place / f"class-{label}.png", judged, outputs, names, label)
    found = {
        **folder.record,
        **details,
        "accuracies": accuracies,
        "versions": versions(),
        "device": parallel.device_kind(),
    }
    folder.finish(found)
    return to_dict(accuracies)


def recognised(accuracies: Mapping[str, Any], count: int) -> Table:
    """One row for each class, and one for all."""
    first, second = accuracies["classifier"], accuracies["second"]
    table = Table(box=box.SIMPLE_HEAD)
    headings = ["class", "images", "recognised %"]
    for heading in headings if second is None else [*headings, "by the second %"]:
        table.add_column(heading, justify="right", no_wrap=True)

    def row(name, images, *of):
        table.add_row(name, str(images), *(f"{x:.1f}" for x in of))

    judges = [first] if second is None else [first, second]
    classes = list(first["per_class"])
    for name in classes:
        row(name, count, *(judge["per_class"][name] for judge in judges))
    table.add_section()
    row("all", count * len(classes), *(judge["overall"] for judge in judges))
    return table


def _deciding(record: Mapping[str, Any], finished: bool) -> dict[str, Any]:
    """What decides about the images, and of finished ones about what is said of them.

    Raises:
      ValueError: it is no record of an inversion.
    """
    classifiers = ("checkpoint", "student", *(["second"] if finished else []))
    found = record.get("settings")
    if not isinstance(found, Mapping):
        msg = "The record has no settings."
        raise ValueError(msg)
    found = dict(found)
    for name in classifiers:
        origin = record.get(name)
        found[name] = origin.get("sha256") if isinstance(origin, Mapping) else None
    return found


def _accuracy(classifier: Classifier, judged: Judged) -> dict[str, Any]:
    """Percent of the images that are taken for their class: of all, and of each."""
    found = evaluate(classifier, Data(judged.images, judged.labels), ())
    classes = np.unique(judged.labels).tolist()
    per_class = {str(c): float(found.per_class[c]) for c in classes}
    return {"overall": found.retained_weighted, "per_class": per_class}


def _class_names(card: Card, data_dir: str | None) -> list[str]:
    """What the classes are called, or their numbers where nobody knows."""
    numbers = [str(c) for c in range(card.num_classes)]
    if card.dataset is None:
        return numbers
    try:
        found = datasets.class_names(card.dataset, data_dir=data_dir)
    except (ValueError, OSError, ImportError):
        # The data set is not there, or cannot be read, and is not needed.
        return numbers
    return found if len(found) == card.num_classes else numbers


def _sheet(path, judged, outputs, names, label) -> None:
    """The images of one class, each with what the classifier takes it for."""
    own = judged.labels == label
    shifted = outputs[own] - outputs[own].max(axis=1, keepdims=True)
    odds = np.exp(shifted.astype(np.float64))
    shares = odds.max(axis=1) / odds.sum(axis=1)
    taken = outputs[own].argmax(axis=1)
    called = "" if names[label] == str(label) else f" ({names[label]})"
    plot_sheet(
        path,
        judged.images[own],
        [
            f"{_short(names[c])}: {100 * p:.0f} %"
            for c, p in zip(taken, shares, strict=True)
        ],
        title=f"class {label}{called}: the classifier takes {(taken == label).sum()} "
        f"of {own.sum()} images for it",
        marked=taken != label,
    )


def _short(name: str) -> str:
    """At most as much of a name as fits below an image, a probability beside it."""
    return name if len(name) <= 11 else f"{name[:10]}…"
