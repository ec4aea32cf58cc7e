"""`jaxunlearn train`: train a classifier in a folder that grows and can be resumed."""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from jaxunlearn import parallel
from jaxunlearn.checks import check_count
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.console import Bars, consoles, library_warnings
from jaxunlearn.cli.folder import Kind, OutputFolder, check_resume
from jaxunlearn.cli.saved import load_saved
from jaxunlearn.cli.settings import (
    Classes,
    Folder,
    SeededSettings,
)
from jaxunlearn.cli.sources import given_original, train_network
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, split_by_class
from jaxunlearn.training.reports import MetricLog

_METRICS, _CHECKPOINTS = "metrics.jsonl", "checkpoints"

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
    complete=("model.safetensors", "model.json"),
    written=(_METRICS, _CHECKPOINTS),
    foreign="metrics.json",  # of a run
    deciding=_deciding,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(SeededSettings):
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
        check_count("--keep", self.keep)
        if self.checkpoint_every is not None:
            check_count("--checkpoint-every", self.checkpoint_every)
        check_resume(self)

    def run(self) -> None:
        """Train, or go on, and write the classifier with its card."""
        results, progress = consoles()
        self.check()
        if self.forget:
            numbers = self.forget_numbers(self.forget)
            self = dataclasses.replace(self, forget=numbers)
        settings = to_dict(self)
        folder = OutputFolder(
            self.place,
            {name: settings[name] for name in settings if name not in _ELSEWHERE},
            kind=TRAINING,
            resume=self.resume,
            overwrite=self.overwrite,
        )
        if folder.finished:
            try:
                load_saved(folder.place / "model.safetensors", "--out")
            except ValueError as error:
                progress.print(f"{error} It is made again.")
                folder.finished = False
        if folder.is_done(results):
            return
        splits = self.load_splits()
        given_original(self, splits["train"].images)  # there is none
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
            details = {
                "seed": self.seed,
                "recipe": self.recipe,
                "samples": {split: len(data) for split, data in splits.items()},
                "accuracies": accuracies,
                "seconds": seconds,
                "device": parallel.device_kind(),
            }
            # The card comes last and says that all is done.
            self.save(
                folder,
                "model",
                classifier,
                details,
                name="retrained" if self.forget else "original",
                image_shape=splits["train"].images.shape[1:],
                forgotten=self.forget,
            )
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

    with Bars(console=progress) as shown, shown.row("classifier") as move:
        return train_network(
            settings,
            splits,
            data,
            move,
            checkpoint_dir=folder.work / _CHECKPOINTS,
            checkpoint_every=settings.checkpoint_every,
            resume=settings.resume,
            keep=settings.keep,
            log=tell,
        )
