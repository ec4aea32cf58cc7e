"""The work of `ResetAndDistill` on one request, with what each part of it costs."""

from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float

from jaxunlearn.capture.cutting import Cut, find_cut
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.methods.baseline import fresh
from jaxunlearn.methods.batch_statistics import refresh_statistics
from jaxunlearn.methods.distillation import (
    activations_below,
    distil_above,
    leaf_paths,
    match_confidence,
)
from jaxunlearn.methods.last_layers_reset import last_layers
from jaxunlearn.methods.multiply_adds import Costs
from jaxunlearn.methods.relabel import retained_probabilities
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.layer_features import feature_layers
from jaxunlearn.nullspace.closed_forms import resets_toward
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.nullspace.output_moments import output_moments
from jaxunlearn.tasks import Data, Task

# Shares of the retained samples that the moments, and each trial, read.
_MOMENTS, _OUTPUT_MOMENTS, _TRIAL = 1 / 6, 1 / 12, 1 / 6
_FEWEST = 128


class Distillation:
    """One request of `ResetAndDistill`: what is computed once, trials, training.

    Attributes:
      spent: multiply-adds by stage.
      read: retained samples that were read, repeats included.
    """

    def __init__(self, method, classifier, task: Task, data: Data, key):
        self.method, self.original, self.task = method, classifier, task
        self.shape = data.images.shape[1:]
        keys = jax.random.split(key, 6)
        self.key, draw, order, moments, held_out, _ = keys
        self.data, self.validation = _held_out(data, task, held_out)
        self.costs = Costs(classifier, data.images)
        self.budget = method.budget * len(data) * self.costs.step()
        self.spent, self.read = {}, 0
        self.order = np.asarray(jax.random.permutation(order, len(self.data)))
        self.fresh = fresh(classifier, task, draw, method)
        names = feature_layers(classifier, data.images)
        self.cut = Cut(-1, -1, frozenset(leaf_paths(classifier.params)))
        if 0 < method.layers < len(names):
            self.cut = find_cut(classifier, self.shape, names[-method.layers :])
        # The numbers of its leaves: weight and bias.
        (self.head,) = last_layers(classifier, data.images, 1)
        self.weights = {*names[:-1]}
        self.cached_share = self._check_budget()
        outputs = logits(classifier, self.validation.images)
        masked = np.asarray(retained_probabilities(outputs, task.forget_classes))
        self.target = _accuracy(masked, self.validation.labels)
        self.confidence = float(masked.max(axis=1).mean())
        self._spend("teacher", len(self.validation), self.costs.forward())
        self.resets = self._resets(moments) if self.lower else {}

    @property
    def lower(self) -> bool:
        """Whether there is anything below the cut."""
        return self.cut.inference >= 0

    def choose(self, report) -> tuple[float | None, bool]:
        """The damping below the cut, and whether it meets the rule."""
        if not self.lower:
            return None, True
        method = self.method
        dampings = sorted(method.dampings, reverse=True)
        for number, damping in enumerate(dampings):
            report("rates", number, len(dampings))
            rows = self._rows(_TRIAL)
            model, _ = self._trained(
                damping, rows, method.trial * self.budget, "trials", lambda *_: None
            )
            outputs = self._outputs(model, "trials")
            if (
                _accuracy(outputs, self.validation.labels)
                >= self.target - method.margin
            ):
                return damping, True
        return dampings[-1], False

    def distilled(self, damping: float | None, report):
        """The final classifier and the losses of its training."""
        rest = self.budget - sum(self.spent.values())
        rest -= len(self.validation) * self.costs.forward()
        rows = self._rows(self.cached_share)
        model, losses = self._trained(damping, rows, rest, "steps", report)
        temperature = match_confidence(self._outputs(model, "steps"), self.confidence)
        leaves, structure = jax.tree.flatten(model.params)
        for place in self.head[:2]:
            if place is not None:
                leaves[place] = leaves[place] / temperature
        cooled = jax.tree.unflatten(structure, leaves)
        return model.replace(params=cooled), losses

    def caution(self) -> str:
        """Where no damping meets the rule."""
        method = self.method
        return (
            f"No damping of {list(method.dampings)} keeps the accuracy on retained "
            f"validation data within {method.margin:g} points of the masked original's "
            f"{self.target:.1f} %: the smallest is taken."
        )

    def _trained(self, damping, rows, budget, stage, report):
        """Reset, statistics, cached activations, and as many steps as are paid for."""
        method, costs, before = self.method, self.costs, sum(self.spent.values())
        model, images = self._reset(damping), self.data.images[rows]
        size = min(256, len(rows))
        some = images[: max(size, len(images) // 4 // size * size)]
        model = refresh_statistics(model, some, key=self.key, batch_size=size)
        self._spend(stage, len(some), costs.forward())
        below = costs.forward() - costs.forward(self.cut.above)
        activations = activations_below(model, self.cut, images)
        self._spend(stage, len(rows), below + costs.forward())
        targets = retained_probabilities(
            logits(self.original, images), self.task.forget_classes
        )
        size, each = min(method.batch_size, len(rows)), costs.step(self.cut.above)
        paid = budget - (sum(self.spent.values()) - before)
        steps = max(1, int(paid // (size * each)))
        schedule = optax.cosine_decay_schedule(method.learning_rate, steps)
        optimizer = optax.chain(
            optax.add_decayed_weights(method.weight_decay),
            optax.sgd(schedule, momentum=method.momentum, nesterov=True),
        )
        model, losses = distil_above(
            *(model, self.cut, activations, np.asarray(targets), optimizer),
            steps=steps,
            batch_size=method.batch_size,
            image_shape=self.shape,
            key=self.key,
            report=report,
        )
        self._spend(stage, steps * size, each)
        return model, losses

    def _reset(self, damping) -> Classifier:
        """Below the cut near the original, above it fresh but for what it needs."""
        if not self.lower:
            return self.fresh
        old, new = self.original.params, jax.tree.leaves(self.fresh.params)
        low, high = self.resets[damping], self.resets[self.method.damping_high]
        leaves = []
        for i, name in enumerate(leaf_paths(old)):
            above = high[i] if name in self.weights else new[i]
            leaves.append(above if name in self.cut.above else low[i])
        params = jax.tree.unflatten(jax.tree.structure(old), leaves)
        return self.original.replace(params=params)

    def _resets(self, key) -> dict[float, list[Any]]:
        """All leaves by each damping; the decompositions are the same for all."""
        images = self.data.images[self._rows(_MOMENTS)]
        inputs = second_moments(self.original, images)
        self._spend("moments", len(images), self.costs.moments())
        images = self.data.images[self._rows(_OUTPUT_MOMENTS)]
        masked = {"exclude": self.task.forget_classes, "key": key}
        outputs = output_moments(self.original, images, **masked)
        self._spend("moments", len(images), self.costs.output_moments())
        dampings = [*self.method.dampings, self.method.damping_high]
        self.spent["moments"] += self.costs.decompositions()
        trees = resets_toward(
            *(self.original.params, self.fresh.params, inputs, outputs),
            dampings=dampings,
        )
        return dict(zip(dampings, map(jax.tree.leaves, trees), strict=True))

    def _outputs(self, model, stage) -> Float[np.ndarray, "n k"]:
        self._spend(stage, len(self.validation), self.costs.forward())
        return logits(model, self.validation.images)

    def _rows(self, share: float):
        count = min(len(self.data), max(_FEWEST, round(share * len(self.data))))
        return np.sort(self.order[:count])

    def _spend(self, stage: str, images: int, each: float) -> None:
        self.spent[stage] = self.spent.get(stage, 0.0) + images * each
        self.read += images

    def _check_budget(self) -> float:
        """The share of the images to cache; refuses a budget without a step."""
        method, costs, n = self.method, self.costs, len(self.data)
        forward = costs.forward()
        fixed = 2 * len(self.validation) * forward
        if self.lower:
            fixed += max(_FEWEST, n * _MOMENTS) * costs.moments()
            fixed += max(_FEWEST, n * _OUTPUT_MOMENTS) * costs.output_moments()
            fixed += costs.decompositions()
            fixed += len(method.dampings) * len(self.validation) * forward
            fixed += len(method.dampings) * method.trial * self.budget
        left = self.budget - fixed
        # Statistics, activations and targets of a third of what is left, at most.
        share = min(1.0, left / 3 / (n * 2.25 * forward))
        if left <= 0 or share * n < _FEWEST:
            needed = (fixed + 7 * _FEWEST * forward) / self.budget * method.budget
            msg = (
                f"A budget of {method.budget:g} passes does not suffice: moments, "
                f"trials and teacher need {needed:.2g} here. Raise budget, or give "
                "fewer dampings."
            )
            raise ValueError(msg)
        return share


def _held_out(data: Data, task: Task, key) -> tuple[Data, Data]:
    """Retained samples to train on, and others to choose by."""
    if task.validation is not None:
        kept = ~np.isin(task.validation.labels, task.forget_classes)
        if kept.any():
            chosen = task.validation.images[kept], task.validation.labels[kept]
            return data, Data(*chosen)
    order = np.asarray(jax.random.permutation(key, len(data)))
    held, rest = np.split(order, [max(1, len(data) // 10)])
    parts = (np.sort(rows) for rows in (rest, held))
    first, second = (Data(data.images[rows], data.labels[rows]) for rows in parts)
    return first, second


def _accuracy(outputs, labels) -> float:
    """Percent right, over samples."""
    return 100 * float((np.asarray(outputs).argmax(axis=1) == labels).mean())
