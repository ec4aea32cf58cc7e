"""`jaxunlearn train`: train a classifier in a folder that grows and can be resumed."""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from jaxunlearn import parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.console import bars, consoles, library_warnings
from jaxunlearn.cli.folder import Kind, OutputFolder
from jaxunlearn.cli.settings import (
    Classes,
    Folder,
    TrainingSettings,
    check_resume,
    keys,
)
from jaxunlearn.cli.sources import train_network
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.models.files import save_with_card
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, check_classes, split_by_class
from jaxunlearn.training.reports import MetricLog

_MODEL, _METRICS, _CHECKPOINTS = "model.safetensors", "metrics.jsonl", "checkpoints"

# Where a training goes is not part of what it is; the second ones leave its result
# as it is, and may change from one resumption to the next.
_ELSEWHERE = ("out", "resume", "overwrite")
_FREE = ("data_dir", "checkpoint_every", "keep")


def _deciding(config: dict[str, Any], finished: bool) -> dict[str, Any]:
    """What decides about the result."""
    del finished
    deciding = {name: value for name, value in config.items() if name not in _FREE}
    if deciding.get("split_seed") is None:
        deciding["split_seed"] = deciding.get("seed")
    return deciding


TRAINING = Kind(
    name="training",
    settings=("config.json",),
    complete=(_MODEL, "model.json"),
    written=(_METRICS, _CHECKPOINTS),
    foreign="metrics.json",  # of a run
    deciding=_deciding,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(TrainingSettings):
    """Train a classifier; what was interrupted or killed goes on with --resume.

    Attributes:
      forget: classes to leave out, for a classifier retrained from scratch.
      out: the training's folder; by default runs/DATASET-MODEL-seed-SEED.
      resume: go on from the newest checkpoint there; start anew if there is none.
      overwrite: start anew, in place of the training that is there.
      checkpoint_every: steps from one checkpoint to the next; by default an epoch's.
      keep: how many of the newest checkpoints stay.
    """

    examples = (
        "jaxunlearn train --recipe.epochs 20 --out runs/digits",
        "jaxunlearn train --forget 3 --seed 1 --resume",
    )
    first = (
        *("dataset", "data_dir", "size", "model", "options", "forget"),
        *("recipe.epochs", "recipe.batch_size", "recipe.learning_rate", "seed"),
        *("out", "resume", "overwrite", "checkpoint_every"),
    )

    forget: Classes = ()
    out: Folder = None
    resume: bool = False
    overwrite: bool = False
    checkpoint_every: Annotated[int | None, "STEPS"] = None
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
        """Check what can be checked before any data are read."""
        super().check()
        check_classes(self.forget, self.num_classes(), name="--forget")
        for name in ("checkpoint_every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                msg = f"--{name.replace('_', '-')} must be at least 1; it is {value}."
                raise ValueError(msg)
        check_resume(self)

    def run(self) -> None:
        """Train, or go on, and write the classifier with its card."""
        results, progress = consoles()
        self.check()
        settings = to_dict(self)
        folder = OutputFolder(
            self.place,
            {name: settings[name] for name in settings if name not in _ELSEWHERE},
            kind=TRAINING,
            resume=self.resume,
            overwrite=self.overwrite,
        )
        if folder.finished:
            results.print(
                f"The training in {folder.place} is finished: there is nothing to do."
            )
            return
        splits = self.load_splits()
        self.check_images(splits["train"].images)
        begun = time.perf_counter()
        with folder:
            with library_warnings(progress), MetricLog(folder.work / _METRICS) as log:
                classifier = _fit(self, folder, splits, log, progress)
            # Of this process: what came before a resumption is not known.
            seconds = time.perf_counter() - begun
            accuracies = {
                split: evaluate(classifier, data, self.forget)
                for split, data in splits.items()
            }
            details = {"accuracies": accuracies, "seconds": seconds}
            _save(self, folder, splits, classifier, details)
            folder.finish()
        results.print(f"Accuracy on test data:\n{accuracies['test']}")
        results.print(f"Written to {folder.place}.")


def _fit(
    settings: Train,
    folder: OutputFolder,
    splits: dict[str, Data],
    log: MetricLog,
    progress: Console,
) -> Classifier:
    data = splits["train"]
    if settings.forget:
        data = split_by_class(data, settings.forget)[1]
    total, steps = settings.recipe.steps(len(data)), itertools.count()

    def tell(record):
        if next(steps) == 0 and record["step"] > 0:
            progress.print(f"Going on after {record['step']} of {total} steps.")
        log(record)

    with bars(progress) as shown, shown.row("classifier") as move:
        return train_network(
            settings,
            data,
            splits["validation"],
            move,
            key=keys(settings.seed)[0],
            preprocess=settings.preprocess(),
            checkpoint_dir=folder.work / _CHECKPOINTS,
            checkpoint_every=settings.checkpoint_every,
            resume=settings.resume,
            keep=settings.keep,
            log=tell,
        )


def _save(
    settings: Train,
    folder: OutputFolder,
    splits: dict[str, Data],
    classifier: Classifier,
    details: dict[str, Any],
) -> None:
    """The classifier and, last, its card, which says that all is done."""
    name = "retrained" if settings.forget else "original"
    card = settings.card(name, splits["train"].images.shape[1:], settings.forget)
    details = {
        "seed": settings.seed,
        "recipe": settings.recipe,
        "samples": {split: len(data) for split, data in splits.items()},
        **details,
        "device": parallel.device_kind(),
    }
    folder.write(_MODEL, lambda path: save_with_card(path, classifier, card, details))
