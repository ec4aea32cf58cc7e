"""Reporting of a training run: losses, accuracies, and a file that keeps them."""

import dataclasses
import itertools
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxunlearn.progress import Report
from jaxunlearn.serialization import to_dict
from jaxunlearn.training.recipe import Recipe

# One name for all messages of a training.
_log = logging.getLogger("jaxunlearn.training")


@dataclasses.dataclass
class Reports:
    """Hands on what a training reports, in order and one step at a time."""

    recipe: Recipe
    steps: int  # in an epoch
    batch_size: int
    callback: Callable[[int, float], Any] | None
    log: Callable[[dict[str, Any]], Any] | None
    progress: Report

    def __post_init__(self):
        self._rates = self.recipe.learning_rates(self.steps)
        self._losses, self._since = [], time.perf_counter()

    @property
    def wanted(self) -> bool:
        """Whether anybody hears of the validation accuracy."""
        return self.log is not None or _log.isEnabledFor(logging.INFO)

    def losses(self, stop: int, losses: Float[np.ndarray, " steps"]) -> None:
        """Report the steps up to `stop`; `epoch` reports the last one of an epoch."""
        for step, loss in enumerate(losses.tolist(), start=stop - len(losses)):
            self._losses.append(loss)
            if self.callback is not None:
                self.callback(step, loss)
            if (step + 1) % self.steps:
                self._record(step)
            self.progress("training", step + 1, len(self._rates))

    def epoch(self, epoch: int, accuracy: float | None) -> None:
        """Report the end of the `epoch`-th epoch, and its validation accuracy."""
        seconds = time.perf_counter() - self._since
        extras = {"images_per_second": self.batch_size * len(self._losses) / seconds}
        loss = np.mean(self._losses)
        line = f"epoch {epoch} of {self.recipe.epochs}: loss {loss:.4f}"
        if accuracy is not None:
            extras["validation_accuracy"] = accuracy
            line += f", validation accuracy {accuracy:.2f} %"
        _log.info(line)
        self._record(epoch * self.steps - 1, **extras)
        self._losses, self._since = [], time.perf_counter()

    def _record(self, step, **extras):
        if self.log is not None:
            record = {
                "step": step,
                "epoch": step // self.steps,
                "loss": self._losses[-1],
                "learning_rate": float(self._rates[step]),
            }
            self.log(record | extras)


class MetricLog:
    """A file with one JSON object a line; callable, for `log` of `training.fit`.

    Each record is flushed. Where there are records already, the first new one cuts off
    those of its own step and of later ones, so that a training that was killed and
    resumed has each step once. A line that a kill has torn is cut off at once.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        if not self._path.parent.is_dir():
            msg = f"There is no folder {self._path.parent} to write metrics into."
            raise FileNotFoundError(msg)
        # Opened for appending, a file is written at its end wherever that is.
        self._file = self._path.open("a", encoding="utf-8")
        self._started = False
        self._cut(None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __call__(self, record: dict[str, Any]) -> None:
        """Append a record with its `step`; what is not finite becomes null."""
        if not self._started:
            self._cut(record["step"])
            self._started = True
        line = json.dumps(to_dict(record), allow_nan=False, separators=(",", ":"))
        self._file.write(line + "\n")
        self._file.flush()

    def _cut(self, step: int | None):
        """Remove what follows the last whole line, or is of this step or later."""
        with self._path.open("rb") as file:
            kept = itertools.takewhile(lambda line: _is_before(line, step), file)
            size = sum(map(len, kept))
        os.truncate(self._path, size)


def _is_before(line, step):
    try:
        record = json.loads(line)
        return line.endswith(b"\n") and (step is None or record["step"] < step)
    except (ValueError, KeyError, TypeError):
        return False
