"""What a step minimises and on which images: functions of the caller's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Loss = Callable[[Array, Array], Array]  # (logits, targets) -> Float[n]
Augment = Callable[[Array, Array], Array]  # (key, images) -> images


def cross_entropy(logits: Float[Array, "n k"], targets: Array) -> Float[Array, " n"]:
    """Softmax cross-entropy, `-sum_c targets_c log softmax(logits)_c`, in nats.

    In at least float32. Targets are Int[n] labels or Float[n k] probabilities; where a
    probability is 0 the logit may be minus infinity.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    log_probabilities = jax.nn.log_softmax(logits)
    if targets.ndim == 1:
        return -jnp.take_along_axis(log_probabilities, targets[:, None], 1)[:, 0]
    # `optax.losses.safe_softmax_cross_entropy` has a derivative of its own, for which
    # `as_program` could not tell that two losses are equal.
    return -(targets * jnp.where(targets > 0, log_probabilities, 0)).sum(axis=1)
