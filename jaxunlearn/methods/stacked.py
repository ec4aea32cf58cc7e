"""The descent of several requests: stacked, cut over devices, or in turns."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxunlearn import augmentation, parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.leaks import FirstUpdate
from jaxunlearn.descent.loop import (
    chunk_length,
    minibatches,
    program_bytes,
    run_steps,
)
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.descent.step import (
    DescentStep,
    begin,
    check_losses,
    check_parameters,
)
from jaxunlearn.nullspace.memory import SHARE, tree_bytes
from jaxunlearn.parallel import free_memory
from jaxunlearn.progress import Report

WAYS = ("vmap", "map", "one by one")

# What a step of each way is timed on.
_TIMED_STEPS = 5
_ADVICE = "Lower the learning rate."


class Relabelled(NamedTuple):
    """One of the requests, ready to descend."""

    classes: tuple[int, ...]  # which it forgets
    rows: Int[np.ndarray, " n"]  # where its samples are
    targets: Shaped[np.ndarray, "n ..."]  # new labels `[n]` or probabilities `[n, k]`
    # The last step of its chain; states of all are of equal shapes.
    projection: optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class StackedStep:
    """One update of some requests: all at once, in a loop, or one on each device.

    "vmap" runs all requests of a device at once, "map" one after another in a loop on
    the device; "one by one" is given one request a device.
    """

    single: DescentStep  # the update of one of them
    how: str
    mesh: Mesh | None = None  # the devices over which requests are cut

    def __call__(self, carry, constants, index, row):
        """As of `single`; `carry`, `row` and the losses have a leading request axis."""

        def local(stacked, shared):
            constants, index = shared

            def one(stacked):
                carry, row = stacked
                return self.single(carry, constants, index, row)

            if self.how == "vmap":
                return jax.vmap(one)(stacked)
            if self.how == "map":
                return lax.map(one, stacked)
            after = one(jax.tree.map(lambda x: x[0], stacked))
            return jax.tree.map(lambda x: x[None], after)

        rows, shared = (carry, row), (constants, index)
        if self.mesh is None:
            return local(rows, shared)
        return parallel.map_shards(local, self.mesh, (0, None), 0)(rows, shared)


class Stack:
    """Requests that are ready to descend with any method of their statistics.

    Attributes:
      how: how a step of many requests is computed; chosen by the first descent where it
        is None.
      at_once: how many requests a step computes; likewise.
      step_seconds: what that choice measured.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Array | np.ndarray,
        requests: Sequence[Relabelled],
        key: Array,
        how: str | None,
        mesh: Mesh | None,
    ):
        self.how: Any = how
        self.at_once = 0
        self.step_seconds: dict[str, float] = {}
        self._classifier, self._requests = classifier, requests
        self._images, self._mesh = np.asarray(images), mesh
        self._devices = 1 if mesh is None else mesh.size
        self._order_key, self._augment_key = jax.random.split(key)

    def descend(
        self, method: Any, report: Report
    ) -> list[tuple[PyTree, Float[np.ndarray, " steps"]]]:
        """Every request's parameters and losses, as `unlearn` has them for one.

        Parameters are on the host where those of all would fill the device. Refused are
        a loss or a parameter that is not finite, naming the request.
        """
        started = self._start(method)
        if self.how is None:
            self.how = self._fastest(method, started)
        self.at_once = self.at_once or self._width(method, started, self.how)
        count, width = len(self._requests), self.at_once
        groups = [np.arange(first, first + width) for first in range(0, count, width)]
        params, losses = [], []
        first_update = FirstUpdate(*started[1])
        for number, group in enumerate(groups):
            names = [f"forgetting {list(r.classes)}" for r in self._chosen(group)]

            def on_chunk(stop, carry, history, names=names, number=number):
                if number == 0 and not first_update.found:
                    first_update(jax.tree.map(lambda x: x[0], carry[0]))
                for own, of in zip(history.T, names, strict=True):
                    check_losses(own, stop - len(history), _ADVICE, of=of)
                done = number * method.steps + stop
                report("steps", done, len(groups) * method.steps)

            (ends, _), history = self._run(
                *(method, started, self.how, group, method.steps, on_chunk),
                first_alone=number == 0 and not first_update.found,
            )
            ends = jax.device_get(ends)
            for place in range(min(width, count - group[0])):
                own = jax.tree.map(lambda x, place=place: x[place].copy(), ends)
                check_parameters(own, _ADVICE, of=names[place])
                params.append(own)
                losses.append(history[:, place])
        if sum(map(tree_bytes, params)) <= SHARE * free_memory(1):
            params = jax.tree.map(jnp.asarray, params)
        return list(zip(params, losses, strict=True))

    def _chosen(self, group) -> list[Relabelled]:
        """Those past the last are copies of it."""
        last = len(self._requests) - 1
        return [self._requests[min(number, last)] for number in group]

    def _start(self, method) -> tuple[DescentStep, PyTree, PyTree]:
        """The step of a single request, its first carry, and its constants."""
        size = max(min(len(r.rows), method.batch_size) for r in self._requests)
        one, images = self._requests[0], self._images
        return begin(
            self._classifier,
            jax.ShapeDtypeStruct((size, *images.shape[1:]), jnp.result_type(images)),
            jax.ShapeDtypeStruct(
                (size, *one.targets.shape[1:]), jnp.result_type(one.targets)
            ),
            method.optimizer(one.projection),
            key=self._augment_key,
            loss=cross_entropy,
            augment=augmentation.by_name[method.augment],
        )

    def _run(
        self, method, started, how, group, steps, on_chunk=None, first_alone=False
    ):
        """Some steps of the requests in `group`."""
        single, (params, state), constants = started
        chosen = self._chosen(group)
        states = [method.optimizer(r.projection).init(params) for r in chosen]
        stacked = jax.tree.map(
            lambda like, *own: np.stack([np.asarray(x, like.dtype) for x in own]),
            *(state, *states),
        )
        params = jax.tree.map(
            lambda x: np.broadcast_to(x, (len(chosen), *np.shape(x))), params
        )
        rows = self._rows(chosen, method.batch_size, single.size)
        return run_steps(
            StackedStep(single, how, self._mesh),
            parallel.place_rows((params, stacked), self._mesh),
            parallel.place_whole(constants, self._mesh),
            steps=steps,
            feed=lambda *steps: parallel.place_cut(rows(*steps), self._mesh, 1),
            chunk=self._chunk(single, len(group)),
            first_alone=first_alone,
            on_chunk=on_chunk,
        )

    def _chunk(self, single, count) -> int:
        return chunk_length(count * single.size * self._images[:1].size * 4)

    def _rows(self, chosen, batch_size, size) -> Callable[[int, int], PyTree]:
        """Minibatches `[steps, requests, size]`, in the order that each has alone.

        A request of fewer samples fills its minibatches up with images that weigh
        nothing.
        """
        sizes = [min(len(r.rows), batch_size) for r in chosen]
        orders = [
            minibatches(self._order_key, len(r.rows), own)
            for r, own in zip(chosen, sizes, strict=True)
        ]
        weights = np.stack([np.where(np.arange(size) < n, 1 / n, 0) for n in sizes])
        weights = weights.astype(np.float32)

        def rows(first, stop):
            images, targets = [], []
            for request, order in zip(chosen, orders, strict=True):
                places = order(first, stop)
                missing = size - places.shape[1]
                places = np.pad(places, ((0, 0), (0, missing)), mode="edge")
                images.append(self._images[request.rows[places]])
                targets.append(request.targets[places])
            steps = np.broadcast_to(weights, (stop - first, *weights.shape))
            return np.stack(images, 1), np.stack(targets, 1), steps

        return rows

    def _width(self, method, started, how) -> int:
        """How many requests one step takes, over all devices: as even as may be.

        All, or in turns so many that half of the memory that is free now holds them.
        """
        if how == "one by one":
            return self._devices
        single, carry, constants = started
        rows = self._rows(self._requests[:1], method.batch_size, single.size)(0, 1)
        row = jax.tree.map(lambda x: x[0, 0], rows)

        def needed(count: int) -> int:
            def many(x):
                return jax.ShapeDtypeStruct((count, *np.shape(x)), x.dtype)

            return program_bytes(
                StackedStep(single, how),
                jax.tree.map(many, carry),
                constants,
                jax.tree.map(many, row),
                chunk=self._chunk(single, count * self._devices),
            )

        own = -(-len(self._requests) // self._devices)
        free = free_memory(self._devices)
        limit, whole = SHARE * free, needed(own)
        if whole > limit:
            one = needed(1) if own > 1 else whole
            if one > free:
                msg = (
                    f"A step of one request takes {one:,} bytes of a device, which has "
                    f"{free:,} free: lower the method's batch_size, now "
                    f"{method.batch_size}."
                )
                raise ValueError(msg)
            each = max(1, (whole - one) / max(1, own - 1))
            room = max(1, int((limit - one) / each) + 1)
            own = -(-own // -(-own // room))
        return own * self._devices

    def _fastest(self, method, started) -> str:
        """How to compute a step of all requests: by rule on a CPU, else measured.

        `benchmarks/sweep.py`: on a CPU a loop makes gradients of convolutions slow, and
        so does vmap, which turns convolutions of many kernels into grouped ones.
        """
        if parallel.loops_are_slow() or len(self._requests) <= self._devices:
            return "one by one"
        for how in ("vmap", "map"):
            taken = []
            group = np.arange(self._width(method, started, how))
            rounds = -(-len(self._requests) // len(group))
            # The first time compiles.
            for _ in range(3):
                start = time.perf_counter()
                ends = self._run(method, started, how, group, _TIMED_STEPS)
                jax.block_until_ready(ends)
                taken.append((time.perf_counter() - start) / _TIMED_STEPS)
            self.step_seconds[how] = rounds * min(taken)
        return min(self.step_seconds, key=self.step_seconds.__getitem__)
