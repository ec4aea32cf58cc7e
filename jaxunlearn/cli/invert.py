"""`jaxunlearn invert`: draw images out of a saved classifier; no data are needed."""

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from tyro.conf import arg

from jaxunlearn import inversion
from jaxunlearn.checks import check_count
from jaxunlearn.cli.console import bars, consoles, library_warnings
from jaxunlearn.cli.images import save_images
from jaxunlearn.cli.inverted import (
    LAST_FINITE,
    InversionFolder,
    Judged,
    recognised,
    write_results,
)
from jaxunlearn.cli.origin import Origin, Saved, find_origin, load_companion, load_saved
from jaxunlearn.cli.source import Classes, Folder, check_seed
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.inversion import ImageAdam, ImagePrior
from jaxunlearn.inversion.arguments import bounds_of, checked_arguments
from jaxunlearn.inversion.batches import Batches
from jaxunlearn.inversion.objective import References
from jaxunlearn.inversion.step import ScheduleName
from jaxunlearn.models.files import Card
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, check_classes

_File = Annotated[Path | None, arg(metavar="FILE.safetensors")]

# Those of the function are those of the command.
_DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(inversion.invert).parameters.items()
}

# What `invert` is told as it stands here.
_PASSED = ("prior", "steps", "jitter", "bounds", "batch_size")

_mean_terms = jax.jit(inversion.inversion_terms, static_argnames="prior")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invert:
    """Draw images of its classes out of a saved classifier, without any data.

    Attributes:
      checkpoint: the classifier: a .safetensors file of a training or a run.
      from_run: in place of --checkpoint, the folder of a run, whose original is
        inverted into the classes that the run retains; or of a training.
      classes: of the images; by default all but those that the classifier has
        forgotten, or that the run forgets.
      images_per_class: how many.
      steps: of the optimisation, for each batch.
      prior: weights of the terms of the objective.
      learning_rate: Adam's, in units of the width of the pixels' range.
      schedule: of the learning rate: to 0 along a cosine, to a tenth at one half and
        to a hundredth at three quarters of the steps, or constant.
      jitter: rolls by up to so many pixels, capped at a sixteenth of the side.
      bounds: of every pixel; by default 0 and 1 where the classifier standardises
        pixels, else there are none.
      batch_size: images optimised together, at most.
      student: a second classifier to compete with: images are drawn to where the two
        disagree.
      second: an independently trained classifier that judges the images; with
        --from-run by default the run's retrained one.
      seed: of everything drawn.
      out: folder for the images; by default FROM_RUN/inversion, or
        inversions/FOLDER-FILE-seed-SEED.
      resume: go on after the last finished batch there; start anew if there is none.
      overwrite: start anew, in place of the inversion that is there.
    """

    checkpoint: _File = None
    from_run: Folder = None
    classes: Annotated[tuple[int, ...] | None, Classes] = None
    images_per_class: int = 32
    steps: int = _DEFAULTS["steps"]
    prior: ImagePrior = _DEFAULTS["prior"]
    learning_rate: float = ImageAdam.learning_rate
    schedule: ScheduleName = ImageAdam.schedule
    jitter: Annotated[int, arg(metavar="PIXELS")] = _DEFAULTS["jitter"]
    bounds: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH")] = _DEFAULTS[
        "bounds"
    ]
    batch_size: int = _DEFAULTS["batch_size"]
    student: _File = None
    second: _File = None
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
        """Check what can be checked before any file is read.

        Raises:
          ValueError: not one source, or numbers or a seed are not what they can be.
        """
        if (self.checkpoint is None) == (self.from_run is None):
            both = self.checkpoint is not None
            msg = (
                f"{'--checkpoint and --from-run are both given' if both else 'There is nothing to invert'}: "  # noqa: E501
                "name a classifier with --checkpoint FILE.safetensors, or the folder "
                "of a run or a training with --from-run FOLDER."
            )
            raise ValueError(msg)
        if self.classes is not None and not self.classes:
            msg = "--classes names no class: give at least one, as in --classes 3."
            raise ValueError(msg)
        check_seed(self.seed)
        check_count("--images-per-class", self.images_per_class)
        self.image_adam()
        check_count("--steps", self.steps)
        if self.resume and self.overwrite:
            msg = "--resume goes on and --overwrite starts anew: give one of them."
            raise ValueError(msg)


