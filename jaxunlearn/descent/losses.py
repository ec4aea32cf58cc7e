"""What a step minimises and on which images: functions of the caller's, checked."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxunlearn.descent.traced import Traced, trace

Loss = Callable[[Array, Array], Array]  # (logits, targets) -> Float[n]
Augment = Callable[[Array, Array], Array]  # (key, images) -> images


def cross_entropy(logits: Float[Array, "n k"], targets: Array) -> Float[Array, " n"]:
    """Softmax cross-entropy, `-sum_c targets_c log softmax(logits)_c`, in nats.

    Computed in at least float32.

    Args:
      logits: of each sample.
      targets: Int[n] labels or Float[n k] probabilities. Where a probability is 0 the
        logit may be minus infinity.

    >>> print(cross_entropy(jnp.zeros((1, 2)), jnp.array([1])))
    [0.6931472]
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if targets.ndim == 1:
        log_probabilities = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_probabilities, targets[:, None], 1)[:, 0]
    return optax.losses.safe_softmax_cross_entropy(logits, targets)


def _no_augment(key, images):
    del key
    return images


def trace_augment(
    augment: Augment | None, key: Array, batch: jax.ShapeDtypeStruct
) -> Traced:
    """`augment` (None: leave the images alone) as a value, for batches like `batch`.

    Raises:
      ValueError: it does not return images of the same type, `[n, h, w, c]`.
    """
    traced = trace(augment or _no_augment, key, batch)
    got = traced.shapes
    fine = isinstance(got, jax.ShapeDtypeStruct) and got.ndim == 4
    if not (fine and got.shape[0] == batch.shape[0] and got.dtype == batch.dtype):
        msg = (
            "augment must return images as it is given them, "
            f"{batch.dtype}{list(batch.shape)}; it returned {_describe(got)}."
        )
        raise ValueError(msg)
    return traced


def trace_loss(
    loss: Loss, logits: jax.ShapeDtypeStruct, targets: jax.ShapeDtypeStruct
) -> Traced:
    """`loss` as a value, for logits and targets like these.

    Raises:
      ValueError: it does not return one float for each sample.
    """
    traced = trace(loss, logits, targets)
    got, n = traced.shapes, logits.shape[0]
    fine = isinstance(got, jax.ShapeDtypeStruct) and got.shape == (n,)
    if not (fine and jnp.issubdtype(got.dtype, jnp.floating)):
        msg = (
            f"loss must return one float for each of the {n} samples of a minibatch, "
            f"not their mean; it returned {_describe(got)}."
        )
        raise ValueError(msg)
    return traced


def _describe(shapes):
    described = jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", shapes)
    return described if isinstance(described, str) else repr(described)
