"""Every layer, in closed form, towards what a network without the class would compute.

No steps: the layers are solved for one after the other, each from one forward pass.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxunlearn.capture.residuals import (
    Place,
    Residuals,
    find_places,
    outputs_by_class,
    residual_sums,
)
from jaxunlearn.checks import (
    check_choice,
    check_count,
    check_nonnegative,
    check_positive,
)
from jaxunlearn.descent.step import check_parameters
from jaxunlearn.methods.baseline import check_whole_classes, drawn, retained
from jaxunlearn.methods.batch_statistics import refresh_statistics
from jaxunlearn.methods.edit import Edit
from jaxunlearn.methods.multiply_adds import Costs
from jaxunlearn.methods.relabel import retained_probabilities
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.nullspace.targets import (
    TargetMoments,
    change_toward,
    strongest_within,
)
from jaxunlearn.tasks import Data, Task

# Numbers that the explicit rows of a batch may hold, and images that suffice.
_NUMBERS, _BATCH = 2**23, 256


class Teacher(NamedTuple):
    """What `mu` does not change.

    Attributes:
      retain: the retained samples that are read.
      weights: in the order of their use, the head last.
      left: why other weights that have inputs stay as they are, by path.
      means: of each weight, the original's mean outputs of every class at every
        position; zero for a class without retained samples.
      mixture: of each sample of "forget" and of "retain", the original's probabilities
        of those classes.
      shift: of each, how far its logits lie above those of samples like it.
      hidden: which classes have none: the forgotten ones.
    """

    retain: Data
    weights: tuple[Place, ...]
    left: dict[str, str]
    means: list[Float[np.ndarray, "k g p o"]]
    mixture: dict[str, Float[np.ndarray, "_ k"]]
    shift: dict[str, Float[np.ndarray, " _"]]
    hidden: Float[np.ndarray, " k"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerwiseTeacher(Edit):
    """Solve for each weight by ridge regression, from the front to the head.

        W' = (C_r + mu C_f + eps I)^-1 (E_r[x zT] + mu E_f[x yT] + eps W)

    with means over rows `x`: inputs of retained and of forgotten samples *under the
    weights already solved for*, so that a later layer makes good what earlier ones
    moved. `z` are the original's outputs before the activation; `y = sum_k q_k m_k`,
    where `q` are the original's probabilities without the forgotten classes and `m_k`
    its mean outputs of retained class k, position by position: a forgotten sample is to
    look as the classes do that it would be mistaken for. Biases are solved for with
    their weights, by an input that is 1. `eps = damping tr(C_r + mu C_f) / d`.

    At the head a forgotten sample keeps its logits of retained classes. Those of the
    forgotten ones are the mixture of `m_k` there, moved up or down so that they stand
    to the log-sum-exp of the retained logits as they do in the mixture: the softmax is
    the masked original's, but for the little that retained samples give those classes.
    All logits of retained samples stay.

    Whatever the retain set holds is kept: images like the forgotten ones do not belong
    in it.

    Weights inside scans, used in several places or on one side of a choice stay, which
    `trace.caution` says; so do biases of which it is not clear what they are added to,
    and all of normalisation. `trace.drift` is the relative error of the outputs on
    retained samples, layer by layer, `sqrt(E_r |x W' - z|^2 / E_r |z|^2)`.

    Attributes:
      mu: what a forgotten sample counts beside a retained one; at 0 nothing changes. A
        grid takes the largest that costs at most a point of Acc_r - Acc_f.
      damping: in units of the mean eigenvalue.
      drift_budget: each layer takes the largest weight up to `mu` whose drift is no
        larger than this; None: `mu` itself.
      samples: how many retained samples are read at most, drawn by the key; None: all.
        On Fashion-MNIST 3,000 do as well as 48,600, to .1 points of Acc_r.
      refresh: whether running statistics are taken again of retained samples: "never",
        at the "end", or after "each" layer.

    Source: closed-form edits of the kind of UCE (arXiv 2308.14761), here of every layer
    and with targets of masked distillation (arXiv 2503.23751).

    >>> LayerwiseTeacher(mu=3.0).damping
    0.001
    """

    mu: float = 1.0
    damping: float = 1e-3
    drift_budget: float | None = None
    samples: int | None = 5_000
    refresh: str = "never"

    changes_state: ClassVar[bool] = True
    tuned: ClassVar[str | None] = "mu"
    grid: ClassVar[tuple[float, ...]] = (0.1, 0.3, 1.0, 3.0, 10.0)
    # Of values that are equally good by accuracy the largest leaves least of a class.
    gentlest: ClassVar[Callable[..., Any]] = max
    classwise: ClassVar[str] = "aims at the means of the classes that are retained"

    def __post_init__(self):
        check_nonnegative("mu", self.mu)
        check_positive("damping", self.damping)
        if self.drift_budget is not None:
            check_positive("drift_budget", self.drift_budget)
        if self.samples is not None:
            check_count("samples", self.samples)
        check_choice("refresh", self.refresh, ("never", "end", "each"))

    def reads(self, retained: int, classes: int) -> dict[str, int]:
        """Of so many retained images and classes: what `planning.Workload` asks."""
        del classes
        return {"images": min(retained, self.samples or retained)}

    def measured(self, classifier, task, key) -> Teacher:
        """The original's means and masked probabilities, and where its weights are."""
        check_whole_classes(task, self)
        data = drawn(retained(task, self), self.samples, key)
        chosen, left, last = find_places(classifier, data.images)
        _check_head(chosen, left, last, task.num_classes)
        classes = np.arange(task.num_classes)
        labels = (data.labels[:, None] == classes).astype(np.float32)
        means: Any = None
        for rows, mask in _batches(len(data), chosen):
            given = classifier, data.images[rows], labels[rows] * mask[:, None]
            sums = outputs_by_class(chosen, *given)
            new = [np.asarray(x, np.float64) for x in jax.device_get(sums)]
            means = new if means is None else list(map(np.add, means, new))
        counts = np.maximum(labels.sum(axis=0), 1)
        means = [m / counts.reshape(-1, 1, 1, 1) for m in means]
        hidden = np.isin(classes, task.forget_classes)
        unknown = [c for c in classes if c not in {*data.labels.tolist()}]
        mixture, height = {}, {}
        for name, images in (("retain", data.images), ("forget", task.forget.images)):
            outputs = logits(classifier, images)
            mixture[name] = np.asarray(retained_probabilities(outputs, unknown))
            height[name] = np.logaddexp.reduce(outputs[:, ~hidden], axis=1)
        usual = labels.T @ height["retain"] / counts
        shift = {name: height[name] - mixture[name] @ usual for name in mixture}
        return Teacher(
            data, chosen, left, means, mixture, shift, hidden.astype(np.float32)
        )

    def changed(self, classifier, task, key, measured, report):
        """One weight after another, from the front."""
        changed, drifts = classifier, {}
        for number, place in enumerate(measured.weights):
            report("steps", number, len(measured.weights))
            changed, drifts[place.path] = self._solved(
                classifier, changed, task, measured, number
            )
            check_parameters(changed.params, "Raise damping, or lower mu.")
            if self._refreshes(number, measured):
                images = measured.retain.images
                changed = refresh_statistics(changed, images, key=key)
        report("steps", len(measured.weights), len(measured.weights))
        return changed, {
            "caution": _caution(measured.left),
            "samples_read": self._samples(task, measured),
            "multiply_adds": self._costs(classifier, task, measured),
            "drift": drifts,
        }

    def _solved(self, original, changed, task, teacher, number):
        """With one more weight solved for, and the drift of its outputs."""
        place, head = teacher.weights[number], number == len(teacher.weights) - 1
        means = jnp.asarray(teacher.means[number])
        none = np.zeros(place.layout.fan_out, np.float32)
        mixed = {"retain": none, "forget": teacher.hidden if head else none + 1}
        moments = {}
        for name, data in (("retain", teacher.retain), ("forget", task.forget)):
            shift = teacher.shift[name] * head
            mixture = teacher.mixture[name], means, shift
            given = place, original, changed, data.images, mixture, mixed[name]
            moments[name] = TargetMoments.of(_sums(*given))
        retain, forget = moments["retain"], moments["forget"]
        given = {"mu": self.mu, "damping": self.damping}
        if self.drift_budget is not None:
            budget = self.drift_budget
            given["mu"] = strongest_within(retain, forget, **given, budget=budget)
        change = change_toward(retain, forget, **given)
        leaves, structure = jax.tree.flatten(changed.params)
        before = np.asarray(place.matrix(leaves), np.float64)
        leaves = place.put(leaves, before + change)
        params = jax.tree.unflatten(structure, leaves)
        return changed.replace(params=params), retain.drift(change)

    def _refreshes(self, number: int, teacher: Teacher) -> bool:
        """After this weight."""
        last = number == len(teacher.weights) - 1
        return self.refresh == "each" or (self.refresh == "end" and last)

    def _samples(self, task: Task, teacher: Teacher) -> dict[str, int]:
        passes = len(teacher.weights)
        refreshed = sum(self._refreshes(i, teacher) for i in range(passes))
        return {
            "forget": (passes + 1) * len(task.forget),
            "retain": (passes + 2 + refreshed) * len(teacher.retain),
        }

    def _costs(self, classifier, task, teacher) -> dict[str, float]:
        """Two forward passes up to each weight, its products, and its solution."""
        costs = Costs(classifier, task.forget.images)
        retain, forget = len(teacher.retain), len(task.forget)
        spent = {"means": (2 * retain + forget) * costs.forward(), "layers": 0.0}
        for number, place in enumerate(teacher.weights):
            below = [p.path for p in teacher.weights[:number]]
            _, _, g, d, o = dataclasses.astuple(place.layout)[1:]
            products = g * d * (d + 3 * o) * place.positions
            each = 2 * costs.forward(below) + products
            spent["layers"] += (retain + forget) * each + g * d**2 * (d / 3 + o)
            if self._refreshes(number, teacher):
                spent["layers"] += retain * costs.forward()
        return spent


