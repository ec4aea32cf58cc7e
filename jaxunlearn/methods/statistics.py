"""What methods read of the retained data: once for a classifier, for every request."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.grams import layouts
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.nullspace import linalg
from jaxunlearn.nullspace.memory import class_passes
from jaxunlearn.nullspace.moments import (
    Moment,
    class_moments,
    second_moments,
    sum_classes,
)
from jaxunlearn.nullspace.rank_rules import choose_rule
from jaxunlearn.nullspace.subspace import (
    Subspace,
    from_pairs,
    kept_pair,
    subspaces,
)
from jaxunlearn.progress import Progress, reporting
from jaxunlearn.tasks import Data

ClassSets = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """What a method knows of the inputs of every layer.

    Attributes:
      without: from the classes that a request forgets to a tree like params: the
        `Moment` or `Subspace` of what all others put into each layer. It is called for
        requests in their order, and may read data each time. None once it is done with.
      passes: how often the data are read for it.
      samples_read: how many samples of the retained data, repeats included.
      proxies: images that stood in for retained data, or None.
      seconds: wall time by stage.
      mesh: the devices and processes that took part.
    """

    without: Callable[[tuple[int, ...]], PyTree] | None
    passes: int = 0
    samples_read: int = 0
    proxies: Data | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mesh: Mesh | None = None


def unprotected(classifier: Classifier, images: Array | np.ndarray) -> PyTree:
    """Subspaces of rank zero: every weight that has an input may move freely."""

    def free(layout):
        g, d = layout.groups, layout.fan_in
        return Subspace(np.zeros((g, d, 0), "f"), np.zeros((g, d), "f"), layout)

    return jax.tree.map(free, layouts(classifier, images))


class PooledMoments:
    """Second moments of all classes but those that a request forgets.

    A single request's data hold none of those, and are summed as they are. For several
    requests moments are taken class by class: all in one pass over the data, or, where
    memory does not hold them, the classes of some requests in each pass.

    Raises:
      ValueError: the classes of one request do not fit into memory side by side.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: Data,
        num_classes: int,
        requests: ClassSets | None,
        *,
        mesh: Mesh | None = None,
        progress: Progress = None,
    ):
        self._given = classifier, data, num_classes
        self._mesh, self._progress = mesh, progress
        self._moments: PyTree = None
        # The classes of each pass; None of them for all classes at once.
        self._ahead: list[tuple[int, ...] | None] = [None]
        self._by_class = requests is not None
        if requests is None:
            images = data.images[parallel.own_share(len(data), mesh)]
            self._moments = second_moments(classifier, images, mesh=mesh)
            jax.block_until_ready(self._moments)
        else:
            fitting = class_passes(classifier, data.images, num_classes, mesh=mesh)
            if len(fitting) > 1:
                self._ahead = _by_requests(requests, max(map(len, fitting)))
        self.passes = len(self._ahead)

    def __call__(self, classes: tuple[int, ...]) -> PyTree:
        """Of all classes but these."""
        if not self._by_class:
            return self._moments
        held = () if self._moments is None else _classes_of(self._moments)
        if not held or not set(classes) <= set(held):
            self._moments = None  # Before the next ones are there.
            number = self.passes - len(self._ahead)
            with reporting(self._progress) as report:
                report("statistics", number, self.passes)
                self._moments = class_moments_of(
                    *self._given, self._ahead.pop(0), self._mesh
                )
                report("statistics", number + 1, self.passes)
            held = _classes_of(self._moments)
        return sum_classes(self._moments, [c for c in held if c not in classes])


