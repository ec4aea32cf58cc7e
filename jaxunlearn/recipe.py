"""How to train: the numbers, and the learning rate that they make of each step."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train: SGD with Nesterov momentum. The defaults suit the digits.

    Attributes:
      epochs: passes over the data. Each leaves out what does not fill a minibatch,
        other samples every time.
      batch_size: samples in a minibatch; all of them if there are fewer.
      learning_rate: its peak.
      momentum: in [0, 1).
      weight_decay: added to the gradient, times the parameter; of leaves with two axes
        or more alone, so that biases and normalisation scales are left as they are.
      warmup_epochs: over which the learning rate rises linearly to its peak.
      schedule: "cosine", falling to 0 at the end, or "constant".
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Raises:
      ValueError: a value is outside its range.

    >>> Recipe(epochs=2).schedule
    'cosine'
    """

    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1
    schedule: str = "cosine"
    label_smoothing: float = 0.0

    def __post_init__(self):
        allowed = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "positive and finite"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more and finite"),
            "warmup_epochs": (
                0 <= self.warmup_epochs <= self.epochs,
                f"between 0 and epochs ({self.epochs})",
            ),
            "schedule": (
                self.schedule in ("cosine", "constant"),
                "'cosine' or 'constant'",
            ),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
        }
        for name, (fine, expected) in allowed.items():
            if not fine:
                value = getattr(self, name)
                msg = f"Recipe.{name} must be {expected}; it is {value!r}."
                raise ValueError(msg)

    def learning_rates(self, steps_per_epoch: int) -> Float[np.ndarray, " steps"]:
        """The learning rate of every step, float32.

        >>> Recipe(epochs=4, warmup_epochs=2, learning_rate=1.0).learning_rates(1)
        array([0.5, 1. , 1. , 0.5], dtype=float32)
        """
        steps = np.arange(self.epochs * steps_per_epoch)
        warmup = round(self.warmup_epochs * steps_per_epoch)
        rising = (steps + 1) / max(warmup, 1)
        through = (steps - warmup) / max(len(steps) - warmup, 1)
        falling = (1 + np.cos(np.pi * through)) / 2 if self.schedule == "cosine" else 1
        factors = np.where(steps < warmup, rising, falling)
        return (self.learning_rate * factors).astype(np.float32)