def _check_head(chosen, left, last, num_classes) -> None:
    """Refuse a network whose last weight does not give the logits, or is left out."""
    if chosen and chosen[-1].path == last:
        layout = chosen[-1].layout
        if layout.groups == 1 and layout.fan_out == num_classes:
            return
        reason = (
            f"it has {layout.groups * layout.fan_out} outputs, of {num_classes} classes"  # noqa: E501
        )
    else:
        reason = left.get(last, "no weight has an input")
    msg = f"LayerwiseTeacher solves for the head, which it cannot do with {last or 'this network'}: {reason}."  # noqa: E501
    raise ValueError(msg)


def _batches(
    count: int, weights: tuple[Place, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of a batch, padded with the last image, and 1 for each that counts."""
    largest = max(
        p.positions * p.layout.groups * max(p.layout.fan_in, p.layout.fan_out)
        for p in weights
    )
    size = max(1, min(_BATCH, _NUMBERS // max(largest, 1)))
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        yield np.minimum(rows, count - 1), (rows < count).astype(np.float32)


def _sums(place, original, changed, images, mixture, mixed) -> Iterator[Residuals]:
    """Of every batch of one set."""
    q, means, shift = mixture
    for rows, mask in _batches(len(images), (place,)):
        given = original, changed, images[rows], mask
        yield residual_sums(place, *given, (q[rows], means, shift[rows]), mixed)


def _caution(left: dict[str, str]) -> str:
    if not left:
        return ""
    reasons = "; ".join(f"{name}, as {reason}" for name, reason in left.items())
    return f"These weights stay as they are: {reasons}."
