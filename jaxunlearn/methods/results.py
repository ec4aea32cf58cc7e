"""What a sweep returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jaxunlearn.descent.unlearning import Result
from jaxunlearn.methods.grid import Trial
from jaxunlearn.metrics.evaluation import Evaluation, evaluate
from jaxunlearn.tasks import Data


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """The unlearned classifiers of many requests, and how they came about.

    Attributes:
      requests: the classes that each request forgets.
      results: a classifier for each, with its losses and ranks. What requests share is
        counted here and, but for a single one, not in their traces. Parameters that
        together would fill a device stay on the host, as NumPy arrays.
      tuned: the value of the method's tuned field that all have, by its name.
      trials: what each value of the grid led to on validation data, as means over the
        requests.
      how: how one step of many requests was computed: "vmap", "map" or "one by one".
      at_once: of how many requests, over all devices: all, or as many as memory held.
      step_seconds: where that was chosen by measurement, seconds of a step of all
        requests each way.
      passes: how often the training data were read for "statistics" and for "labels".
      samples_read: samples that were read for "statistics", "labels" and the final
        "steps", repeats included.
      seconds: wall time by stage, "compile" apart.
      proxies: images that stood in for retained data, or None.
    """

    requests: tuple[tuple[int, ...], ...]
    results: tuple[Result, ...]
    tuned: Mapping[str, float]
    trials: tuple[Trial, ...]
    how: str
    at_once: int
    step_seconds: Mapping[str, float]
    passes: Mapping[str, int]
    samples_read: Mapping[str, int]
    seconds: Mapping[str, float]
    proxies: Any = None

    def evaluate(self, data: Data, *, mesh: Mesh | None = None) -> list[Evaluation]:
        """Accuracies of every unlearned classifier; see `jaxunlearn.evaluate`."""
        return [
            evaluate(result.classifier, data, classes, mesh=mesh)
            for result, classes in zip(self.results, self.requests, strict=True)
        ]
