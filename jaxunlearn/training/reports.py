"""What is told of a training while it goes on."""

import collections
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxunlearn.descent.loop import fetch_outputs
from jaxunlearn.training.recipe import Recipe

# One name for all that is said of a training.
_log = logging.getLogger("jaxunlearn.training")


class Reports:
    """Losses as they come from the device, told in order and one step at a time.

    Each chunk of steps is fetched after the next one has been sent, so that the device
    never waits for the host.

    Args:
      recipe: of the training.
      steps: in an epoch.
      batch_size: samples in a step.
      callback: `(step, loss)`, or None.
      log: takes a dictionary for each step, or None.
    """

    def __init__(
        self,
        recipe: Recipe,
        steps: int,
        batch_size: int,
        callback: Callable[[int, float], Any] | None,
        log: Callable[[dict[str, Any]], Any] | None,
    ):
        self._recipe, self._steps, self._batch_size = recipe, steps, batch_size
        self._rates = recipe.learning_rates(steps)
        self._callback, self._tell = callback, log
        self._sent = collections.deque()
        self._epoch_losses = []
        self._since = time.perf_counter()

    @property
    def wanted(self) -> bool:
        """Whether anybody hears of the validation accuracy."""
        return self._tell is not None or _log.isEnabledFor(logging.INFO)

    def send(self, first: int, stop: int, losses: list[Any]) -> None:
        """Take the losses of a chunk that was sent off, and tell those before."""
        self._sent.append((first, stop, losses))
        while len(self._sent) > 1:
            self._next(None)

    def wait(self, accuracy: Callable[[], float] | None = None) -> float | None:
        """Tell all that is left; the last step ends an epoch of this accuracy.

        Args:
          accuracy: on validation data, in percent; called when the losses have come.

        Returns:
          The accuracy.
        """
        found = None
        while self._sent:
            found = self._next(accuracy if len(self._sent) == 1 else None)
        return found

    def _next(self, accuracy):
        first, stop, losses = self._sent.popleft()
        losses = fetch_outputs(losses, stop - first)
        self._check(losses, first)
        self._epoch_losses.append(losses)
        extras, found = {}, None
        if stop % self._steps == 0:
            images = self._batch_size * sum(map(len, self._epoch_losses))
            seconds = time.perf_counter() - self._since
            extras["images_per_second"] = images / seconds
            if accuracy is not None:
                found = extras["validation_accuracy"] = accuracy()
            self._log_epoch(stop // self._steps, found)
            self._epoch_losses, self._since = [], time.perf_counter()
        for step, loss in enumerate(losses.tolist(), start=first):
            if self._callback is not None:
                self._callback(step, loss)
            if self._tell is not None:
                record = {
                    "step": step,
                    "epoch": step // self._steps,
                    "loss": loss,
                    "learning_rate": float(self._rates[step]),
                }
                self._tell(record | extras if step == stop - 1 else record)
        return found

    def _check(self, losses: Float[np.ndarray, " steps"], first: int):
        bad = ~np.isfinite(losses)
        if bad.any():
            step = int(bad.argmax())
            what = f"loss is {losses[step]}"
            raise diverged(what, first + step, self._recipe)

    def _log_epoch(self, epoch, accuracy):
        losses = np.concatenate(self._epoch_losses)
        line = f"epoch {epoch} of {self._recipe.epochs}: loss {losses.mean():.4f}"
        if accuracy is not None:
            line += f", validation accuracy {accuracy:.2f} %"
        _log.info(line)


def diverged(what: str, step: int, recipe: Recipe) -> FloatingPointError:
    """A sentence to raise on a training that cannot go on."""
    return FloatingPointError(
        f"The {what} at step {step}: the training has diverged. Lower the learning "
        f"rate ({recipe.learning_rate}), or lengthen the warm-up "
        f"({recipe.warmup_epochs} epochs)."
    )
