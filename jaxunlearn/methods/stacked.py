"""The descent of all requests: stacked, cut over devices, or in turns."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxunlearn import augmentation, parallel
from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.loop import CHUNK, minibatches, run_steps
from jaxunlearn.descent.losses import trace_augment
from jaxunlearn.descent.optimizers import Update, prepare
from jaxunlearn.descent.traced import Opaque, Program
from jaxunlearn.methods.descent import Descent, Progress
from jaxunlearn.methods.memory import requests_at_once
from jaxunlearn.methods.protection import Protection
from jaxunlearn.methods.requests import Request
from jaxunlearn.methods.stacked_step import StackedStep
from jaxunlearn.tasks import Data

# What a step of each way is timed on.
_TIMED_STEPS = 5
_CHUNK_BYTES = 2**28


class Descended(NamedTuple):
    """Where the requests ended.

    Attributes:
      params: of each request, on the host.
      losses: of each request and step.
    """

    params: list[PyTree]
    losses: list[Float[np.ndarray, " steps"]]


class Stack:
    """The requests of a sweep, ready to descend at any learning rate.

    Attributes:
      how: how a step of many requests is computed; chosen by the first descent where it
        is None.
      at_once: how many requests a step computes; likewise.
      step_seconds: what that choice measured.
    """

    def __init__(
        self,
        classifier: Classifier,
        train: Data,
        requests: Sequence[Request],
        protection: Protection,
        *,
        key: Array,
        how: str | None,
        mesh: Mesh | None,
    ):
        self.how: Any = how
        self.at_once = 0
        self.step_seconds: dict[str, float] = {}
        self._classifier, self._requests = classifier, requests
        self._images = np.asarray(train.images)
        self._protection, self._mesh = protection, mesh
        self._order_key, self._augment_key = jax.random.split(key)

    def descend(self, method: Descent, progress: Progress) -> Descended:
        """Every request's steps, as `method.descend` takes them for one.

        Raises:
          FloatingPointError: a loss or a parameter of a request is not finite.
        """
        program = self._program(method)
        if self.how is None:
            self.how, self.step_seconds = self._fastest(program, method)
        step = self._step(program, self.how)
        if not self.at_once:
            self.at_once = self._width(step, program, method)
        width = self.at_once
        starts = range(0, len(self._requests), width)
        total, params, losses = method.steps * len(starts), [], []
        for number, start in enumerate(starts):
            done = number * method.steps
            group = np.arange(start, start + width)

            def tell(stop, carry, history, group=group, done=done):
                del carry
                self._check_losses(stop, history, group)
                progress("steps", done + stop, total)

            (found, _), history = self._run(
                step, program, method, group, method.steps, tell
            )
            found = jax.device_get(found)
            for place, number in enumerate(group[group < len(self._requests)]):
                own = jax.tree.map(lambda x, place=place: x[place].copy(), found)
                self._check_parameters(own, number)
                params.append(own)
                losses.append(history[:, place])
        return Descended(params, losses)

    @property
    def _devices(self) -> int:
        return 1 if self._mesh is None else self._mesh.size

    def _step(self, program, how) -> StackedStep:
        return StackedStep(program.augment, program.update, how, self._mesh)

    def _width(self, step, program, method) -> int:
        """How many requests one call of `step` takes, over all devices."""
        if step.how == "one by one":
            return self._devices
        params, shared = program.shared
        own = jax.tree.map(lambda x: x[0], self._protection.state)
        rows = self._rows(np.arange(1), method, program.size)(0, 1)
        row = jax.tree.map(lambda x: x[0, 0], rows)
        carry, count = (params, (shared, own)), len(self._requests)
        each = requests_at_once(
            step, carry, program.constants, row, count, self._devices
        )
        return each * self._devices

    def _program(self, method: Descent) -> "_Program":
        size = max(min(len(r.rows), method.batch_size) for r in self._requests)
        images = self._images
        dtype = jnp.float32 if images.dtype == jnp.uint8 else images.dtype
        batch = jax.ShapeDtypeStruct((size, *images.shape[1:]), dtype)
        augment = augmentation.by_name[method.augment]
        augmented = trace_augment(augment, self._augment_key, batch)
        protection = self._protection
        one = jax.tree.map(lambda x: jnp.asarray(x[0]), protection.state)
        projection = optax.GradientTransformation(
            lambda params: one, protection.projection.update
        )
        params = self._classifier.params
        logits = jax.eval_shape(self._classifier, augmented.shapes)
        # Weights are float32.
        dtype = jnp.promote_types(logits.dtype, jnp.float32)
        update, consts, state = prepare(method.optimizer(projection), params, dtype)
        constants = (
            self._classifier.replace(params=None),
            self._augment_key,
            (augmented.consts, consts),
        )
        # Only the projection's state differs at the start.
        shared = jax.device_get((params, state[0]))
        return _Program(augmented.program, update, constants, shared, size)

    def _run(self, step, program, method, group, steps, on_chunk=None):
        """Some steps of the requests in `group`, those past the last being copies."""
        chosen = np.minimum(group, len(self._requests) - 1)

        def repeat(x):
            return np.broadcast_to(x, (len(chosen), *np.shape(x)))

        params, shared = jax.tree.map(repeat, program.shared)
        own = jax.tree.map(lambda x: x[chosen], self._protection.state)
        rows = self._rows(chosen, method, program.size)
        bytes_each = len(chosen) * program.size * self._images[:1].size * 4
        return run_steps(
            step,
            parallel.place_rows((params, (shared, own)), self._mesh),
            parallel.place_whole(program.constants, self._mesh),
            steps=steps,
            feed=lambda *steps: parallel.place_columns(rows(*steps), self._mesh),
            chunk=max(1, min(CHUNK, _CHUNK_BYTES // bytes_each)),
            on_chunk=on_chunk,
        )

    def _rows(self, chosen, method, size) -> Callable[[int, int], PyTree]:
        """Minibatches `[steps, requests, size]`, in the order that each has alone.

        A request of fewer samples fills its minibatches up with images that weigh
        nothing.
        """
        requests = [self._requests[number] for number in chosen]
        sizes = [min(len(r.rows), method.batch_size) for r in requests]
        orders = [
            minibatches(self._order_key, len(r.rows), own)
            for r, own in zip(requests, sizes, strict=True)
        ]
        weights = np.stack([np.where(np.arange(size) < n, 1 / n, 0) for n in sizes])
        weights = weights.astype(np.float32)

        def rows(first, stop):
            images, targets = [], []
            for request, order in zip(requests, orders, strict=True):
                places = order(first, stop)
                missing = size - places.shape[1]
                places = np.pad(places, ((0, 0), (0, missing)), mode="edge")
                images.append(self._images[request.rows[places]])
                targets.append(request.targets[places])
            steps = np.broadcast_to(weights, (stop - first, *weights.shape))
            return np.stack(images, 1), np.stack(targets, 1), steps

        return rows

    def _fastest(self, program, method) -> tuple[str, dict[str, float]]:
        """How to compute a step of all requests: by rule on a CPU, else measured.

        `benchmarks/sweep.py`: on a CPU a loop makes gradients of convolutions slow, and
        so does vmap, which turns convolutions of many kernels into grouped ones.
        """
        if parallel.loops_are_slow() or len(self._requests) <= self._devices:
            return "one by one", {}
        seconds = {}
        for how in ("vmap", "map"):
            step, taken = self._step(program, how), []
            group = np.arange(self._width(step, program, method))
            rounds = -(-len(self._requests) // len(group))
            # The first time compiles.
            for _ in range(3):
                start = time.perf_counter()
                jax.block_until_ready(
                    self._run(step, program, method, group, _TIMED_STEPS)
                )
                taken.append((time.perf_counter() - start) / _TIMED_STEPS)
            seconds[how] = rounds * min(taken)
        return min(seconds, key=seconds.__getitem__), seconds

    def _check_losses(self, stop, history, group):
        finite = np.isfinite(history)
        if not finite.all():
            step, place = np.argwhere(~finite)[0]
            number = min(group[place], len(self._requests) - 1)
            msg = (
                f"The loss of forgetting {list(self._requests[number].classes)} is "
                f"{history[step, place]} at step {stop - len(history) + step}, the "
                "first where it is not finite. Lower the learning rate."
            )
            raise FloatingPointError(msg)

    def _check_parameters(self, params, number):
        """The last update has no loss after it that would tell."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if not np.isfinite(leaf).all():
                msg = (
                    f"After the last step of forgetting "
                    f"{list(self._requests[number].classes)} {path_name(path)} holds "
                    "NaN or infinite values, though the loss was finite before it. "
                    "Lower the learning rate."
                )
                raise FloatingPointError(msg)


class _Program(NamedTuple):
    """What all requests' steps have in common."""

    augment: Program | Opaque
    update: Update
    constants: Any
    shared: PyTree
    size: int
