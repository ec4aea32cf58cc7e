"""`jaxunlearn train`: train a classifier in a folder that grows and can be resumed."""

import dataclasses
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import arg

from jaxunlearn import parallel, training
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.console import bars, consoles, library_warnings
from jaxunlearn.cli.forget import keys
from jaxunlearn.cli.source import Classes, Folder
from jaxunlearn.cli.trained import Trained, of_classes
from jaxunlearn.datasets.splits import SPLITS
from jaxunlearn.metrics.evaluation import Evaluation, evaluate
from jaxunlearn.models.files import save_with_card
from jaxunlearn.serialization import read_json, to_dict, write_json
from jaxunlearn.tasks import Data, check_classes, split_by_class
from jaxunlearn.training.checkpoints import differences
from jaxunlearn.training.reports import MetricLog

# What a training writes into its folder.
_CONFIG, _MODEL = "config.json", "model.safetensors"
_CARD, _METRICS = "model.json", "metrics.jsonl"
_CHECKPOINTS = "checkpoints"
# What is left of the first three when a training is killed.
_HALF_WRITTEN = re.compile(r"\.(config|model)-\d+\.(json|safetensors)")

# Where a training goes is not part of what it is; the second ones leave its result
# as it is, and may change from one resumption to the next.
_PLACES = ("out", "resume", "overwrite")
_FREE = ("data_dir", "checkpoint_every", "keep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Trained):
    """Train a classifier; what was interrupted or killed goes on with --resume.

    Attributes:
      forget: classes to leave out, for a classifier retrained from scratch.
      out: the training's folder; by default runs/DATASET-MODEL-seed-SEED.
      resume: go on from the newest checkpoint there; start anew if there is none.
      overwrite: start anew, in place of the training that is there.
      checkpoint_every: steps from one checkpoint to the next; by default an epoch's.
      keep: how many of the newest checkpoints stay.
    """

    forget: Annotated[tuple[int, ...], Classes] = ()
    out: Folder = None
    resume: bool = False
    overwrite: bool = False
    checkpoint_every: Annotated[int | None, arg(metavar="STEPS")] = None
    keep: int = 3

    @property
    def place(self) -> Path:
        """Where the training goes."""
        name = f"{self.label}-{self.model}"
        if self.forget:
            name += f"-without-{'-'.join(map(str, self.forget))}"
        name += f"-seed-{self.seed}"
        return Path("runs") / name if self.out is None else self.out

    def check(self) -> None:
        """Check what can be checked before any data are read.

        Raises:
          TypeError: the network has no such option.
          ValueError: names, classes, numbers or a seed are not what they can be.
        """
        super().check()
        check_classes(self.forget, self.num_classes(), name="--forget")
        for name in ("checkpoint_every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                msg = f"--{name.replace('_', '-')} must be at least 1; it is {value}."
                raise ValueError(msg)
        if self.resume and self.overwrite:
            msg = "--resume goes on and --overwrite starts anew: give one of them."
            raise ValueError(msg)


def train(settings: Train) -> None:
    """Train, or go on, and write the classifier with its card."""
    results, progress = consoles()
    settings.check()
    place = settings.place
    if _is_finished(settings):
        results.print(f"The training in {place} is finished: there is nothing to do.")
        return
    splits = {s: settings.load(s, settings.validation_seed) for s in SPLITS}
    settings.check_images(splits["train"].images)
    _prepare(settings)
    begun = time.perf_counter()
    try:
        with library_warnings(progress), MetricLog(place / _METRICS) as log:
            classifier = _fit(settings, splits, log, progress)
    except KeyboardInterrupt:
        msg = f"interrupted. What is done lies in {place}; the same command with --resume takes it up."  # noqa: E501
        raise KeyboardInterrupt(msg) from None
    seconds = time.perf_counter() - begun
    found = {s: evaluate(classifier, splits[s], settings.forget) for s in SPLITS}
    _save(settings, splits, classifier, found, seconds)
    results.print(f"Accuracy on test data:\n{found['test']}")
    results.print(f"Written to {place}.")


def _is_finished(settings: Train) -> bool:
    """Whether all is done; refuses a folder in which the training must not go on."""
    place = settings.place
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return False
    config = place / _CONFIG
    # A run has a config.json too, and metrics.json besides.
    if not config.is_file() or (place / "metrics.json").exists():
        if place.is_dir() and all(
            p.name.startswith(".config-") for p in place.iterdir()
        ):
            return False  # killed before anything was written
        msg = f"{place} is there and is no training: choose another folder with --out."
        raise ValueError(msg)
    if settings.overwrite:
        return False
    if not settings.resume:
        msg = (
            f"{place} already holds a training: go on with --resume, replace it with "
            "--overwrite, or choose another folder with --out."
        )
        raise ValueError(msg)
    others = differences(_stored(config), _deciding(_plain(settings)))
    if others:
        msg = (
            f"{place} holds a training with other settings, which differ in "
            f"{'; '.join(others)}: give the flags of that one, replace it with "
            "--overwrite, or choose another folder with --out."
        )
        raise ValueError(msg)
    return all((place / name).is_file() for name in (_MODEL, _CARD))


def _prepare(settings: Train) -> None:
    """The folder with the settings in it, and nothing of a training to be replaced."""
    place = settings.place
    try:
        place.mkdir(parents=True, exist_ok=True)
        if settings.overwrite:
            for name in (_CARD, _MODEL, _METRICS, _CHECKPOINTS, _CONFIG):
                path = place / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for path in place.iterdir():
            if _HALF_WRITTEN.fullmatch(path.name):
                path.unlink()
        if not (place / _CONFIG).exists():
            write_json(place / _CONFIG, _plain(settings))
    except OSError as error:
        msg = (
            f"The folder {place} cannot be made ({error.strerror or error}): choose "
            "another place with --out."
        )
        raise OSError(msg) from error


def _fit(
    settings: Train,
    splits: dict[str, Data],
    log: Callable[[dict[str, Any]], None],
    progress: Console,
) -> Classifier:
    data, validation = splits["train"], splits["validation"]
    if settings.forget:
        data = split_by_class(data, settings.forget)[1]
        validation = of_classes(validation, data.labels)
    total = settings.recipe.steps(len(data))
    with bars(progress) as shown, shown.row("classifier") as move:
        first = True

        def tell(record):
            nonlocal first
            step = record["step"]
            if first and step > 0:
                progress.print(f"Going on after {step} of {total} steps.")
            first = False
            log(record)
            move("training", step + 1, total)

        return training.fit(
            settings.create(),
            data,
            recipe=settings.recipe,
            key=keys(settings.seed)[0],
            preprocess=settings.preprocess(settings.validation_seed),
            validation=validation,
            checkpoint_dir=settings.place / _CHECKPOINTS,
            checkpoint_every=settings.checkpoint_every,
            resume=settings.resume,
            keep=settings.keep,
            log=tell,
        )


def _save(
    settings: Train,
    splits: dict[str, Data],
    classifier: Classifier,
    found: dict[str, Evaluation],
    seconds: float,
) -> None:
    """The classifier and, last, its card, which says that all is done."""
    name = "retrained" if settings.forget else "original"
    card = settings.card(name, splits["train"].images.shape[1:], settings.forget)
    details = {
        "seed": settings.seed,
        "recipe": settings.recipe,
        "samples": {split: len(data) for split, data in splits.items()},
        "accuracies": found,
        # Of this process: what came before a resumption is not known.
        "seconds": seconds,
        "device": parallel.device_kind(),
    }
    save_with_card(settings.place / _MODEL, classifier, card, details)


def _plain(settings: Train) -> dict[str, Any]:
    plain = to_dict(settings)
    return {name: plain[name] for name in plain if name not in _PLACES}


def _stored(config: Path) -> dict[str, Any]:
    """What decided about the training that is there."""
    try:
        found = read_json(config)
    except ValueError as error:
        msg = (
            f"{error} The training there cannot be gone on with: start anew with "
            "--overwrite, or choose another folder with --out."
        )
        raise ValueError(msg) from error
    return _deciding(found)


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """What decides about the result, those of the recipe by their own names."""
    found = {name: value for name, value in config.items() if name not in _FREE}
    if found.get("split_seed") is None:
        found["split_seed"] = found.get("seed")
    recipe = found.pop("recipe", None)
    recipe = recipe if isinstance(recipe, dict) else {}
    return found | {f"recipe.{name}": value for name, value in recipe.items()}
