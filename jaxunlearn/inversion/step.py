"""One step of the optimisation over images, on one device or many."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import parallel
from jaxunlearn.checks import as_number, short
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.inversion.objective import (
    ImagePrior,
    References,
    objective,
    term_values,
)

# One object, so that programs are shared. The rate is not part of it.
ADAM = optax.scale_by_adam()

ScheduleName = Literal["cosine", "multi-step", "constant"]

# Factors of the learning rate, for a number of steps.
SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "multi-step": lambda steps: optax.piecewise_constant_schedule(
        1.0, {-(-steps // 2): 0.1, -(-3 * steps // 4): 0.1}
    ),
    "constant": lambda steps: optax.constant_schedule(1.0),
}


@dataclasses.dataclass(frozen=True)
class ImageAdam:
    """Adam over images: its rate is one of the bounds' width, and falls.

    Neither rate nor schedule is part of the compiled program.

    Attributes:
      learning_rate: in units of the bounds' width (of 2 without bounds).
      schedule: "cosine" falls to 0 at the end, "multi-step" to a tenth after one half
        and to a hundredth after three quarters of the steps, "constant" not at all; or
        an optax schedule, a function from the step to a factor.

    Raises:
      ValueError: the rate is not positive, or there is no such schedule.
    """

    learning_rate: float = 0.1
    schedule: ScheduleName | optax.Schedule = "cosine"

    def __post_init__(self):
        rate = as_number(self.learning_rate)
        if rate is None or not 0 < rate < np.inf:
            msg = f"learning_rate must be positive and finite; it is {short(self.learning_rate)}."  # noqa: E501
            raise ValueError(msg)
        named = isinstance(self.schedule, str) and self.schedule in SCHEDULES
        if not (callable(self.schedule) or named):
            msg = f"schedule must be one of {', '.join(SCHEDULES)}, or a function of the step; it is {short(self.schedule)}."  # noqa: E501
            raise ValueError(msg)

    def rates(self, steps: int) -> Float[np.ndarray, " steps"]:
        """The learning rate of each step.

        Raises:
          ValueError: the schedule returns no number, or one that is not finite.

        >>> ImageAdam(1.0, "multi-step").rates(4).round(3).tolist()
        [1.0, 1.0, 0.1, 0.01]
        """
        factor = self.schedule
        if not callable(factor):
            factor = SCHEDULES[factor](steps)
        # Step by step, since a function need not take arrays.
        with jax.enable_x64(True):
            numbers = [as_number(factor(i)) for i in range(steps)]
        factors = np.array(numbers, np.float64)  # None becomes NaN
        if not np.isfinite(factors).all():
            first = int(np.argmin(np.isfinite(factors)))
            msg = f"schedule must return finite factors; at step {first} it returns {factors[first]}."  # noqa: E501
            raise ValueError(msg)
        return self.learning_rate * factors


class Carry(NamedTuple):
    """What a step changes."""

    images: Float[Array, "n h w c"]  # in pixel space
    optimizer: PyTree  # its state
    running: Array  # finite so far; once it is not, nothing moves


class Constants(NamedTuple):
    """What no step changes."""

    classifier: Classifier
    references: References
    labels: Int[Array, " n"] | None
    key: Array  # of the batch's steps
    low: Array  # bound of the pixels
    high: Array


@dataclasses.dataclass(frozen=True)
class Step:
    """One step; equal steps share a compiled program."""

    optimizer: optax.GradientTransformation  # over images
    prior: ImagePrior  # with numbers for all weights
    jitter: tuple[int, int]  # rolls by up to so many pixels down and right
    mesh: Mesh | None  # the devices that share the images
    transform: parallel.Transform  # what runs on each of them

    def __call__(
        self, carry: Carry, constants: Constants, index: Array, rate: Array
    ) -> tuple[Carry, tuple[dict[str, Array], Array]]:
        """The next images; the terms before the step, and whether all is finite."""
        gradients, terms = self._gradients(carry.images, constants, index)
        updates, state = self.optimizer.update(gradients, carry.optimizer, carry.images)
        updates = rate.astype(updates.dtype) * updates
        images = optax.apply_updates(carry.images, updates)
        images = jnp.clip(images, constants.low, constants.high)
        finite = jnp.isfinite(terms["total"]) & jnp.isfinite(images).all()
        running = carry.running & finite
        images, state = jax.tree.map(
            functools.partial(jnp.where, running), (images, state), carry[:2]
        )
        return Carry(images, state, running), (terms, running)

    def _gradients(self, images, constants, index):
        """Of the objective with respect to images, and the terms."""
        rows = images, constants.labels
        shared = constants._replace(labels=None), index
        if self.mesh is None:
            return self._share(rows, shared)
        axes = (0, None)
        run = parallel.map_shards(self._share, self.mesh, axes, axes, self.transform)
        return run(rows, shared)

    def _share(self, rows, shared):
        """On one device: its share of the batch."""
        (images, labels), (constants, index) = rows, shared
        axis = None if self.mesh is None else parallel.axis_of(self.mesh)
        shares = 1 if self.mesh is None else self.mesh.size
        # The same draws on every device, which hold parts of one batch.
        keys = jax.random.split(jax.random.fold_in(constants.key, index))
        draws = zip(keys, self.jitter, strict=True)
        shift = jnp.stack([jax.random.randint(k, (), -n, n + 1) for k, n in draws])

        def mean_objective(images):
            if any(self.jitter):
                images = jnp.roll(images, shift, axis=(1, 2))
            values = term_values(
                constants.classifier, images, labels, constants.references, axis
            )
            losses = objective(values, self.prior)
            # Devices add up: each brings its share of the mean over the batch.
            return losses.mean() / shares, {"total": losses, **values}

        gradients, terms = jax.grad(mean_objective, has_aux=True)(images)
        terms = {name: value.mean() for name, value in terms.items()}
        return gradients, terms if axis is None else lax.pmean(terms, axis)
