"""What every request protects, from statistics that are taken once for all of them."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.methods.class_bases import (
    Sets,
    class_bases,
    classes_of,
    merged_bases,
    stacked,
)
from jaxunlearn.methods.covarnav import CovarNav
from jaxunlearn.methods.descent import Descent, Progress, unprotected
from jaxunlearn.methods.unsc import UNSC
from jaxunlearn.nullspace.moments import (
    Moment,
    class_moments,
    class_passes,
    sum_classes,
)
from jaxunlearn.nullspace.projection import project_to_null_space, shrink_to_null_space
from jaxunlearn.nullspace.subspace import Subspace, subspaces
from jaxunlearn.nullspace.trees import map_records
from jaxunlearn.tasks import Data, Task


class Protection(NamedTuple):
    """The projections of all requests.

    Attributes:
      projection: the last step of the optimizer's chain.
      state: of `projection`, on the host; what differs between requests leads with a
        request axis.
      ranks: of each request, by the leaf's path, the rank of each group.
      passes: how often the data were read for it.
      proxies: images that stood in for retained data, or None.
    """

    projection: optax.GradientTransformation
    state: PyTree
    ranks: tuple[dict[str, tuple[int, ...]], ...]
    passes: int
    proxies: Data | None = None


def check_method(method: Any) -> None:
    """Refuse a method whose statistics cannot be shared.

    Raises:
      TypeError: it is none of those that can.
    """
    shared = (Descent.protect, UNSC.protect, CovarNav.protect)
    if not isinstance(method, Descent) or type(method).protect not in shared:
        msg = (
            "A sweep shares the statistics of UNSC, CovarNav and Unprojected; its "
            f"method is a {type(method).__name__}. Call that one for each request."
        )
        raise TypeError(msg)


def protect_each(
    method: Any,
    classifier: Classifier,
    train: Data,
    sets: Sets,
    num_classes: int,
    *,
    key: Array,
    progress: Progress,
    mesh: Mesh | None,
    watch: Stopwatch,
) -> Protection:
    """What `method.protect` gives for each request, from one pass over the data.

    Moments add up over classes, so that what a request retains is a sum over all others
    than its own. Where moments of all classes do not fit into memory, passes over the
    data take some classes each. CovarNav inverts the classifier once, into images of
    every class, and a request leaves out those of its own classes: unlike by itself,
    where the others are optimised without them.

    Args:
      method: one that `check_method` lets through.
      classifier: the original.
      train: the training data.
      sets: the classes of each request.
      num_classes: how many classes there are.
      key: as `method.protect` gets it.
      progress: `(stage, done, total)`.
      mesh: the devices over which images are cut.
      watch: is told the stages.
    """
    data, proxies = train, None
    if getattr(method, "projection", "none") == "none":
        free = stacked([unprotected(classifier, train.images)] * len(sets))
        return _protection(project_to_null_space(free), classifier, free, sets, 0)
    if isinstance(method, CovarNav):
        task = Task(train, train, (), num_classes=num_classes)
        with watch.stage("inversion"):
            proxies = data = method.proxies(
                classifier, task, key=key, progress=progress, mesh=mesh
            )
    with watch.stage("statistics"):
        passes = class_passes(classifier, data.images, num_classes, mesh=mesh)
        merges = isinstance(method, UNSC) and method.subspace == "merged"
        energy = getattr(method, "merge_energy", None) if merges else None
        if energy is not None and method.projection == "hard":
            moments = _moments(classifier, data, num_classes, passes, progress, mesh)
            bases = class_bases(moments, np.unique(data.labels).tolist(), method.rule)
            records = merged_bases(bases, sets, energy)
            projection = project_to_null_space(records)
        else:
            plan = _by_pass(sets, passes)
            passes = [classes for classes, _ in plan]
            moments = _moments(classifier, data, num_classes, passes, progress, mesh)
            chosen = (own for _, own in plan)
            projection, records = _pooled(method, zip(moments, chosen, strict=True))
        count = len(passes)
        return _protection(projection, classifier, records, sets, count, proxies)


def _by_pass(
    sets: Sets, passes: list[tuple[int, ...]]
) -> list[tuple[tuple[int, ...], Sets]]:
    """Passes, each of all the classes of some requests, as many as fit into memory."""
    if len(passes) == 1:
        return [(passes[0], sets)]
    room = max(map(len, passes))
    found: list[tuple[tuple[int, ...], Sets]] = []
    for classes in sets:
        if len(classes) > room:
            msg = (
                f"The moments of {list(classes)} do not fit into memory side by side: "
                f"only those of {room} classes do. Ask for fewer at a time, or call "
                "the method for this request by itself."
            )
            raise ValueError(msg)
        held, chosen = found[-1] if found else ((), ())
        together = tuple(dict.fromkeys((*held, *classes)))
        if found and len(together) <= room:
            found[-1] = (together, (*chosen, classes))
        else:
            found.append((classes, (classes,)))
    return found


def _moments(classifier, data, num_classes, passes, progress, mesh) -> Iterator[PyTree]:
    """Moments class by class, one pass after another."""
    whole = len(passes) == 1 and len(passes[0]) == num_classes
    for number, classes in enumerate(passes):
        progress("statistics", number, len(passes))
        moments = class_moments(
            classifier,
            data.images,
            data.labels,
            num_classes=num_classes,
            classes=None if whole else classes,
            mesh=mesh,
        )
        yield moments
        del moments
    progress("statistics", len(passes), len(passes))


def _pooled(
    method: Any, parts: Iterable[tuple[PyTree, Sets]]
) -> tuple[optax.GradientTransformation, PyTree]:
    """As `method.protected` does, for all requests: the projection, and subspaces."""
    found = []
    for moments, sets in parts:
        for own in sets:
            others = [c for c in classes_of(moments) if c not in own]
            retained = sum_classes(moments, others)
            if method.projection == "hard":
                retained = subspaces(retained, **method.rule)
            found.append(jax.device_get(retained))
    if method.projection == "hard":
        records = stacked(found)
        return project_to_null_space(records), records

    def stack(*moments: Moment) -> Moment:
        grams, rows = zip(*((m.gram, m.rows) for m in moments), strict=True)
        return Moment(np.stack(grams), np.stack(rows), moments[0].layout)

    is_moment = lambda node: isinstance(node, Moment)  # noqa: E731
    moments = jax.tree.map(stack, *found, is_leaf=is_moment)
    return shrink_to_null_space(moments, damping=method.damping), {}


def _protection(
    projection, classifier, records, sets, passes, proxies=None
) -> Protection:
    ranks: list[dict[str, tuple[int, ...]]] = [{} for _ in sets]

    def note(name: str, record: Subspace) -> None:
        # A padding column is zero throughout.
        held = (record.basis != 0).any(axis=-2).sum(axis=-1)
        for of_request, groups in zip(ranks, held.tolist(), strict=True):
            of_request[name] = tuple(groups)

    if jax.tree.leaves(records):
        map_records(note, Subspace, "subspaces", records)
    state = jax.device_get(projection.init(classifier.params))
    return Protection(projection, state, tuple(ranks), passes, proxies)
