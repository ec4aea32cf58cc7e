"""What a method does once for all requests and all values of its tuned field."""

import dataclasses
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
from jaxunlearn.methods.memory import on_device_if_they_fit
from jaxunlearn.methods.requests import Requests
from jaxunlearn.methods.stacked import Relabelled, Stack
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.nullspace.projection import projectors, stackable
from jaxunlearn.progress import Progress, reporting


class Prepared:
    """Requests with their new labels and projections, to be descended on often.

    Statistics are taken once, one forward pass gives all new labels, and one compiled
    program runs the steps of all requests.

    Args:
      method: says `statistics`, `projection_of` and `targets_of`; see `Descent`.
      classifier: the original.
      requests: what to forget.
      key: the same for a request alone and among others.
      how: how a step of several requests is computed; None: whichever is fastest.
      mesh: as for `forget`.
      progress: likewise.
      watch: is told the seconds of every stage.
    """

    def __init__(
        self,
        method: Any,
        classifier: Classifier,
        requests: Requests,
        *,
        key: Array,
        how: str | None = None,
        mesh: Mesh | None = None,
        progress: Progress = None,
        watch: Stopwatch,
    ):
        several = len(requests) > 1
        if several:
            mesh = _own_devices(mesh)
        setting_key, steps_key = jax.random.split(key)
        labels_key, statistics_key = jax.random.split(setting_key)
        task, images = requests.task, requests.task.forget.images
        with watch.stage("labels"):
            outputs = logits(classifier, images, mesh=mesh)
            targets = [
                method.targets_of(
                    outputs[rows], task.forget.labels[rows], classes, key=labels_key
                )
                for classes, rows in zip(requests.classes, requests.rows, strict=True)
            ]
        self.statistics = method.statistics(
            *(classifier, task),
            key=statistics_key,
            mesh=mesh,
            progress=progress,
            requests=requests.classes if several else None,
        )
        watch.add(self.statistics.seconds)
        with watch.stage("statistics"):
            projections = [
                method.projection_of(self.statistics, classes)
                for classes in requests.classes
            ]
            self.relabelled = [
                Relabelled(classes, rows, np.asarray(new), projection)
                for classes, rows, new, projection in zip(
                    *(requests.classes, requests.rows, targets),
                    _started(projections, classifier.params),
                    strict=True,
                )
            ]
            self._found = [
                self._trace(classifier, images, request, method.batch_size)
                for request in self.relabelled
            ]
        self._classifier, self._images = classifier, images
        self._key, self._mesh = steps_key, mesh
        self._stack = None
        if several:
            stacked = classifier, images, self.relabelled
            self._stack = Stack(*stacked, key=steps_key, how=how, mesh=mesh)

    def __call__(self, method: Any, progress: Progress = None) -> list[Result]:
        """Every request's steps, with the `tuned` field of this method.

        Raises:
          FloatingPointError: a loss or a parameter is not finite.
        """
        if self._stack is None:
            ends = [self._descend(method, progress)]
        else:
            with reporting(progress) as report:
                stacked = self._stack.descend(method, report)
            params = on_device_if_they_fit(stacked.params)
            ends = list(zip(params, stacked.losses, strict=True))
        results = []
        parts = zip(ends, self.relabelled, self._found, strict=True)
        for (params, losses), request, trace in parts:
            steps = method.steps * min(len(request.rows), method.batch_size)
            read = {"forget": steps, "retain": 0}
            trace = dataclasses.replace(trace, losses=losses, samples_read=read)
            results.append(Result(self._classifier.replace(params=params), trace))
        return results

    def alone(self, result: Result, seconds: dict[str, float]) -> Result:
        """The only result, with what would be shared with others in its own trace."""
        read = dict(result.trace.samples_read)
        read["forget"] += len(self._images)
        read["retain"] += self.statistics.samples_read
        trace = dataclasses.replace(
            result.trace,
            samples_read=read,
            proxies=self.statistics.proxies,
            seconds=seconds,
        )
        return Result(result.classifier, trace)

    def costs(self) -> dict[str, Any]:
        """What the requests share, as fields of `Sweep`."""
        stack, statistics = self._stack, self.statistics
        return {
            "how": "one by one" if stack is None else stack.how,
            "at_once": 1 if stack is None else stack.at_once,
            "step_seconds": {} if stack is None else stack.step_seconds,
            "passes": {"statistics": statistics.passes, "labels": 1},
            "samples_read": {
                "statistics": statistics.samples_read,
                "labels": len(self._images),
            },
            "proxies": statistics.proxies,
        }

    def _descend(self, method, progress) -> tuple[PyTree, np.ndarray]:
        """A single request's steps, whose minibatches the devices share."""
        (request,) = self.relabelled
        result = unlearn(
            self._classifier,
            self._images,
            request.targets,
            method.optimizer(request.projection),
            steps=method.steps,
            batch_size=method.batch_size,
            key=self._key,
            augment=augmentation.by_name[method.augment],
            progress=progress,
            mesh=self._mesh,
        )
        return result.classifier.params, result.trace.losses

    @staticmethod
    def _trace(classifier, images, request, batch_size) -> Trace:
        """What is known of a request before its steps."""
        state = request.projection.init(classifier.params)
        held = projectors(state)
        rows = request.rows[:batch_size]
        before = _gradient(classifier, images[rows], request.targets[: len(rows)])
        after, _ = request.projection.update(before, state)
        shares = jax.tree_util.tree_leaves_with_path(
            jax.device_get(_shares(before, after))
        )
        surviving = {path_name(path): float(share) for path, share in shares}
        ranks = {name: projector.ranks for name, projector in held.items()}
        return Trace(
            ranks={name: some for name, some in ranks.items() if some},
            surviving_gradient={name: surviving[name] for name in held},
        )


def _started(
    projections: list[optax.GradientTransformation], params: PyTree
) -> list[optax.GradientTransformation]:
    """The same, prepared: their states wait on the host, all of equal shapes."""
    states = stackable([projection.init(params) for projection in projections])
    update = projections[0].update
    return [
        optax.GradientTransformation(lambda params, state=state: state, update)
        for state in states
    ]


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
