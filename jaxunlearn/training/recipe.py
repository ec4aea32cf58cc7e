"""How to train: the numbers, and the learning rate of each step."""

import dataclasses
import itertools
from collections import Counter
from math import inf

import jax
import numpy as np
from jaxtyping import Float
from optax import schedules

from jaxunlearn.serialization import check_fields

_SCHEDULES = ("cosine", "multi-step", "constant")
_PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum. The defaults suit the digits data set.

    UNSC (arXiv 2404.13588) trains with `batch_size=512`, `schedule="multi-step"`,
    `nesterov=False`, `crop_padding=4`, `flip=True`, `patience=30` and the other
    defaults, of which the weight decay holds for all leaves there.

    Attributes:
      epochs: passes over the data. Each leaves out the samples that do not fill a last
        minibatch, other ones every time.
      batch_size: samples in a minibatch; all of them if there are fewer.
      learning_rate: the highest one, at the end of the warm-up.
      momentum: in [0, 1).
      nesterov: whether Nesterov's form of momentum is taken.
      weight_decay: this times the parameter is added to its gradient, but for biases
        and normalisation scales (parameters of less than two axes).
      warmup_epochs: over which the learning rate rises linearly to its peak.
      schedule: "cosine", falling to 0 at the end, "multi-step" or "constant".
      milestones: multi-step: the epochs from which on the rate is multiplied by decay.
      decay: multi-step: the factor, in (0, 1].
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).
      crop_padding: pixels of black on each side, from which a window of the image's own
        size is cut at random.
      flip: whether every other image, at random, is mirrored left to right.
      precision: in which gradients are taken, "float32" (the network's own types) or
        "bfloat16"; parameters, momentum and batch statistics stay as they are.
      patience: epochs without a better validation accuracy after which training stops;
        the best epoch's parameters and state are the result, also if all epochs ran.

    Raises:
      TypeError: a value is of another type.
      ValueError: a value is outside its range.

    >>> Recipe(epochs=2).schedule
    'cosine'
    """

    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup_epochs: float = 1
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (60, 120, 160)
    decay: float = 0.2
    label_smoothing: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    precision: str = "float32"
    patience: int | None = None

    def __post_init__(self):
        check_fields(self)
        allowed = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < inf, "positive and finite"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < inf, "0 or more and finite"),
            "warmup_epochs": (
                0 <= self.warmup_epochs <= self.epochs,
                f"between 0 and epochs ({self.epochs})",
            ),
            "schedule": (self.schedule in _SCHEDULES, _either(_SCHEDULES)),
            "milestones": (
                all(a < b for a, b in itertools.pairwise((0, *self.milestones, inf))),
                "positive, finite and in ascending order",
            ),
            "decay": (0 < self.decay <= 1, "in (0, 1]"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "crop_padding": (self.crop_padding >= 0, "0 or more"),
            "precision": (self.precision in _PRECISIONS, _either(_PRECISIONS)),
            "patience": (
                self.patience is None or self.patience >= 1,
                "at least 1, or None",
            ),
        }
        for name, (fine, expected) in allowed.items():
            if not fine:
                value = getattr(self, name)
                msg = f"Recipe.{name} must be {expected}; it is {value!r}."
                raise ValueError(msg)
        stepped = any(m < self.epochs for m in self.milestones)
        if self.schedule == "multi-step" and not stepped:
            msg = (
                f"Recipe.milestones {self.milestones} all lie beyond the {self.epochs} "
                "epochs, so that the learning rate would never fall: set them, or take "
                "another schedule."
            )
            raise ValueError(msg)

    def steps(self, samples: int) -> int:
        """How many steps a training on so many samples has."""
        return self.epochs * (samples // min(self.batch_size, samples))

    def learning_rates(self, steps_per_epoch: int) -> Float[np.ndarray, " steps"]:
        """The learning rate of every step, float32.

        >>> Recipe(epochs=4, warmup_epochs=2, learning_rate=1.0).learning_rates(1)
        array([0.5, 1. , 1. , 0.5], dtype=float32)
        """
        steps = self.epochs * steps_per_epoch
        warmup = round(self.warmup_epochs * steps_per_epoch)
        peak = self.learning_rate
        falls = Counter(round(m * steps_per_epoch) - warmup for m in self.milestones)
        factors = {step: self.decay**times for step, times in falls.items()}
        after = {
            "cosine": schedules.cosine_decay_schedule(peak, max(steps - warmup, 1)),
            "multi-step": schedules.piecewise_constant_schedule(peak, factors),
            "constant": schedules.constant_schedule(peak),
        }
        rising = schedules.linear_schedule(peak / max(warmup, 1), peak, warmup - 1)
        rate = schedules.join_schedules([rising, after[self.schedule]], [warmup])
        # Padded, so that few lengths are ever compiled.
        padded = np.arange(max(1024, 1 << (steps - 1).bit_length()), dtype=np.float64)
        with jax.enable_x64(True):
            return np.asarray(rate(padded))[:steps].astype(np.float32)


def _either(values):
    *first, last = map(repr, values)
    return f"{', '.join(first)} or {last}"
