"""What changes from step to step: the learning rate, and how fine images are."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

ScheduleName = Literal["cosine", "multi-step", "constant"]

# A name, or a function from the step to a factor of the learning rate.
Schedule = ScheduleName | Callable[[int], float]


def learning_rates(
    rate: float, schedule: Schedule, steps: int
) -> Float[np.ndarray, " steps"]:
    """The learning rate of each step.

    Args:
      rate: at the beginning.
      schedule: "cosine" falls to 0 at the end, "multi-step" to a tenth after one half
        and to a hundredth after three quarters of the steps, "constant" not at all; or
        a function from the step to a factor.
      steps: how many.

    Raises:
      ValueError: the rate is not positive, there is no such schedule, or it returns a
        factor that is not finite.

    >>> learning_rates(1.0, "multi-step", 4).round(3).tolist()
    [1.0, 1.0, 0.1, 0.01]
    """
    if not (np.isfinite(rate) and rate > 0):
        msg = f"learning_rate must be positive and finite; it is {rate}."
        raise ValueError(msg)
    index = np.arange(steps)
    if callable(schedule):
        factor = np.array([float(schedule(int(i))) for i in index])
        if not np.isfinite(factor).all():
            first = int(np.argmin(np.isfinite(factor)))
            msg = f"schedule must return finite factors; at step {first} it returns {factor[first]}."  # noqa: E501
            raise ValueError(msg)
    elif schedule == "cosine":
        factor = (1 + np.cos(np.pi * index / steps)) / 2
    elif schedule == "multi-step":
        factor = 0.1 ** ((index >= steps / 2).astype(float) + (index >= 3 * steps / 4))
    elif schedule == "constant":
        factor = np.ones(steps)
    else:
        msg = f"schedule must be one of {', '.join(get_args(ScheduleName))}, or a function of the step; it is {schedule!r}."  # noqa: E501
        raise ValueError(msg)
    return rate * factor


def stages(steps: int, coarse: Sequence[int]) -> list[tuple[int, int, int]]:
    """`(first step, step after the last, factor)` of each stage, coarse ones first.

    Stages share the steps evenly; the last is at full resolution.

    Raises:
      ValueError: factors that are not integers above 1 in descending order, or more
        stages than steps.

    >>> stages(100, (4, 2))
    [(0, 33, 4), (33, 66, 2), (66, 100, 1)]
    """
    factors = [*coarse, 1]
    whole = all(isinstance(f, int | np.integer) for f in factors)
    if not whole or any(a <= b for a, b in zip(factors, factors[1:], strict=False)):
        msg = f"coarse must be factors above 1 in descending order, such as (4, 2); it is {tuple(coarse)}."  # noqa: E501
        raise ValueError(msg)
    if len(factors) > steps:
        msg = f"steps must be at least {len(factors)}, one for each of the stages that coarse={tuple(coarse)} asks for; it is {steps}."  # noqa: E501
        raise ValueError(msg)
    ends = [steps * i // len(factors) for i in range(len(factors) + 1)]
    return list(zip(ends, ends[1:], factors, strict=False))


def low_pass(side: int, factor: int) -> Float[np.ndarray, "side side"]:
    """The matrix that shrinks one side of an image by a factor, and grows it again.

    Its rows are convex weights, so that bounds of pixels still hold behind it.

    >>> low_pass(4, 2).sum(axis=1).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    if factor == 1:
        return np.eye(side, dtype=np.float32)
    small = max(1, round(side / factor))
    shrink = jax.image.resize(jnp.eye(side), (small, side), "linear")
    grow = jax.image.resize(jnp.eye(small), (side, small), "linear")
    both = np.asarray(grow, np.float64) @ np.asarray(shrink, np.float64)
    return (both / both.sum(axis=1, keepdims=True)).astype(np.float32)
