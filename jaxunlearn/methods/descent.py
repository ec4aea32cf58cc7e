"""What the methods that descend on new labels have in common."""

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn import augmentation
from jaxunlearn.checks import check_count
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.unlearning import Result
from jaxunlearn.methods.forget import forget_task
from jaxunlearn.methods.relabel import RELABELLINGS
from jaxunlearn.methods.statistics import ClassSets, Statistics, unprotected
from jaxunlearn.nullspace.projection import project_to_null_space, shrink_to_null_space
from jaxunlearn.nullspace.rank_rules import choose_rule
from jaxunlearn.nullspace.subspace import subspaces
from jaxunlearn.progress import Progress
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
        check_count("steps", self.steps)
        check_count("batch_size", self.batch_size)
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            msg = f"learning_rate must be positive; it is {self.learning_rate}."
            raise ValueError(msg)
        if not 0 <= self.momentum < 1:
            msg = f"momentum must lie in [0, 1); it is {self.momentum}."
            raise ValueError(msg)
        if self.targets not in RELABELLINGS:
            there = tuple(RELABELLINGS)
            msg = f"targets must be one of {there}; it is {self.targets!r}."
            raise ValueError(msg)
        if self.augment not in augmentation.by_name:
            there = ", ".join(augmentation.by_name)
            msg = f"augment must be one of {there}; it is {self.augment!r}."
            raise ValueError(msg)

    def reads(self, retained: int, classes: int) -> dict[str, int]:
        """What of a `planning.Workload` the method decides.

        Args:
          retained: how many retained images there are.
          classes: of so many classes.

        >>> Descent().reads(1000, 9)
        {'images': 0}
        """
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
        """Forget `task.forget`.

        Args:
          classifier: is not modified.
          task: what to forget.
          key: a `jax.random.key`.
          progress: None, "bar", or a function `(stage, done, total)`.
          mesh: a one-axis mesh over whose devices all that reads images is cut. None:
            on a GPU or TPU all of this process's devices, on a CPU one. Under several
            processes all arguments are the same in each, and so is the result.
        """
        return forget_task(
            self, classifier, task, key=key, progress=progress, mesh=mesh
        )

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

        Args:
          classifier: the original.
          task: its `retain` is what may be read.
          key: a `jax.random.key`.
          mesh: as for `__call__`.
          progress: likewise.
          requests: the classes of each of several requests, where `retain` holds all
            classes. None: only those of `task` are forgotten, and it holds none of
            them.
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

        Args:
          logits: of the original, `[n, k]`.
          labels: as they are, `[n]`.
          forget_classes: `()` where samples are forgotten.
          key: a `jax.random.key`.
        """
        return RELABELLINGS[self.targets](logits, labels, forget_classes, key)

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
    """

    projection: Literal["hard", "ridge", "none"] = "hard"
    energy: float | None = 0.99
    rank: int | None = None
    protected_fraction: float | None = None
    rtol: float | None = None
    damping: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if self.projection not in ("hard", "ridge", "none"):
            msg = f'projection must be "hard", "ridge" or "none"; it is {self.projection!r}.'  # noqa: E501
            raise ValueError(msg)
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
        if not (np.isfinite(self.damping) and self.damping > 0):
            msg = f"damping must be positive; it is {self.damping}."
            raise ValueError(msg)

    @property
    def rule(self) -> dict[str, float | None]:
        """The rank rule, as arguments of `subspaces`."""
        names = ("energy", "rank", "protected_fraction", "rtol")
        return {name: getattr(self, name) for name in names}

    def projection_of(
        self, statistics: Statistics, forget_classes: tuple[int, ...]
    ) -> optax.GradientTransformation:
        """Off what the moments of the retained inputs ask to protect."""
        retained = statistics.without(forget_classes)
        if self.projection == "ridge":
            return shrink_to_null_space(retained, damping=self.damping)
        if self.projection == "hard":
            retained = subspaces(retained, **self.rule, mesh=statistics.mesh)
        return project_to_null_space(retained)
