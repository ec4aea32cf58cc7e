"""UNSC: null-space calibration, with the retained data at hand."""

import dataclasses
from typing import Literal

from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxunlearn.checks import check_choice
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.methods.descent import ProjectedDescent
from jaxunlearn.methods.equal_moments import EqualMoments
from jaxunlearn.methods.statistics import (
    KeptBases,
    MergedBases,
    PooledMoments,
    Statistics,
    remaining,
)
from jaxunlearn.nullspace.moments import sum_classes
from jaxunlearn.nullspace.projection import project_to_null_space


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNSC(ProjectedDescent):
    """Unlearning with null-space calibration.

    1. The subspace of each retained class's inputs, for each layer (Algorithm 1).
    2. Merged over the retained classes (Algorithm 2).
    3. Descend on each forget sample's likeliest retained class; every update keeps off
       the merged subspace.

    Attributes:
      learning_rate: the learning rate of SGD. The projection leaves so little of the
        gradient (.0001 to .01 of its squared norm in a layer) that rates are large: at
        3.0 the default number of steps forgets a class of the digits, of Fashion-MNIST
        and of CIFAR-10, and most of ten classes of CIFAR-100, on validation data
        (`benchmarks/cifar_defaults.md`).
      subspace: "merged" is the paper's: truncate for each class, then merge. "pooled"
        truncates the sum of all retained moments once.
      merge_energy: share of the squared singular values that the merge keeps.
      normalise: divide each retained class's moments by their trace in every layer
        before they are summed, so that the subspaces of classes with few samples weigh
        as much as those with many. Not where bases are merged, of which each is of its
        class alone.

    Source: arXiv 2404.13588. Departures from the released code, which contradict the
    paper: a rank must *reach* its energy, all samples are used, patches have their
    layer's padding and stride, labels are chosen once.

    >>> UNSC().targets
    'nearest-retained'
    """

    learning_rate: float = 3.0
    subspace: Literal["merged", "pooled"] = "merged"
    merge_energy: float = 0.99
    normalise: bool = False

    def reads(self, retained: int, classes: int) -> dict[str, int]:
        """See `Descent.reads`: moments of each retained class, or of all together."""
        sets = classes if self.subspace == "merged" else 1
        return {"images": retained, "sets": sets}

    def __post_init__(self):
        super().__post_init__()
        check_choice("subspace", self.subspace, ("merged", "pooled"))
        if not 0 < self.merge_energy <= 1:
            msg = f"merge_energy must lie in (0, 1]; it is {self.merge_energy}."
            raise ValueError(msg)
        if self.normalise and not self.keeps_moments:
            msg = (
                "normalise weighs moments before they are summed, and as it is set "
                f'this method sums none (projection="{self.projection}", subspace='
                f'"{self.subspace}"): take subspace="pooled" or projection="ridge".'
            )
            raise ValueError(msg)

    def statistics(
        self, classifier, task, *, key, mesh=None, progress=None, requests=None
    ) -> Statistics:
        """Of the retained data: subspaces by class to merge, or moments to add up."""
        given = {"key": key, "mesh": mesh, "progress": progress, "requests": requests}
        if self.projection == "none":
            return super().statistics(classifier, task, **given)
        if task.class_moments is not None:
            return self.statistics_of_moments(task.class_moments, mesh=mesh)
        retain = task.retain
        if retain is None or len(retain) == 0:
            msg = (
                "UNSC needs retained data: Task(forget, retain=...), or their moments: "
                "class_moments=... Without either, CovarNav inverts the model instead."
            )
            raise ValueError(msg)
        watch, how = Stopwatch(), {"mesh": mesh, "progress": progress}
        data = classifier, retain, task.num_classes
        with watch.stage("statistics"):
            if self._merges:
                without = MergedBases(*data, self.rule, self.merge_energy, **how)
            else:
                pooled = EqualMoments if self.normalise else PooledMoments
                without = pooled(*data, requests, **how)
        return Statistics(
            without,
            without.passes,
            samples_read=without.passes * len(retain),
            seconds=watch.seconds,
            mesh=mesh,
        )

    def statistics_of_moments(
        self, class_moments: PyTree, *, mesh: Mesh | None = None
    ) -> Statistics:
        """What `statistics` says, of the moments of classes and without an image.

        Sums run over the retained classes in ascending order, and nothing is taken off
        a sum: what a set of classes leaves is the same bit by bit, in whatever order
        they were asked for and whether the forgotten ones still have moments.
        `class_moments` is what `jaxunlearn.class_moments` returned, or some of its
        classes; not for `projection="none"`, which needs none.
        """
        if self._merges:
            kept = KeptBases(class_moments, self.rule, self.merge_energy, mesh=mesh)
            return Statistics(kept, mesh=mesh)
        return Statistics(
            lambda classes: sum_classes(
                class_moments,
                remaining(class_moments, classes),
                equal_weight=self.normalise,
            ),
            mesh=mesh,
        )

    @property
    def reads_retained(self) -> bool:
        """See `Descent.reads_retained`; of a task with `class_moments` none is read."""
        return self.projection != "none"

    def projection_of(self, statistics, forget_classes):
        """Off the merged subspaces of the retained classes."""
        if self._merges:
            return project_to_null_space(statistics.without(forget_classes))
        return super().projection_of(statistics, forget_classes)

    @property
    def keeps_moments(self) -> bool:
        """See `ProjectedDescent.keeps_moments`: not where bases are merged."""
        return super().keeps_moments and not self._merges

    @property
    def _merges(self) -> bool:
        return self.subspace == "merged" and self.projection == "hard"
