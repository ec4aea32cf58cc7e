"""What a method does once for all requests and all values of its tuned field."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxunlearn import augmentation, parallel
from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result, Trace, unlearn
from jaxunlearn.methods.requests import Requests
from jaxunlearn.methods.stacked import Relabelled, Stack
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.nullspace.memory import tree_bytes
from jaxunlearn.nullspace.projection import projectors, stackable
from jaxunlearn.progress import Progress, reporting


class Prepared:
    """Requests with their new labels and projections, to be descended on often.

    Statistics are taken once, one forward pass gives all new labels, and one compiled
    program runs the steps of all requests. `watch` is told the seconds of each.
    """

    def __init__(
        self,
        method: Any,
        classifier: Classifier,
        requests: Requests,
        key: Array,
        how: str | None,
        mesh: Mesh | None,
        progress: Progress,
        watch: Stopwatch,
    ):
        several = len(requests) > 1
        if several:
            mesh = _own_devices(mesh)
        if several and getattr(method, "drift_budget", None) is not None:
            msg = (
                f"drift_budget is for one request at a time, and there are "
                f"{len(requests)}: forget each by itself, or set it to None."
            )
            raise ValueError(msg)
        setting_key, steps_key = jax.random.split(key)
        labels_key, statistics_key = jax.random.split(setting_key)
        task, images = requests.task, requests.task.forget.images
        with watch.stage("labels"):
            outputs = logits(classifier, images, mesh=mesh)
            parts = list(zip(requests.classes, requests.rows, strict=True))
            targets = [
                method.targets_of(
                    outputs[rows], task.forget.labels[rows], classes, key=labels_key
                )
                for classes, rows in parts
            ]
        statistics = method.statistics(
            *(classifier, task),
            key=statistics_key,
            mesh=mesh,
            progress=progress,
            requests=requests.classes if several else None,
        )
        watch.add(statistics.seconds)
        with watch.stage("statistics"):
            projections = _on_host(
                (method.projection_of(statistics, c) for c in requests.classes),
                classifier.params,
                len(requests),
            )
            self._requests = [
                Relabelled(*part, np.asarray(labels), projection)
                for part, labels, projection in zip(
                    parts, targets, projections, strict=True
                )
            ]
            # Methods from elsewhere may know of none.
            budget_of = getattr(method, "budget_of", lambda *_: None)
            self._budget = budget_of(statistics, requests.classes[0])
            self._traces = [
                _trace(classifier, images, request, method.batch_size)
                for request in self._requests
            ]
        # Moments and bases may go.
        self._statistics = dataclasses.replace(statistics, without=None)
        self._classifier, self._images = classifier, images
        self._key, self._mesh = steps_key, mesh
        self._stack = None
        if several:
            stacked = classifier, images, self._requests
            self._stack = Stack(*stacked, steps_key, how, mesh)

    def __call__(self, method: Any, progress: Progress = None) -> list[Result]:
        """Every request's steps, with the `tuned` field of this method."""
        if self._stack is None:
            return [self._descend(method, progress)]
        with reporting(progress) as report:
            ends = self._stack.descend(method, report)
        results = []
        parts = zip(ends, self._requests, self._traces, strict=True)
        for (params, losses), request, trace in parts:
            steps = method.steps * min(len(request.rows), method.batch_size)
            read = {"forget": steps, "retain": 0}
            trace = dataclasses.replace(trace, losses=losses, samples_read=read)
            results.append(Result(self._classifier.replace(params=params), trace))
        return results

    def costs(self) -> dict[str, Any]:
        """What the requests share, as fields of `Sweep`."""
        stack, statistics = self._stack, self._statistics
        read = {"statistics": statistics.samples_read, "labels": len(self._images)}
        return {
            "how": "one by one" if stack is None else stack.how,
            "at_once": 1 if stack is None else stack.at_once,
            "step_seconds": {} if stack is None else stack.step_seconds,
            "passes": {"statistics": statistics.passes, "labels": 1},
            "samples_read": read,
            "proxies": statistics.proxies,
        }

    def _descend(self, method, progress) -> Result:
        """A single request's steps, whose minibatches the devices share."""
        (request,) = self._requests
        optimizer = method.optimizer(request.projection)
        result = unlearn(
            *(self._classifier, self._images, request.targets, optimizer),
            steps=method.steps,
            batch_size=method.batch_size,
            key=self._key,
            augment=augmentation.by_name[method.augment],
            progress=progress,
            mesh=self._mesh,
            drift_budget=self._budget,
        )
        (before,), trace = self._traces, result.trace
        own = ("losses", "samples_read", "drift", "ended")
        noted = {name: getattr(trace, name) for name in own}
        return Result(result.classifier, dataclasses.replace(before, **noted))


def _on_host(
    projections: Iterable[optax.GradientTransformation], params: PyTree, count: int
) -> list[optax.GradientTransformation]:
    """The same, whose states wait on the host, all of equal shapes.

    Refused where the host cannot hold those of all, and everybody's parameters.
    """
    states, update = [], None
    for projection in projections:
        states.append(jax.device_get(projection.init(params)))
        update = projection.update
        if len(states) == 1:
            # As they come, and stacked for a step.
            _check_room(2 * (tree_bytes(states[0]) + tree_bytes(params)), count)
    return [
        optax.GradientTransformation(lambda params, state=state: state, update)
        for state in stackable(states)
    ]


def _check_room(each: int, count: int) -> None:
    room = parallel.free_host_memory()
    if count > 1 and count * each > room:
        advice = f"Ask for at most {max(1, room // each)} at a time."
        msg = (
            f"The bases and parameters of {count} requests take {count * each:,} bytes "
            f"of the host, {each:,} each, and it has {room:,} free. {advice}"
        )
        raise ValueError(msg)


def _trace(classifier, images, request, batch_size) -> Trace:
    """What is known of a request before its steps."""
    state = request.projection.init(classifier.params)
    held = projectors(state)
    rows = request.rows[:batch_size]
    before = _gradient(
        classifier, images[rows], jnp.asarray(request.targets[: len(rows)])
    )
    after, _ = request.projection.update(before, state)
    shares = jax.tree_util.tree_leaves_with_path(jax.device_get(_shares(before, after)))
    surviving = {path_name(path): float(share) for path, share in shares}
    ranks = {name: projector.ranks for name, projector in held.items()}
    return Trace(
        ranks={name: some for name, some in ranks.items() if some},
        surviving_gradient={name: surviving[name] for name in held},
    )


def _own_devices(mesh: Mesh | None) -> Mesh | None:
    mesh = parallel.mesh_for_rows(mesh)
    if mesh is not None and mesh.is_multi_process:
        msg = (
            "mesh holds devices of several processes: a sweep runs on those of one, "
            "jax.local_devices(). Give each process requests of its own."
        )
        raise ValueError(msg)
    return mesh


@jax.jit
def _gradient(classifier, images, targets):
    def loss(params):
        return cross_entropy(classifier.replace(params=params)(images), targets).mean()

    return jax.grad(loss)(classifier.params)


@jax.jit
def _shares(before, after):
    """`|P G|^2 / |G|^2` of every leaf.

    Near zero it explains why forgetting makes no progress: what is protected fills the
    layer's input space.
    """

    def share(g, p):
        whole = jnp.sum(jnp.square(g))
        return jnp.sum(jnp.square(p)) / jnp.where(whole > 0, whole, 1)

    return jax.tree.map(share, before, after)
