"""Retained moments in which every class weighs alike, however many samples it has."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.methods.statistics import class_moments_of
from jaxunlearn.nullspace.memory import class_passes
from jaxunlearn.nullspace.moments import Moment, sum_classes
from jaxunlearn.progress import Progress, reporting
from jaxunlearn.tasks import Data


class EqualMoments:
    """Second moments of all classes but those that a request forgets, of trace 1 each.

        sum_c C_c / tr C_c,  layer by layer, over the retained classes c in order

    Where the moments of all classes fit into memory side by side they are taken in one
    pass over the data and kept; else in several, for each request anew.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: Data,
        num_classes: int,
        requests: Any,
        *,
        mesh: Mesh | None = None,
        progress: Progress = None,
    ):
        self._given = classifier, data, num_classes
        self._mesh, self._progress = mesh, progress
        self._present = set(np.unique(data.labels).tolist())
        fitting = [tuple(range(num_classes))]
        # Several processes may differ in what is free, and must do the same.
        if mesh is None or not mesh.is_multi_process:
            fitting = class_passes(classifier, data.images, num_classes, mesh=mesh)
        self._groups = [group for group in fitting if self._present & set(group)]
        self._all: PyTree = None
        self._last: Any = None
        if len(fitting) == 1:
            self._all = class_moments_of(*self._given, None, mesh)
            jax.block_until_ready(self._all)
        several = 1 if requests is None else len(requests)
        self.passes = 1 if len(fitting) == 1 else len(self._groups) * several

    def __call__(self, classes: tuple[int, ...]) -> PyTree:
        """Of all classes but these."""
        if self._last is None or self._last[0] != classes:
            self._last = None  # Before the next one is there.
            self._last = classes, self._sum(classes)
        return self._last[1]

    def _sum(self, classes: tuple[int, ...]) -> PyTree:
        total: PyTree = None
        with reporting(self._progress) as report:
            for number, group in enumerate(self._groups):
                held = [c for c in group if c in self._present and c not in classes]
                if not held:
                    continue
                moments = self._all
                if moments is None:
                    report("statistics", number, len(self._groups))
                    moments = class_moments_of(*self._given, group, self._mesh)
                part = sum_classes(moments, held, equal_weight=True)
                del moments
                total = part if total is None else _added(total, part)
        return total


def _added(one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(
        lambda a, b: Moment(a.gram + b.gram, a.rows + b.rows, a.layout),
        one,
        other,
        is_leaf=lambda node: isinstance(node, Moment),
    )
