"""What the methods that descend on new labels have in common."""

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxunlearn import augmentation
from jaxunlearn.checks import check_choice, check_count, check_positive
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.unlearning import Result
from jaxunlearn.methods.forget import forget_task
from jaxunlearn.methods.relabel import RELABELLINGS
from jaxunlearn.methods.statistics import ClassSets, Statistics, unprotected
from jaxunlearn.nullspace.projection import project_to_null_space, shrink_to_null_space
from jaxunlearn.nullspace.rank_rules import choose_rule
from jaxunlearn.nullspace.subspace import subspaces
from jaxunlearn.progress import Progress
from jaxunlearn.serialization import check_fields
from jaxunlearn.tasks import Task

Targets = Literal[
    "runner-up", "nearest-retained", "retained-probabilities", "random", "true"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descent:
    """Descend on new labels for the forget set; only weights that have inputs move.

    A method of this kind says three things, `statistics`, `projection_of` and
    `targets_of`; everything else, for one request or many, follows from them.

    Attributes:
      learning_rate: the learning rate of SGD.
      momentum: the momentum of SGD.
      steps: how many minibatches to descend on.
      batch_size: images in each minibatch; all of them if there are fewer.
      targets: the new labels. "runner-up": the likeliest class that is neither the
        label nor forgotten. "nearest-retained": the likeliest retained class.
        "retained-probabilities": softmax over the retained classes. "random": a
        retained class drawn uniformly. "true": the labels as they are, an ablation.
        Where samples and not classes are forgotten, only the sample's own label is
        excluded, and the first two are the same.
      augment: what is done to each minibatch at random, a name of
        `augmentation.by_name`: "none", or "crop-flip" as UNSC does on CIFAR and SVHN.
        New labels are those of the images as they are.
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    steps: int = 100
    batch_size: int = 256
    targets: Targets = "nearest-retained"
    augment: str = "none"

    changes_state: ClassVar[bool] = False
    changes_network: ClassVar[bool] = False
    tuned: ClassVar[str | None] = "learning_rate"

    def __post_init__(self):
        check_fields(self)
        check_count("steps", self.steps)
        check_count("batch_size", self.batch_size)
        check_positive("learning_rate", self.learning_rate)
        if not 0 <= self.momentum < 1:
            msg = f"momentum must lie in [0, 1); it is {self.momentum}."
            raise ValueError(msg)
        check_choice("targets", self.targets, RELABELLINGS)
        check_choice("augment", self.augment, augmentation.by_name)

    @property
    def reads_retained(self) -> bool:
        """Whether images of the retained set are read; here, none."""
        return False

    def reads(self, retained: int, classes: int) -> dict[str, int]:
        """Of so many retained images and classes: what `planning.Workload` asks."""
        del retained, classes
        return {"images": 0}

    def __call__(
        self,
        classifier: Classifier,
        task: Task,
        *,
        key: Array,
        progress: Progress = None,
        mesh: Mesh | None = None,
    ) -> Result:
        """Forget `task.forget`; `classifier` is not modified.

        `mesh` and `progress` are as for `jaxunlearn.forget`. Several processes must all
        be given the same, and get the same.
        """
        given = {"key": key, "progress": progress, "mesh": mesh}
        return forget_task(self, classifier, task, **given)

    def statistics(
        self,
        classifier: Classifier,
        task: Task,
        *,
        key: Array,
        mesh: Mesh | None = None,
        progress: Progress = None,
        requests: ClassSets | None = None,
    ) -> Statistics:
        """What `projection_of` needs to know; here, which weights have inputs.

        `task.retain` is what may be read. With `requests`, the classes of each of
        several requests, it holds all classes; without, none of those of `task`.
        """
        del key, mesh, progress, requests  # For the methods that read or draw images.
        free = unprotected(classifier, task.forget.images)
        return Statistics(lambda classes: free)

    def projection_of(
        self, statistics: Statistics, forget_classes: tuple[int, ...]
    ) -> optax.GradientTransformation:
        """The last step of the optimizer's chain for one request."""
        return project_to_null_space(statistics.without(forget_classes))

    def targets_of(
        self,
        logits: Array | np.ndarray,
        labels: Array | np.ndarray,
        forget_classes: tuple[int, ...],
        *,
        key: Array,
    ) -> Array:
        """What the samples to forget are to become: labels `[n]`, or probabilities.

        `logits [n, k]` are the original's, `labels` the true ones; `forget_classes` is
        `()` where samples are forgotten.
        """
        return RELABELLINGS[self.targets](logits, labels, forget_classes, key)

    def budget_of(
        self, statistics: Statistics, forget_classes: tuple[int, ...]
    ) -> tuple[PyTree, float] | None:
        """The `drift_budget` of `unlearn` for one request; here, none."""
        del statistics, forget_classes
        return None

    def optimizer(
        self, projection: optax.GradientTransformation
    ) -> optax.GradientTransformation:
        """SGD, then the projection."""
        # The rate in the state, not in the program: a grid of rates compiles once.
        sgd = optax.inject_hyperparams(optax.sgd)(
            learning_rate=self.learning_rate, momentum=self.momentum
        )
        return optax.chain(sgd, projection)

    def replace(self, **fields: Any) -> "Descent":
        """A copy with these fields replaced."""
        return dataclasses.replace(self, **fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedDescent(Descent):
    """Descent whose updates keep off the retained layer inputs.

    A method of this kind says in `statistics` where their moments come from.

    Attributes:
      projection: "hard" removes the protected subspace, "ridge" shrinks along it by
        `damping / (c + damping)`, "none" protects nothing.
      energy: protects the smallest subspace that holds this share of the trace.
      rank: or so many directions.
      protected_fraction: or this share of all directions.
      rtol: or those above this share of the largest singular value of the rows.
      damping: of the ridge, in units of the moment's trace.
      drift_budget: steps end before the drift of any weight on the retained inputs
        exceeds this, by their moments alone; by default all steps are made.
        For one request at a time.
    """

    projection: Literal["hard", "ridge", "none"] = "hard"
    energy: float | None = 0.99
    rank: int | None = None
    protected_fraction: float | None = None
    rtol: float | None = None
    damping: float = 1e-3
    drift_budget: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_choice("projection", self.projection, ("hard", "ridge", "none"))
        given = {name: value for name, value in self.rule.items() if value is not None}
        if self.projection == "hard" and len(given) != 1:
            msg = (
                "A hard projection takes exactly one of energy, rank, "
                f"protected_fraction and rtol; given are {given or 'none'}. Set energy="
                "None to use another."
            )
            raise ValueError(msg)
        if self.projection == "hard":
            choose_rule(**self.rule)
        check_positive("damping", self.damping)
        if self.drift_budget is not None:
            check_positive("drift_budget", self.drift_budget)
            if not self.keeps_moments:
                msg = (
                    "drift_budget needs the moments of retained inputs, and as it is "
                    f'set this method keeps none (projection="{self.projection}"): '
                    'take projection="ridge", or a hard one of pooled moments (UNSC: '
                    'subspace="pooled").'
                )
                raise ValueError(msg)

    @property
    def keeps_moments(self) -> bool:
        """Whether what `Statistics.without` gives are moments."""
        return self.projection != "none"

    def budget_of(self, statistics, forget_classes):
        """The moments of the retained inputs, and how far outputs may drift."""
        if self.drift_budget is None:
            return None
        return statistics.without(forget_classes), self.drift_budget

    @property
    def rule(self) -> dict[str, float | None]:
        """The rank rule, as arguments of `subspaces`."""
        names = ("energy", "rank", "protected_fraction", "rtol")
        return {name: getattr(self, name) for name in names}

    def projection_of(self, statistics, forget_classes):
        """Off what the moments of the retained inputs ask to protect."""
        retained = statistics.without(forget_classes)
        if self.projection == "ridge":
            return shrink_to_null_space(retained, damping=self.damping)
        if self.projection == "hard":
            retained = subspaces(retained, **self.rule, mesh=statistics.mesh)
        return project_to_null_space(retained)
