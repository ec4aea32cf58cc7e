"""What a row of a comparison makes of an original: at once, in turn, projected."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.console import classes_left_out
from jaxunlearn.cli.samples import Forgotten
from jaxunlearn.cli.settings import TrainingSettings, keys
from jaxunlearn.cli.sources import train_network
from jaxunlearn.cli.variants import Variant
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result, Trace
from jaxunlearn.methods import forget_task
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.metrics.representation import captured_energy
from jaxunlearn.nullspace.closed_forms import project_change
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.nullspace.subspace import subspaces
from jaxunlearn.progress import Progress
from jaxunlearn.tasks import Data, Task, split_by_class


@dataclasses.dataclass(frozen=True)
class Maker:
    """Unlearns with the methods of a comparison, on its splits."""

    settings: TrainingSettings
    splits: Mapping[str, Data]

    def unlearn(
        self,
        variant: Variant,
        original: Classifier,
        forgotten: Forgotten,
        seed: int,
        progress: Progress,
    ) -> tuple[Result, dict[str, Any]]:
        """The result, and what its record says besides; `seed` is of the unlearning.

        In turn, each class is a request of its own, which retains neither it nor those
        before it, and starts from what the last one left.
        """
        train, said = self.splits["train"], {}
        order = variant.order(forgotten.classes)
        if order is None:
            parts = forgotten.split(train)
            task = self._task(*parts, forgotten.classes, original, progress)
            result = self._forget(variant, original, task, seed, progress)
            if (proxies := result.trace.proxies) is not None:
                given = variant.method, original, proxies.images, parts[1].images
                said = {"captured_energy": captured(*given)}
        else:
            results: list[Result] = []
            before = original
            for count in range(1, len(order) + 1):
                now, done = order[count - 1], order[:count]
                forget = train.take(np.flatnonzero(train.labels == now))
                retain = split_by_class(train, done)[1]
                task = self._task(forget, retain, done, original, progress)
                results.append(self._forget(variant, before, task, seed, progress))
                before = results[-1].classifier
            result = Result(before, _together([one.trace for one in results]))
            said = {"in_turn": self._in_turn(order, results)}
        if variant.damping is not None:
            result = self._projected(result, original, forgotten, variant.damping)
        return result, said

    def _task(self, forget, retain, classes, original, progress: Progress) -> Task:
        def train(data, key):
            given = {"key": key, "preprocess": original.preprocess}
            with classes_left_out():
                return train_network(
                    *(self.settings, self.splits, data, progress), **given
                )

        count = self.settings.num_classes()
        return Task(forget, retain, classes, num_classes=count, train=train)

    def _forget(self, variant, before, task: Task, seed: int, progress) -> Result:
        return forget_task(
            variant.method,
            before,
            task,
            validation=self.splits["validation"],
            grid=variant.grid,
            key=keys(seed)[1],
            progress=progress,
        )

    def _in_turn(self, order: Sequence[int], results: Sequence[Result]) -> list[Any]:
        """After each request, the test accuracy of every class that was forgotten."""
        said = []
        for count, result in enumerate(results, 1):
            done = tuple(order[:count])
            found = evaluate(result.classifier, self.splits["test"], done)
            per_class = {str(c): float(found.per_class[c]) for c in done}
            said.append({"forgotten": per_class, "retained": found.retained})
        return said

    def _projected(self, result, original, forgotten, damping: float) -> Result:
        """Its change, corrected by retained moments; the state is the original's."""
        watch = Stopwatch()
        with watch.stage("statistics"):
            retained = forgotten.split(self.splits["train"])[1]
            moments = second_moments(original, retained.images)
            both = original.params, result.classifier.params
            params = project_change(*both, moments, damping=damping)
        watch.add(result.trace.seconds)
        read = dict(result.trace.samples_read)
        read["retain"] = read.get("retain", 0) + len(retained)
        costs = {"seconds": watch.seconds, "samples_read": read}
        trace = dataclasses.replace(result.trace, **costs)
        return Result(original.replace(params=params), trace)


def captured(method, original: Classifier, proxies, retained) -> dict[str, float]:
    """By layer, the share of the retained inputs' energy in the proxies' subspace.

    It is the one that the method would protect by them: of its rank rule, or of .99 of
    their energy where it has none.
    """
    hard = getattr(method, "projection", "") == "hard"
    rule = method.rule if hard else {"energy": 0.99}
    moments = (second_moments(original, images) for images in (proxies, retained))
    found = subspaces(next(moments), **rule)
    shares = jax.device_get(captured_energy(found, next(moments)))
    leaves = jax.tree_util.tree_leaves_with_path(shares)
    # Of a layer whose retained inputs are zero there is none.
    return {path_name(p): float(s) for p, s in leaves if not np.isnan(s)}


def _together(traces: Sequence[Trace]) -> Trace:
    """The last one, with the costs of all and every caution."""
    costs = ("seconds", "samples_read", "multiply_adds")
    sums = {name: _sum(getattr(one, name) for one in traces) for name in costs}
    cautions = dict.fromkeys(one.caution for one in traces if one.caution)
    at_edge = any(one.at_edge for one in traces)
    said = {"caution": " ".join(cautions), "at_edge": at_edge}
    return dataclasses.replace(traces[-1], **sums, **said)


def _sum(parts) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