def invert(settings: Invert) -> None:
    """Make the images, or go on with them, judge them, and write all of it."""
    results, progress = consoles()
    settings.check()
    origin = find_origin(settings.checkpoint, settings.from_run)
    original = load_saved(origin.file, "--checkpoint")
    classes = _classes(settings, origin, original.card)
    # A network retrained without a class cannot judge its images.
    able = not {*classes} & {*origin.forgotten}
    judge = settings.second or (origin.second if able else None)
    student, second = (
        None if path is None else load_companion(path, flag, original)
        for path, flag in ((settings.student, "--student"), (judge, "--second"))
    )
    # All classes side by side, so that each batch holds some of all.
    labels = np.tile(np.array(classes, np.int32), settings.images_per_class)
    prior = _checked(settings, original, student, labels)
    record = {
        "settings": _plain(settings, classes, prior),
        "checkpoint": original.plain(),
        "student": None if student is None else student.plain(),
        "second": None if second is None else second.plain(),
    }
    folder = InversionFolder(settings.place, record)
    if folder.is_finished(resume=settings.resume, overwrite=settings.overwrite):
        results.print(
            f"The inversion in {folder.place} is finished: there is nothing to do."
        )
        return
    folder.prepare(overwrite=settings.overwrite)
    watch = Stopwatch()
    try:
        with watch.stage("steps"):
            images = _images(settings, folder, original, student, labels, progress)
        judged = Judged(
            images=images,
            labels=labels,
            seed=settings.seed,
            classifier=original.classifier,
            card=original.card,
            second=None if second is None else second.classifier,
            data_dir=origin.data_dir,
        )
        terms = _terms(settings, original, student, judged)
        found = write_results(
            folder, judged, {"terms": terms, "seconds": watch.seconds}
        )
    except KeyboardInterrupt:
        msg = f"interrupted. The same command with --resume goes on after the last finished batch in {folder.place}."  # noqa: E501
        raise KeyboardInterrupt(msg) from None
    results.print(recognised(found, settings.images_per_class))
    results.print(f"Written to {folder.place}.")


def _classes(settings: Invert, origin: Origin, card: Card) -> tuple[int, ...]:
    if settings.classes is not None:
        wanted, last = sorted(settings.classes), card.num_classes - 1
        for c in wanted:
            if not 0 <= c <= last:
                msg = f"--classes names class {c}, which does not exist: the classes are 0 to {last}."  # noqa: E501
                raise ValueError(msg)
            if wanted.count(c) > 1:
                msg = f"--classes must name each class once; it is {wanted}."
                raise ValueError(msg)
        return tuple(wanted)
    name = f"the entry forget in the config.json beside {origin.file}"
    check_classes(origin.forgotten, card.num_classes, name=name)
    gone = {*card.forgotten, *origin.forgotten}
    found = tuple(c for c in range(card.num_classes) if c not in gone)
    if not found:
        msg = f"{origin.file} has forgotten all its classes: name some with --classes."
        raise ValueError(msg)
    return found


def _checked(settings, original, student, labels) -> ImagePrior:
    """The prior with numbers for all weights; what `invert` refuses is refused here."""
    classifier = original.classifier
    bounds_of(classifier, settings.bounds)
    _, prior = checked_arguments(
        classifier,
        labels,
        original.card.image_shape,
        key=jax.random.key(settings.seed),
        prior=settings.prior,
        references=References(None, None if student is None else student.classifier),
        steps=settings.steps,
        batch_size=settings.batch_size,
        jitter=settings.jitter,
    )
    return prior


def _plain(settings, classes, prior) -> dict[str, Any]:
    """What decides about the images besides the classifiers."""
    names = (*_PASSED[1:], "learning_rate", "schedule")
    found = {name: getattr(settings, name) for name in names}
    found |= {"classes": classes, "images_per_class": settings.images_per_class}
    found |= {"seed": settings.seed}
    weights = dataclasses.asdict(prior)
    found |= {f"prior.{name}": weight for name, weight in weights.items()}
    return to_dict(found)


def _images(
    settings: Invert,
    folder: InversionFolder,
    original: Saved,
    student: Saved | None,
    labels: Int[np.ndarray, " n"],
    progress: Console,
) -> Float[np.ndarray, "n h w c"]:
    finished = folder.finished_batches()
    if finished:
        count = len(Batches.of(len(labels), settings.batch_size).rows)
        progress.print(f"Going on after {len(finished)} of {count} batches.")
    try:
        with (
            library_warnings(progress),
            bars(progress) as shown,
            shown.row("images") as move,
        ):
            return inversion.invert(
                original.classifier,
                labels,
                image_shape=original.card.image_shape,
                key=jax.random.key(settings.seed),
                student=None if student is None else student.classifier,
                optimizer=settings.image_adam(),
                finished=finished,
                progress=lambda _, done, total: move("inverting", done, total),
                callback=lambda _, terms: shown.note(_line(terms)),
                **{name: getattr(settings, name) for name in _PASSED},
            )
    except inversion.InversionError as error:
        path = folder.place / LAST_FINITE
        save_images(path, Data(error.images, error.labels), settings.seed)
        # The function's own advice ends with where its caller finds the images.
        reason = str(error).partition(" Try ")[0]
        msg = (
            f"{reason} The last finite images are written to {path}. Start anew with "
            "--overwrite and a smaller --learning-rate, or with --bounds."
        )
        raise FloatingPointError(msg) from error


def _terms(
    settings: Invert, original: Saved, student: Saved | None, judged: Judged
) -> dict[str, float]:
    """The objective's terms at the images as they are written, batch by batch.

    Unlike those of the last step they are the same however often it was interrupted.
    """
    terms = [
        _mean_terms(
            original.classifier,
            judged.images[batch],
            judged.labels[batch],
            prior=settings.prior,
            student=None if student is None else student.classifier,
        )
        for batch in Batches.of(len(judged.labels), settings.batch_size).rows
    ]
    return {name: float(np.mean([x[name] for x in terms])) for name in terms[0]}


def _line(terms: dict[str, float]) -> str:
    return "  ".join(f"{name}={value:.3g}" for name, value in terms.items())
