"""What a step in weights did to the loss, beside what its first two derivatives say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.checks import check_count, check_labels
from jaxunlearn.classifier.classifier import Classifier, check_classifier, check_images
from jaxunlearn.metrics.barrier import between
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.metrics.shadows import same_network
from jaxunlearn.tasks import Data, check_data


@dataclasses.dataclass(frozen=True)
class LossChange:
    """Changes of a mean cross-entropy, in nats.

    Attributes:
      actual: what it changed by.
      first_order: what the gradient says.
      second_order: what the curvature along the step adds.
    """

    actual: float
    first_order: float
    second_order: float

    @property
    def remainder(self) -> float:
        """What neither says."""
        return self.actual - self.first_order - self.second_order


def loss_change(
    before: Classifier, after: Classifier, data: Data, *, batch_size: int = 256
) -> LossChange:
    """How the loss changes from one model to another, and its expansion in the step.

        L(w + d) - L(w),   d . grad L(w),   d . hess L(w) d / 2

    A projection off the inputs of retained data makes the first of these terms of the
    retained loss vanish; whether the second may be neglected is what this measures.
    State of floating point (statistics of BatchNorm) is part of the step.

    Args:
      before: such as the original.
      after: of the same network, such as the unlearned one.
      data: labelled samples, such as the retained ones.
      batch_size: images at a time.

    Raises:
      ValueError: two networks, no sample, a label that does not exist.
      FloatingPointError: a loss or a derivative is not finite.

    Source: second-order error is an open question of UNSC (arXiv 2404.13588).

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> ends = [{"kernel": s * jnp.eye(2), "bias": jnp.zeros(2)} for s in (1.0, 1.1)]
    >>> ends = [ju.freeze(model, {"params": {"layers_1": end}}) for end in ends]
    >>> data = Data(np.eye(2, dtype=np.float32).reshape(2, 1, 2, 1), [0, 1])
    >>> found = loss_change(*ends, data)
    >>> [round(v, 4) for v in (found.actual, found.first_order, found.second_order)]
    [-0.0259, -0.0269, 0.001]
    """
    check_classifier(before, "before")
    check_classifier(after, "after")
    same_network((before, after))
    check_data("data", data)
    check_count("batch_size", batch_size)
    if not len(data):
        msg = "data hold no sample, and a loss is a mean over samples."
        raise ValueError(msg)
    k = num_classes(before, data.images)
    check_labels("labels of data", data.labels, len(data), k)
    images, labels = check_images(data.images, before.preprocess), data.labels
    n, total = len(data), np.zeros(3)
    batch_size = min(batch_size, 1 << (n - 1).bit_length())
    for start in range(0, n, batch_size):
        # The last batch is filled up, and what fills it weighs nothing.
        rows = np.arange(start, start + batch_size)
        weights = (rows < n) / n
        rows = np.minimum(rows, n - 1)
        given = images[rows], labels[rows], jnp.float32(weights)
        total += np.asarray(_expansion(before, after, *given), np.float64)
    if not np.isfinite(total).all():
        msg = (
            f"The loss changes by {total[0]} and its derivatives along the step are "
            f"{total[1]} and {2 * total[2]}: a model that has diverged has none."
        )
        raise FloatingPointError(msg)
    return LossChange(*map(float, total))


@jax.jit
def _expansion(before, after, images, labels, weights):
    """Of a weighted sum of losses its change, slope and half its curvature."""

    def loss(t):
        log_p = jax.nn.log_softmax(between(before, after, t)(images))
        return -weights @ jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]

    # Backwards twice: a network may have rules of its own for that direction only.
    slope, curvature = jax.value_and_grad(jax.grad(loss))(jnp.float32(0))
    return loss(jnp.float32(1)) - loss(jnp.float32(0)), slope, curvature / 2
