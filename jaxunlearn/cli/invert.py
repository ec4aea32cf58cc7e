"""`jaxunlearn invert`: draw images out of a saved classifier; no data are needed."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from jaxtyping import Int
from rich.console import Console

from jaxunlearn import inversion, parallel
from jaxunlearn.checks import check_count
from jaxunlearn.cli.classes import parted_numbers
from jaxunlearn.cli.console import Bars, consoles, library_warnings
from jaxunlearn.cli.folder import Kind, OutputFolder, check_resume
from jaxunlearn.cli.images import (
    FinishedBatches,
    recognition,
    recognition_table,
    save_images,
    write_sheets,
)
from jaxunlearn.cli.saved import SavedClassifier, SavedSettings, load_companion
from jaxunlearn.cli.settings import (
    Classes,
    File,
    Folder,
    check_seed,
)
from jaxunlearn.cli.sources import Source, find_source
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.inversion import ImageAdam, ImagePrior
from jaxunlearn.inversion.arguments import bounds_of, checked_arguments
from jaxunlearn.inversion.inversion import batch_rows
from jaxunlearn.inversion.objective import References
from jaxunlearn.inversion.step import ScheduleName
from jaxunlearn.models.files import Card, versions
from jaxunlearn.tasks import Data, check_classes

_IMAGES, _RECORD, _LAST_FINITE = "images.npz", "inversion.json", "last-finite.npz"


def _deciding(record: dict[str, Any], finished: bool) -> dict[str, Any]:
    """What decides about the images, and of finished ones about their record."""
    settings = record.get("settings")
    if not isinstance(settings, Mapping):
        msg = "The record has no settings."
        raise ValueError(msg)
    return {name: settings[name] for name in settings if finished or name != "second"}


INVERSION = Kind(
    name="inversion",
    settings=(_RECORD, "inversion-settings.json"),
    complete=(_IMAGES, _RECORD),
    written=("class-[0-9]*.png", "batches", _LAST_FINITE),
    unfinished=("batches", "inversion-settings.json", _LAST_FINITE),
    deciding=_deciding,
)

# Those of the function are those of the command.
_DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(inversion.invert).parameters.items()
}

# Arguments of `invert` that are fields of the same name.
_PASSED = ("prior", "steps", "jitter", "bounds", "batch_size")

_mean_terms = jax.jit(inversion.inversion_terms, static_argnames="prior")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invert(SavedSettings):
    """Draw images of its classes out of a saved classifier, without any data.

    Attributes:
      checkpoint: the classifier: a .safetensors file of a training or a run, or
        PyTorch's weights of a --model.
      from_run: in place of --checkpoint, the folder of a run, whose original is
        inverted into the classes that the run retains; or of a training.
      classes: classes to draw; by default all but those that the classifier has
        forgotten, or that the run forgets.
      images_per_class: how many images of each class.
      steps: steps of the optimisation of each batch.
      prior: weights of the terms of the objective.
      learning_rate: Adam's, in units of the width of the pixels' range.
      schedule: schedule of the learning rate: to 0 along a cosine, to a tenth at one
        half and to a hundredth at three quarters of the steps, or constant.
      jitter: rolls by up to so many pixels, capped at a sixteenth of the side.
      bounds: bounds of every pixel; by default 0 and 1 where the classifier
        standardises pixels, else there are none.
      batch_size: images optimised together, at most.
      student: a second classifier to compete with: images are drawn to where the two
        disagree.
      second: an independently trained classifier that judges the images; with
        --from-run by default the run's retrained one.
      seed: random seed.
      out: folder for the images; by default FROM_RUN/inversion, or
        inversions/FOLDER-FILE-seed-SEED.
      resume: go on after the last finished batch there; start anew if there is none.
      overwrite: start anew, in place of the inversion that is there.
    """

    examples = (
        "jaxunlearn invert --from-run runs/digits-forget-3-seed-0",
        "jaxunlearn invert --checkpoint model.safetensors --classes 1 7 --steps 500",
    )
    first = (
        *("checkpoint", "from_run", "classes", "images_per_class", "steps"),
        *("learning_rate", "batch_size", "second", "student", "seed", "out", "resume"),
        "overwrite",
    )

    checkpoint: File | None = None
    from_run: Folder = None
    classes: Classes | None = None
    images_per_class: int = 32
    steps: int = _DEFAULTS["steps"]
    prior: ImagePrior = _DEFAULTS["prior"]
    learning_rate: float = ImageAdam.learning_rate
    schedule: ScheduleName = ImageAdam.schedule
    jitter: Annotated[int, "PIXELS"] = _DEFAULTS["jitter"]
    bounds: Annotated[tuple[float, float] | None, "LOW HIGH"] = _DEFAULTS["bounds"]
    batch_size: int = _DEFAULTS["batch_size"]
    student: File | None = None
    second: File | None = None
    seed: int = 0
    out: Folder = None
    resume: bool = False
    overwrite: bool = False

    @property
    def place(self) -> Path:
        """Where the images go."""
        if self.out is not None:
            return self.out
        if self.from_run is not None:
            return self.from_run / "inversion"
        path = Path(self.checkpoint or "").resolve()
        return Path("inversions") / f"{path.parent.name}-{path.stem}-seed-{self.seed}"

    def image_adam(self) -> ImageAdam:
        """The optimizer."""
        return ImageAdam(self.learning_rate, self.schedule)

    def check(self) -> None:
        """Check what can be checked before any file is read."""
        if (self.checkpoint is None) == (self.from_run is None):
            both = self.checkpoint is not None
            msg = (
                f"{'--checkpoint and --from-run are both given' if both else 'There is nothing to invert'}: "  # noqa: E501
                "name a classifier with --checkpoint FILE.safetensors, or the folder "
                "of a run or a training with --from-run FOLDER."
            )
            raise ValueError(msg)
        check_seed(self.seed)
        check_count("--images-per-class", self.images_per_class)
        self.image_adam()
        check_count("--steps", self.steps)
        check_resume(self)

    def run(self) -> None:
        """Make the images, or go on with them, judge them, and write all of it."""
        results, progress = consoles()
        self.check()
        source = find_source(self.checkpoint, self.from_run)
        original = self.read(source.file)
        classes = _classes(self, source, original.card)
        # A network retrained without a class cannot judge its images.
        able = not {*classes} & {*source.forgotten}
        judge = self.second or (source.second if able else None)
        student, second = (
            None if path is None else load_companion(path, flag, original)
            for path, flag in ((self.student, "--student"), (judge, "--second"))
        )
        # All classes side by side, so that each batch holds some of all.
        labels = np.tile(np.array(classes, np.int32), self.images_per_class)
        made = _Images(self, original, student, labels)
        saved = {"checkpoint": original, "student": student, "second": second}
        record = {name: one and one.to_dict() for name, one in saved.items()}
        sums = {name: one and one["sha256"] for name, one in record.items()}
        record["settings"] = made.deciding() | {"classes": classes} | sums
        folder = OutputFolder(
            self.place,
            record,
            kind=INVERSION,
            resume=self.resume,
            overwrite=self.overwrite,
        )
        if folder.is_done(results):
            return
        watch = Stopwatch()
        with folder:
            with watch.stage("steps"):
                data = made.draw(folder, progress)
            folder.write(_IMAGES, lambda path: save_images(path, data, self.seed))
            accuracies = {
                name: None if one is None else recognition(one.classifier, data)
                for name, one in (("classifier", original), ("second", second))
            }
            write_sheets(folder, data, original)
            details = {
                "class_names": original.card.class_names,
                "terms": made.terms(data),
                "seconds": watch.seconds,
                "accuracies": accuracies,
                "versions": versions(),
                "device": parallel.device_kind(),
            }
            folder.write_json(_RECORD, record | details)
            folder.finish()
        names = original.card.class_names
        results.print(recognition_table(accuracies, self.images_per_class, names))
        results.print(f"Written to {folder.place}.")


def _classes(settings: Invert, source: Source, card: Card) -> tuple[int, ...]:
    if settings.classes is not None:
        names, count = card.class_names, card.num_classes
        return tuple(
            sorted(parted_numbers(settings.classes, names, count, "--classes"))
        )
    name = f"the entry forget in the config.json beside {source.file}"
    check_classes(source.forgotten, card.num_classes, name=name)
    gone = {*card.forgotten, *source.forgotten}
    retained = tuple(c for c in range(card.num_classes) if c not in gone)
    if not retained:
        msg = f"{source.file} has forgotten all its classes: name some with --classes."
        raise ValueError(msg)
    return retained


class _Images:
    """The call of `invert`; what it would refuse is refused here, before any work."""

    def __init__(
        self,
        settings: Invert,
        original: SavedClassifier,
        student: SavedClassifier | None,
        labels: Int[np.ndarray, " n"],
    ):
        self._settings, self._labels = settings, labels
        self._classifier = original.classifier
        self._student = None if student is None else student.classifier
        self._given = {name: getattr(settings, name) for name in _PASSED}
        self._given["image_shape"] = original.card.image_shape
        self._given["key"] = jax.random.key(settings.seed)
        checked = dict(self._given)
        bounds_of(self._classifier, checked.pop("bounds"))
        references = References(None, self._student)
        _, self._prior = checked_arguments(
            self._classifier, labels, references=references, **checked
        )

    def deciding(self) -> dict[str, Any]:
        """What decides about the images besides classes and classifiers."""
        names = (*_PASSED[1:], "learning_rate", "schedule", "images_per_class", "seed")
        weights = dataclasses.asdict(self._prior)
        return {name: getattr(self._settings, name) for name in names} | {
            f"prior.{name}": weight for name, weight in weights.items()
        }

    def draw(self, folder: OutputFolder, progress: Console) -> Data:
        """All images, or those of the batches that are not finished yet."""
        finished = FinishedBatches(folder)
        if finished:
            count = len(batch_rows(len(self._labels), self._settings.batch_size))
            progress.print(f"Going on after {len(finished)} of {count} batches.")
        try:
            with (
                library_warnings(progress),
                Bars(console=progress) as shown,
                shown.row("images") as move,
            ):
                steps = self._settings.steps

                def step(_, done: int, total: int) -> None:
                    batch, count = max(done - 1, 0) // steps, total // steps
                    stage = f"batch {batch + 1}/{count}" if count > 1 else "inverting"
                    move(stage, done - batch * steps, steps)

                images = inversion.invert(
                    self._classifier,
                    self._labels,
                    student=self._student,
                    optimizer=self._settings.image_adam(),
                    finished=finished,
                    progress=step,
                    callback=shown.show,
                    **self._given,
                )
        except inversion.InversionError as error:
            path, last = folder.work / _LAST_FINITE, Data(error.images, error.labels)
            save_images(path, last, self._settings.seed)
            # The function's own advice ends with where its caller finds the images.
            reason = str(error).partition(" Try ")[0]
            msg = (
                f"{reason} The last finite images are written to {path}. Start anew "
                "with --overwrite and a smaller --learning-rate, or with --bounds."
            )
            raise FloatingPointError(msg) from error
        return Data(images, self._labels)

    def terms(self, data: Data) -> dict[str, float]:
        """The objective's terms at the images as they are written, batch by batch.

        Unlike those of the last step they do not depend on interruptions.
        """
        given = {"prior": self._settings.prior, "student": self._student}
        terms = [
            _mean_terms(self._classifier, data.images[b], data.labels[b], **given)
            for b in batch_rows(len(data), self._settings.batch_size)
        ]
        return {name: float(np.mean([x[name] for x in terms])) for name in terms[0]}
