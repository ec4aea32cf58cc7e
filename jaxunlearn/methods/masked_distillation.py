"""The work of `ResetAndDistill` on one request, with what each part of it costs."""

from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxunlearn.capture.cutting import find_cut
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.methods.baseline import drawn, fresh
from jaxunlearn.methods.batch_statistics import PROBED, refresh_statistics
from jaxunlearn.methods.distillation import (
    activations_below,
    distil_above,
    leaf_paths,
    match_confidence,
)
from jaxunlearn.methods.distillation_budget import Allotment, Portion
from jaxunlearn.methods.last_layers_reset import last_layers
from jaxunlearn.methods.multiply_adds import Costs
from jaxunlearn.methods.relabel import retained_probabilities
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.layer_features import feature_layers
from jaxunlearn.nullspace.closed_forms import resets_toward
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.nullspace.output_moments import output_moments
from jaxunlearn.tasks import Data, Task


class Distillation:
    """One request of `ResetAndDistill`: what is computed once, trials, training.

    Attributes:
      allotment: what each part may cost.
      spent: multiply-adds by stage.
      read: retained samples that were read, repeats included.
      cautions: what to know of the result, in sentences.
    """

    def __init__(
        self, method: Any, classifier: Classifier, task: Task, data: Data, key: Array
    ):
        self.method, self.original, self.task = method, classifier, task
        keys = jax.random.split(key, 6)
        self.key, draw, order, self._outputs_key, held_out, judged = keys
        self.fresh = fresh(classifier, task, draw, method)
        self.allotment = allotment(method, classifier, task, data)
        self.costs, self.cut = self.allotment.costs, self.allotment.cut
        self.spent: dict[str, float] = {}
        self.read, self.cautions = 0, []
        if method.layers and self.cut.at_images:
            self.cautions.append(
                f"No place lies below the last {method.layers} weights that every path "
                "from the images passes: all of the network is trained from a draw."
            )
        self.data, self.validation = _held_out(data, task, held_out)
        self.order = np.asarray(jax.random.permutation(order, len(self.data)))
        self.validation = drawn(self.validation, self.allotment.judged, judged)
        # All weights but the last, and the numbers of its leaf and of its bias.
        self.layers = feature_layers(classifier, data.images)[:-1]
        ((*self.head, _),) = last_layers(classifier, data.images, 1)

    def prepare(self) -> None:
        """The teacher's outputs, and every reset."""
        outputs = self._outputs(self.original, "teacher")
        masked = np.asarray(retained_probabilities(outputs, self.task.forget_classes))
        self.confidence = float(masked.max(axis=1).mean())
        rows = self._rows(self.allotment.rows())
        self._spend("teacher", len(rows), self.costs.forward())
        taught = logits(self.original, self.data.images[rows])
        # By sample; trials take the first of the order, and so some of these.
        self.targets = np.zeros((len(self.data), taught.shape[1]), np.float32)
        softened = taught / self.method.teacher_temperature
        self.targets[rows] = retained_probabilities(softened, self.task.forget_classes)
        self.resets = {} if self.cut.at_images else self._resets()

    def choose(self, report) -> float | None:
        """The damping below the cut, by the rule; None where nothing is below."""
        if self.cut.at_images:
            return None
        method = self.method
        *larger, smallest = sorted({*method.dampings}, reverse=True)
        if not larger:
            return smallest
        portion = self.allotment.trial()

        def tried(number: int, damping: float) -> float:
            model, _ = self._trained(damping, portion, "trials")
            report("rates", number + 1, len(larger) + 1)
            return self._accuracy(self._outputs(model, "trials"))

        reference = tried(0, 0.0)
        accuracies = []
        for number, damping in enumerate(larger, start=1):
            accuracies.append(tried(number, damping))
            if accuracies[-1] >= reference - method.margin:
                return damping
        self.cautions.append(
            f"Of the dampings {larger} none keeps the accuracy on retained validation "
            f"data within {method.margin:g} points of the {reference:.1f} % that old "
            f"layers below the cut give (after {portion.steps} steps at most "
            f"{max(accuracies):.1f} %): the smallest, {smallest:g}, is taken untried."
        )
        return smallest

    def distilled(self, damping: float | None, report):
        """The final classifier, the losses of its training and the temperature."""
        portion = self.allotment.distillation(sum(self.spent.values()))
        model, losses = self._trained(damping, portion, "steps", report)
        temperature = match_confidence(self._outputs(model, "steps"), self.confidence)
        leaves, structure = jax.tree.flatten(model.params)
        for place in self.head:
            if place is not None:
                leaves[place] = leaves[place] / temperature
        cooled = jax.tree.unflatten(structure, leaves)
        return model.replace(params=cooled), losses, temperature

    def _trained(self, damping, portion: Portion, stage, report=lambda *_: None):
        """Reset, statistics, cached activations, and steps."""
        method, costs = self.method, self.costs
        rows = self._rows(portion.rows)
        images = self.data.images[rows]
        statistics, steps = jax.random.split(self.key)
        model = self._reset(damping)
        if not self.cut.at_images:
            some = images[: portion.statistics]
            size = min(256, len(rows))
            model = refresh_statistics(model, some, key=statistics, batch_size=size)
            read = len(some) + 3 * min(PROBED, len(some))
            self._spend(stage, read, costs.forward())
            below = costs.forward() - costs.forward(self.cut.above)
            self._spend(stage, len(rows), below)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, method.learning_rate, portion.steps // 10, portion.steps
        )
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.add_decayed_weights(method.weight_decay),
            optax.sgd(schedule, momentum=method.momentum, nesterov=True),
        )
        size, each = self.allotment.size, costs.step(self.cut.above)
        self._spend(stage, portion.steps * size, each)
        return distil_above(
            *(model, self.cut, activations_below(model, self.cut, images)),
            *(self.targets[rows], optimizer),
            steps=portion.steps,
            batch_size=size,
            key=steps,
            temperature=method.teacher_temperature,
            report=report,
        )

    def _reset(self, damping) -> Classifier:
        """Below the cut near the original, above it fresh but for what it needs."""
        if self.cut.at_images:
            return self.fresh
        old, new = self.original.params, jax.tree.leaves(self.fresh.params)
        low, high = self.resets[damping], self.resets[self.method.damping_high]
        leaves = []
        for i, name in enumerate(leaf_paths(old)):
            above = high[i] if name in self.layers else new[i]
            leaves.append(above if name in self.cut.above else low[i])
        params = jax.tree.unflatten(jax.tree.structure(old), leaves)
        return self.original.replace(params=params)

    def _resets(self) -> dict[float, list[Any]]:
        """All leaves by each damping; the decompositions are the same for all."""
        inputs, outputs = map(self._rows, self.allotment.moments())
        self._spend("moments", len(inputs), self.costs.moments())
        self._spend("moments", len(outputs), self.costs.output_moments())
        self.spent["moments"] += self.costs.decompositions()
        images, some = self.data.images[inputs], self.data.images[outputs]
        masked = {"exclude": self.task.forget_classes, "key": self._outputs_key}
        moments = (
            second_moments(self.original, images),
            output_moments(self.original, some, **masked),
        )
        dampings = [*self.method.dampings, self.method.damping_high]
        given = self.original.params, self.fresh.params, *moments
        trees = resets_toward(*given, dampings=dampings)
        resets = dict(zip(dampings, map(jax.tree.leaves, trees), strict=True))
        return {**resets, 0.0: jax.tree.leaves(self.original.params)}

    def _outputs(self, model, stage) -> Float[np.ndarray, "n k"]:
        self._spend(stage, len(self.validation), self.costs.forward())
        return np.asarray(logits(model, self.validation.images))

    def _accuracy(self, outputs) -> float:
        """Percent right of validation samples."""
        right = np.asarray(outputs).argmax(axis=1) == self.validation.labels
        return 100 * float(right.mean())

    def _rows(self, count: int):
        return np.sort(self.order[:count])

    def _spend(self, stage: str, images: int, each: float) -> None:
        self.spent[stage] = self.spent.get(stage, 0.0) + images * each
        self.read += images


