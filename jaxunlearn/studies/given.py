"""What a measurement starts from: a classifier, its data, and what to forget."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.unlearning import Result
from jaxunlearn.methods import forget_task
from jaxunlearn.tasks import Data, Task, split_by_class

# Numbers by row and measure.
Rows = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """Of one training seed.

    Attributes:
      original: the classifier to unlearn from.
      train, validation, test: of all classes.
      classes: those to forget.
      num_classes: how many there are.
      methods: those to ask about by title, and the grid of each; () for its own value.
      key: for all that is drawn.
      training_seconds: what the original took to train.
      training_samples: how many samples were read for that, repeats included.
    """

    original: Classifier
    train: Data
    validation: Data
    test: Data
    classes: tuple[int, ...]
    num_classes: int
    methods: dict[str, tuple[Any, tuple[float, ...]]]
    key: Array
    training_seconds: float
    training_samples: int

    @property
    def parts(self) -> tuple[Data, Data]:
        """The training samples to forget, and the others."""
        return split_by_class(self.train, self.classes)

    def forget(
        self, method: Any, forget: Data, retain: Data, grid: tuple[float, ...] = ()
    ) -> Result:
        """The method on these samples; with a grid, chosen on validation data."""
        task = Task(forget, retain, self.classes, num_classes=self.num_classes)
        given = {"key": self.key, "validation": self.validation, "grid": grid}
        return forget_task(method, self.original, task, **given)

    def tuned(self, title: str) -> Any:
        """The method of this title with the value that its grid gives on all data."""
        method, grid = self.methods[title]
        if not grid:
            return method
        result = self.forget(method, *self.parts, grid=grid)
        return dataclasses.replace(method, **result.trace.tuned)


def stratified(
    labels: Int[np.ndarray, " n"], count: int, seed: int
) -> Int[np.ndarray, " m"]:
    """Indices of `count` samples, of every class as many, to one; ascending.

    Of a class that has fewer all are taken.

    >>> stratified(np.array([0, 0, 0, 1, 1, 1]), 4, seed=0).size
    4
    """
    random, present = np.random.default_rng(seed), np.unique(labels)
    shares = np.full(present.size, count // present.size)
    shares[: count % present.size] += 1
    chosen = [
        random.permutation(np.flatnonzero(labels == c))[:share]
        for c, share in zip(present, shares, strict=True)
    ]
    return np.sort(np.concatenate(chosen))
