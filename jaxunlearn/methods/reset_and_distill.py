"""ResetAndDistill: what retained logits do not need is drawn anew, then taught."""

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array

from jaxunlearn.checks import (
    check_count,
    check_nonnegative,
    check_positive,
    check_type,
)
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result, Trace
from jaxunlearn.methods.baseline import check_call, retained
from jaxunlearn.methods.distillation_budget import moment_images
from jaxunlearn.methods.masked_distillation import Distillation, allotment
from jaxunlearn.progress import Progress, reporting
from jaxunlearn.tasks import Task

_POSITIVE = ("budget", "damping_high", "trial", "teacher_temperature", "learning_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResetAndDistill:
    """Draw anew what retained logits do not need, then distil the masked original.

    1. Below the cut every weight becomes `reset_toward` a fresh draw by `damping_low`,
       above it by `damping_high`; the head and what else is above are drawn anew, and
       normalisation takes its statistics again.
    2. What the cut hands on is computed once. What is above is trained on it, on
       retained images alone, with the original's probabilities without the forgotten
       classes as targets: SGD with Nesterov momentum, a tenth of the steps to warm up
       and a cosine to zero, on gradients of norm 1 at most.
    3. Logits are divided by one temperature, so that the mean confidence on retained
       validation images is the masked original's.

    `damping_low` is the largest of `dampings` whose accuracy on retained validation
    data, after a short distillation, is at most `margin` points below that of the old
    layers after the same; where none is, the smallest, which is taken untried, and
    `trace.caution` says so. (The masked original itself is out of reach: within a tenth
    of retraining even the old layers end four to five points below it.) Forgotten
    samples are never read. Where the task has no validation data, a tenth of the
    retained samples is held out. Biases and normalisation below the cut stay: moments
    say nothing of them.

    Attributes:
      budget: what all of it may cost, trials included, in passes of training over the
        retained data (3 multiply-adds of the forward pass for each image): of a
        retraining of 24 epochs 2.4 are a tenth. Steps fill what the rest leaves, and
        too little is refused with what would do. The default suits the digits, whose
        thousand samples make moments and trials dear: a third of retraining there. Of
        50,000 images a fifth of it does.
      layers: how many of the last weights are trained, at least: the cut is the last
        place below them that every path passes. 0: all, from a fresh draw, which is
        training from scratch by the same teacher.
      dampings: to choose from.
      damping_high: of the weights above, except the head.
      margin: in points.
      trial: the share of the budget that each damping's short distillation may cost.
      teacher_temperature: the teacher's and the student's logits are divided by it
        where they are compared, so that classes below the first weigh more.
      learning_rate: at the top.
      momentum: of Nesterov's kind.
      weight_decay: coupled, of all that is trained.
      batch_size: images in a minibatch, at least 2.

    Source: `reset_toward`; the teacher is that of masked distillation (arXiv
    2503.23751).

    >>> ResetAndDistill(budget=1.0).layers
    2
    """

    budget: float = 5.0
    layers: int = 2
    dampings: tuple[float, ...] = (0.05, 0.2, 0.5)
    damping_high: float = 10.0
    margin: float = 1.0
    trial: float = 0.08
    teacher_temperature: float = 2.0
    learning_rate: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64

    changes_state: ClassVar[bool] = True
    changes_network: ClassVar[bool] = False
    reads_retained: ClassVar[bool] = True
    forgets: ClassVar[bool] = True
    tuned: ClassVar[str | None] = None

    def __post_init__(self):
        if check_count("batch_size", self.batch_size) < 2:
            msg = "batch_size must be at least 2: one image has no batch statistics."
            raise ValueError(msg)
        for name in _POSITIVE:
            check_positive(name, getattr(self, name))
        for name in ("margin", "weight_decay"):
            check_nonnegative(name, getattr(self, name))
        if self.layers != 0:
            check_count("layers", self.layers)
        object.__setattr__(self, "dampings", tuple(self.dampings))
        if not self.dampings:
            msg = "dampings are empty: give at least one, such as (0.2,)."
            raise ValueError(msg)
        for damping in self.dampings:
            check_positive("dampings", damping)
        if not 0 <= self.momentum < 1:
            msg = f"momentum must lie in [0, 1); it is {self.momentum}."
            raise ValueError(msg)
        if self.trial * len(self.dampings) >= 1:
            msg = (
                f"{len(self.dampings)} trials of {self.trial:g} of the budget leave "
                "nothing to train with: lower trial, or give fewer dampings."
            )
            raise ValueError(msg)

    def reads(self, retained: int, classes: int) -> dict[str, int]:
        """Of so many retained images and classes: what `planning.Workload` asks."""
        del classes
        return {"images": moment_images(retained) if self.layers else 0}

    def multiply_adds(
        self, classifier: Classifier, task: Task | Any
    ) -> dict[str, float]:
        """What it will cost, by stage as in the trace; nothing is computed.

        Where the first dampings suffice there are fewer trials, and more steps instead.
        The sum is at most the budget.

        Raises:
          TypeError: the network has no training mode.
          ValueError: there are no retained data, or the budget does not suffice.
        """
        check_classifier(classifier)
        check_type("task", task, Task, "Task(forget, retain, ...) makes one.")
        return allotment(self, classifier, task, retained(task, self)).by_stage()

    def __call__(
        self,
        classifier: Classifier | Any,
        task: Task | Any,
        *,
        key: Array,
        progress: Progress = None,
    ) -> Result:
        """Forget `task.forget`; `classifier` is not modified.

        Where samples and not classes are forgotten, the teacher is the original as it
        is.

        Raises:
          TypeError: an argument is of the wrong type, or the network cannot be drawn
            anew.
          ValueError: there are no retained data, the budget does not suffice, or the
            network's state is no running average.
        """
        check_call(classifier, task, key)
        data = retained(task, self)
        watch = Stopwatch()
        with reporting(progress) as report:
            with watch.stage("statistics"):
                work = Distillation(self, classifier, task, data, key)
                work.prepare()
            with watch.stage("rates"):
                damping = work.choose(report)
            with watch.stage("steps"):
                final, losses, temperature = work.distilled(damping, report)
        chosen = {} if damping is None else {"damping_low": damping}
        trace = Trace(
            losses=losses,
            tuned={**chosen, "temperature": temperature},
            caution=" ".join(work.cautions),
            seconds=watch.seconds,
            samples_read={"forget": 0, "retain": work.read},
            multiply_adds=work.spent,
        )
        return Result(final, trace)

    def replace(self, **fields: Any) -> "ResetAndDistill":
        """A copy with these fields replaced."""
        return dataclasses.replace(self, **fields)