def allotment(method: Any, classifier: Classifier, task: Task, data: Data) -> Allotment:
    """What each part of a request may cost.

    Raises:
      TypeError: the network has no training mode.
      ValueError: the budget does not suffice.
    """
    names = feature_layers(classifier, data.images)
    image = jax.ShapeDtypeStruct((1, *data.images.shape[1:]), data.images.dtype)
    prepared = jax.eval_shape(classifier.prepare, image)
    weights = names[-method.layers :] if 0 < method.layers < len(names) else names
    cut = find_cut(classifier, prepared, weights)
    kept = _validation(task)
    held = _share_held_out(data) if kept is None else 0
    counts = len(data) - held, held if kept is None else len(kept), len(data)
    found = Allotment(method, Costs(classifier, data.images), cut, *counts)
    found.check()
    return found


def _validation(task: Task) -> Data | None:
    """Retained validation samples, if there are any."""
    if task.validation is None:
        return None
    kept = ~np.isin(task.validation.labels, task.forget_classes)
    return task.validation.take(kept) if kept.any() else None


def _share_held_out(data: Data) -> int:
    return max(1, len(data) // 10)


def _held_out(data: Data, task: Task, key) -> tuple[Data, Data]:
    """Retained samples to train on, and others to choose by."""
    validation = _validation(task)
    if validation is not None:
        return data, validation
    order = np.asarray(jax.random.permutation(key, len(data)))
    held, rest = np.split(order, [_share_held_out(data)])
    return data.take(np.sort(rest)), data.take(np.sort(held))
