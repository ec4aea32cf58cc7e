"""Running statistics of normalisation, taken again where weights have changed."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxunlearn.checks import check_count, check_key
from jaxunlearn.classifier.classifier import Classifier, check_classifier


def refresh_statistics(
    classifier: Classifier,
    images: Array | np.ndarray,
    *,
    key: Array,
    batch_size: int = 256,
) -> Classifier:
    """The classifier with the statistics of these images in place of its running ones.

        s = mean over batches of b,   s' = m s + (1 - m) b

    A network in training mode moves its state from `s` to `s'`, `b` the statistics of
    the batch and `m` its momentum: what it makes of 0 and of 1 tells both. A state leaf
    that does not move so, such as a counter, stays. Whole batches count, all of one
    size; parameters do not change.

    Args:
      classifier: of any network that has `apply_train`.
      images: as the classifier takes them, at least one.
      key: for dropout, which is on.
      batch_size: images at a time; all of them if there are fewer.

    Raises:
      TypeError: `key` is no key, or the network has no training mode.
      ValueError: no images, or no positive `batch_size`.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> class Normalised(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train=False):
    ...         return nn.BatchNorm(not train)(x.reshape(len(x), -1))
    >>> model, images = Normalised(), np.asarray([1.0, 5.0]).reshape(2, 1, 1, 1)
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> fresh = refresh_statistics(classifier, images, key=jax.random.key(1))
    >>> round(float(fresh.state["batch_stats"]["BatchNorm_0"]["mean"][0]), 3)
    3.0
    """
    check_classifier(classifier)
    check_key(key)
    check_count("batch_size", batch_size)
    if not len(images):
        msg = "images are empty: give some to take the statistics of."
        raise ValueError(msg)
    if not jax.tree.leaves(classifier.state):
        return classifier
    size, total, count = min(batch_size, len(images)), None, len(images) // batch_size
    for number in range(max(count, 1)):
        batch = classifier.prepare(images[number * size : (number + 1) * size])
        zeros, ones = _moved(classifier, batch, jax.random.fold_in(key, number))
        parts = zeros, ones
        total = parts if total is None else jax.tree.map(jnp.add, total, parts)
    return classifier.replace(state=_solved(classifier.state, *total, max(count, 1)))


@jax.jit
def _moved(classifier, images, key):
    """The state after a batch where it was all 0, and all 1."""

    def after(value):
        state = jax.tree.map(
            lambda s: jnp.full_like(s, value) if _moves(s) else s, classifier.state
        )
        given = classifier.params, state, images, key
        return classifier.network.apply_train(*given)[1]

    # Of keys and counters nothing, since sums over batches are taken.
    return tuple(
        jax.tree.map(lambda s: s if _moves(s) else jnp.zeros(()), after(value))
        for value in (0, 1)
    )


def _solved(state, none, one, count):
    def solve(old, a, b):
        momentum = (b - a) / count
        if not _moves(old) or bool(jnp.all(momentum > 1 - 1e-6)):
            return old
        return (a / count / (1 - momentum)).astype(old.dtype)

    return jax.tree.map(solve, state, none, one)


def _moves(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