class MergedBases:
    """The merged subspaces of all classes but those that a request forgets.

    Subspaces are taken class by class (UNSC's Algorithm 1) and merged for each request
    (Algorithm 2): the squared singular values of `[U_1 ... U_k]` are the eigenvalues of
    `sum(U_i U_iT)`, from whose total over all classes a request takes its own. That is
    one eigendecomposition of `[d, d]` for each, in float64, however many classes there
    are. A class without samples has no subspace. `rule` is the rank rule of a class,
    `energy` that of the merge.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: Data,
        num_classes: int,
        rule: Mapping[str, Any],
        energy: float,
        *,
        mesh: Mesh | None = None,
        progress: Progress = None,
    ):
        self._rule = choose_rule(energy, None, None, None)
        present = set(np.unique(data.labels).tolist())
        fitting = [tuple(range(num_classes))]
        # Several processes may differ in what is free, and must do the same.
        if mesh is None or not mesh.is_multi_process:
            fitting = class_passes(classifier, data.images, num_classes, mesh=mesh)
        passes = [group for group in fitting if present & set(group)]
        self.passes = len(passes)
        self._bases = _ClassBases(mesh)
        with reporting(progress) as report:
            for number, group in enumerate(passes):
                report("statistics", number, self.passes)
                asked = None if len(fitting) == 1 else group
                moments = class_moments_of(classifier, data, num_classes, asked, mesh)
                self._bases.add(moments, [c for c in group if c in present], rule)
                del moments
            report("statistics", self.passes, self.passes)
        layers = self._bases.layers
        self._totals = self._bases.spread(
            lambda number, device: _products(layers[number].values(), device)
        )

    def __call__(self, classes: tuple[int, ...]) -> PyTree:
        """Of all classes but these."""

        def gram(layer, number, device):
            total = self._totals[number]
            own = [record for c, record in layer.items() if c in classes]
            return total - _products(own, device) if own else total

        return self._bases.merged(gram, self._rule)


class KeptBases:
    """`MergedBases` of the moments of classes that were kept, for one request or few.

    `sum(U_i U_iT)` runs over the retained classes in ascending order, so that its bits
    depend on which they are alone. A class without rows has no subspace.
    """

    def __init__(
        self,
        moments: PyTree,
        rule: Mapping[str, Any],
        energy: float,
        *,
        mesh: Mesh | None = None,
    ):
        self._moments, self._own, self._mesh = moments, rule, mesh
        self._rule = choose_rule(energy, None, None, None)

    def __call__(self, classes: tuple[int, ...]) -> PyTree:
        """Of all classes but these."""
        leaves = jax.tree.leaves(self._moments, is_leaf=_is_moment)
        rows = dict(zip(leaves[0].classes, np.asarray(leaves[0].rows), strict=True))
        held = [c for c in remaining(self._moments, classes) if rows[c] > 0]
        bases = _ClassBases(self._mesh)
        bases.add(self._moments, held, self._own)
        return bases.merged(
            lambda layer, number, device: _products(layer.values(), device), self._rule
        )


class _ClassBases:
    """Of each leaf that has an input, the bases by class, and what merges them."""

    def __init__(self, mesh: Mesh | None):
        self._mesh = mesh
        self._layers: dict[int, dict[int, Subspace]] = collections.defaultdict(dict)

    def add(self, moments: PyTree, held: Sequence[int], rule: Mapping[str, Any]):
        """The bases of these classes, by the rank rule of a class."""
        some = subspaces(_of_classes(moments, held), **rule, mesh=self._mesh)
        records, self._structure = jax.tree.flatten(
            jax.device_get(some), is_leaf=lambda x: isinstance(x, Subspace)
        )
        for layer, record in enumerate(records):
            pairs = zip(record.basis, record.spectrum, strict=True)
            own = (Subspace(*pair, record.layout) for pair in pairs)
            self._layers[layer].update(zip(held, own, strict=True))

    @property
    def layers(self) -> list[dict[int, Subspace]]:
        """In the leaves' order."""
        return list(self._layers.values())

    def merged(self, gram_of, rule) -> PyTree:
        """What a rule keeps of `gram_of(layer, number, device)`, for every layer."""
        layers = self.layers

        def merged(number, device):
            layer = layers[number]
            gram = gram_of(layer, number, device)
            one = next(iter(layer.values()))
            dtype = one.basis.dtype
            pairs = [
                kept_pair(linalg.eigenpairs(group, device), rule, dtype)
                for group in gram
            ]
            return from_pairs(pairs, gram.shape[:2], dtype, one.layout)

        return self._structure.unflatten(self.spread(merged))

    def spread(self, function) -> list[Any]:
        """`function(number, device)` for every layer, on all devices and processes."""
        ones = (next(iter(layer.values())) for layer in self.layers)
        sizes = [one.layout.fan_in**3 for one in ones]
        return parallel.spread(function, range(len(sizes)), sizes, self._mesh)


def _products(records: Iterable[Subspace], device: jax.Device) -> np.ndarray:
    """`sum(U UT)` of bases `[g, d, r]`, in float64."""
    total: Any = 0
    with linalg.float64():
        for record in records:
            U = linalg.placed(record.basis, device)
            total += jnp.matmul(U, U.mT, precision=jax.lax.Precision.HIGHEST)
    return np.asarray(total)


def _by_requests(sets: ClassSets, room: int) -> list[tuple[int, ...]]:
    """Passes of at most `room` classes, each with all the classes of some requests."""
    passes: list[tuple[int, ...]] = []
    for classes in sets:
        if len(classes) > room:
            msg = (
                f"The moments of {list(classes)} do not fit into memory side by side: "
                f"only those of {room} classes do. Ask for fewer at a time, or call "
                "the method for this request by itself."
            )
            raise ValueError(msg)
        held = passes[-1] if passes else ()
        together = tuple(dict.fromkeys((*held, *classes)))
        if passes and len(together) <= room:
            passes[-1] = together
        else:
            passes.append(classes)
    return passes


def class_moments_of(classifier, data, num_classes, classes, mesh) -> PyTree:
    """Of these classes and all others together, or of all; of this process's share."""
    share = parallel.own_share(len(data), mesh)
    return class_moments(
        classifier,
        data.images[share],
        data.labels[share],
        num_classes=num_classes,
        classes=classes,
        mesh=mesh,
    )


def remaining(moments: PyTree, classes: Sequence[int]) -> list[int]:
    """The classes that have a moment, but these, in ascending order."""
    return sorted(c for c in _classes_of(moments) if c not in classes)


def _is_moment(node: Any) -> bool:
    return isinstance(node, Moment)


def _classes_of(moments: PyTree) -> tuple[int | str, ...]:
    """What the class axis of these moments holds."""
    return jax.tree.leaves(moments, is_leaf=_is_moment)[0].classes


def _of_classes(moments: PyTree, classes: Sequence[int]) -> PyTree:
    """With a class axis of these alone: a rank would be given to empty ones too."""
    rows = np.array([_classes_of(moments).index(c) for c in classes])

    def chosen(moment: Moment) -> Moment:
        parts = (moment.gram[rows], moment.rows[rows], moment.layout)
        return Moment(*parts, tuple(classes))

    return jax.tree.map(chosen, moments, is_leaf=_is_moment)
