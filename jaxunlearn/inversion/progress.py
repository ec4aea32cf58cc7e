"""What is told of an inversion while it runs, and where it went wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxunlearn.inversion.prior import ImagePrior
from jaxunlearn.inversion.terms import Terms


class InversionError(FloatingPointError):
    """The objective, or an image, became infinite or not a number.

    Attributes:
      images: the last finite ones in pixel space, of finished batches and of those that
        were being worked on.
      labels: the class of each.
      step: the first step that was not finite, counted over all batches.
    """

    def __init__(
        self,
        message: str,
        images: Float[np.ndarray, "n h w c"],
        labels: Int[np.ndarray, " n"],
        step: int,
    ):
        super().__init__(message)
        self.images, self.labels, self.step = images, labels, step


def tell(
    terms: Terms,
    done: int,
    total: int,
    callback: Callable[[int, float], Any] | None,
    log: Callable[[dict[str, Any]], Any] | None,
) -> None:
    """Hand a chunk's terms to those who want to know.

    Args:
      terms: of each step of the chunk.
      done: steps after the chunk, counted over all batches.
      total: of all batches.
      callback: gets `(done, total loss)` once.
      log: gets a record for each step.
    """
    if log is not None:
        first = done - len(terms.total)
        for index in range(len(terms.total)):
            values = {name: float(v[index]) for name, v in terms._asdict().items()}
            log({"step": first + index, "steps": total, **values})
    if callback is not None:
        callback(done, float(terms.total[-1]))


def failure(
    terms: Terms, running: np.ndarray, first: int, prior: ImagePrior
) -> tuple[str, int] | None:
    """Why a chunk that begins at step `first` went wrong and where; None if it did not.

    Args:
      terms: of each step.
      running: whether all was finite, after each step.
      first: the chunk's first step.
      prior: weights of the terms.
    """
    if running.all():
        return None
    place = int(np.argmin(running))
    values = {name: float(value[place]) for name, value in terms._asdict().items()}
    weights = {"cross_entropy": 1.0, **vars(prior)}
    bad = [n for n, w in weights.items() if w and not np.isfinite(values[n])]
    message = (
        f"The inversion's objective is not finite at step {first + place}: {values}"
    )
    if np.isfinite(values["total"]):
        message = f"The inversion's images are not finite after step {first + place}"
    elif bad:
        message += f", because of {' and '.join(bad)}"
    message += (
        ". Try a smaller learning rate, or bounds. The last finite images are in this "
        "error's attribute `images`."
    )
    return message, first + place
