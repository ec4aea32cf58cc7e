"""UNSC: null-space calibration, with the retained data at hand."""

import dataclasses
from typing import Literal

import jax
import numpy as np

from jaxunlearn import parallel
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Trace
from jaxunlearn.methods.descent import ProjectedDescent, subspace_ranks
from jaxunlearn.nullspace.moments import Moment, class_moments, second_moments
from jaxunlearn.nullspace.projection import project_to_null_space
from jaxunlearn.nullspace.subspace import merge_subspaces, subspaces
from jaxunlearn.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNSC(ProjectedDescent):
    """Unlearning with null-space calibration.

    1. The subspace of each retained class's inputs, for each layer (Algorithm 1).
    2. Merged over the retained classes (Algorithm 2).
    3. Descend on each forget sample's likeliest retained class; every update keeps off
       the merged subspace.

    Attributes:
      subspace: "merged" is the paper's: truncate for each class, then merge. "pooled"
        truncates the sum of all retained moments once.
      merge_energy: share of the squared singular values that the merge keeps.

    Source: arXiv 2404.13588. Departures from the released code, which contradict the
    paper: a rank must *reach* its energy, all samples are used, patches have their
    layer's padding and stride, labels are chosen once.

    >>> UNSC().targets
    'nearest-retained'
    """

    subspace: Literal["merged", "pooled"] = "merged"
    merge_energy: float = 0.99

    def __post_init__(self):
        super().__post_init__()
        if self.subspace not in ("merged", "pooled"):
            msg = f'subspace must be "merged" or "pooled"; it is {self.subspace!r}.'
            raise ValueError(msg)
        if not 0 < self.merge_energy <= 1:
            msg = f"merge_energy must lie in (0, 1]; it is {self.merge_energy}."
            raise ValueError(msg)

    def protect(self, classifier, task: Task, *, key, progress, mesh=None):
        """Subspaces of the retained data's inputs."""
        del key, progress  # nothing is drawn, and the pass is short
        if task.retain is None or len(task.retain) == 0:
            msg = (
                "UNSC needs retained data: Task(forget, retain=...). Without any, "
                "CovarNav inverts the model instead."
            )
            raise ValueError(msg)
        watch = Stopwatch()
        with watch.stage("statistics"):
            if self.subspace == "merged" and self.projection == "hard":
                projection, ranks = self._merged(classifier, task, mesh)
            else:
                share = parallel.own_share(len(task.retain), mesh)
                images = task.retain.images[share]
                moments = second_moments(classifier, images, mesh=mesh)
                projection, ranks = self.protected(moments, mesh)
        read = {"retain": len(task.retain)}
        return projection, Trace(ranks=ranks, seconds=watch.seconds, samples_read=read)

    def _merged(self, classifier, task, mesh):
        retain, share = task.retain, parallel.own_share(len(task.retain), mesh)
        moments = class_moments(
            classifier,
            retain.images[share],
            retain.labels[share],
            num_classes=task.num_classes,
            mesh=mesh,
        )
        present = tuple(np.unique(retain.labels).tolist())
        apart = [subspaces(_of_classes(moments, present), **self.rule, mesh=mesh)]
        merged = merge_subspaces(apart, energy=self.merge_energy, mesh=mesh)
        jax.block_until_ready(merged)
        return project_to_null_space(merged), subspace_ranks(merged)


def _of_classes(moments, classes):
    """With a class axis of these alone: a rank would be given to empty ones too."""

    def chosen(moment):
        gram, rows = (x[np.array(classes)] for x in (moment.gram, moment.rows))
        return Moment(gram, rows, moment.layout, classes)

    return jax.tree.map(chosen, moments, is_leaf=lambda x: isinstance(x, Moment))
