"""Running statistics of normalisation, taken again where weights have changed."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.checks import check_count, check_key
from jaxunlearn.classifier.classifier import Classifier, check_classifier

# Images that tell how a state moves.
PROBED = 8
_LARGE = 2.0**20


def refresh_statistics(
    classifier: Classifier,
    images: Array | np.ndarray,
    *,
    key: Array | None,
    batch_size: int = 256,
) -> Classifier:
    """The classifier with the statistics of these images in place of its running ones.

        s = mean over batches of b,   s' = m s + (1 - m) b

    A network in training mode moves its state from `s` to `s'`, `b` the statistics of
    the batch and `m` its momentum. What a few images make of states of 0 and of large
    numbers tells the momentum of a leaf; what each batch makes of 0 then tells `b`. A
    leaf of integers or keys, and one that only grows, such as a counter, stays. Whole
    batches count, all of one size; parameters do not change.

    Args:
      classifier: of any network that has `apply_train`.
      images: as the classifier takes them, at least one.
      key: for dropout, which is on; None turns it off, so that statistics are those
        that the network meets in inference. Where dropout stands before normalisation,
        as in UNSC's AlexNet, its running statistics are others.
      batch_size: images at a time; all of them if there are fewer.

    Raises:
      TypeError: `key` is no key, or the network has no training mode.
      flax.errors.InvalidRngError: `key` is None, and the network draws random numbers
        for something else than `Dropout`.
      ValueError: no images, no positive `batch_size`, or a state that moves otherwise,
        such as that of spectral normalisation.

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
    if key is not None:
        check_key(key)
    batch_size = check_count("batch_size", batch_size)
    if not len(images):
        msg = "images are empty: give some to take the statistics of."
        raise ValueError(msg)
    if not jax.tree.leaves(classifier.state):
        return classifier
    size = min(batch_size, len(images))
    momenta, total = _momenta(classifier, images[:PROBED], key), None
    batches = len(images) // size
    for number in range(batches):
        batch = classifier.prepare(images[number * size : (number + 1) * size])
        own = None if key is None else jax.random.fold_in(key, number)
        moved = _moved(classifier, batch, own, 0.0)
        values = [np.asarray(x, np.float64) for x in jax.tree.leaves(moved)]
        total = values if total is None else list(map(np.add, total, values))

    def solve(old, momentum, total):
        if momentum is None:
            return old
        return jnp.asarray(total / batches / (1 - momentum), old.dtype)

    leaves, structure = jax.tree.flatten(classifier.state)
    new = map(solve, leaves, momenta, total)
    return classifier.replace(state=jax.tree.unflatten(structure, new))


def _momenta(classifier, images, key) -> list[float | None]:
    """Of every state leaf; None where it stays."""
    images = classifier.prepare(images)
    # Far above most statistics, beside which a state of 1 would lose its digits.
    zero, one, two = (_moved(classifier, images, key, v * _LARGE) for v in (0, 1, 2))
    paths = jax.tree_util.tree_leaves_with_path(classifier.state)
    parts = zip(*map(jax.tree.leaves, (zero, one, two)), strict=True)
    return [
        _momentum(path_name(path), *values) if _moves(leaf) else None
        for (path, leaf), values in zip(paths, parts, strict=True)
    ]


def _momentum(name, *values) -> float | None:
    zero, one, two = (np.asarray(x, np.float64) / _LARGE for x in values)
    first, second = float((one - zero).mean()), float((two - one).mean())
    if not (abs(first - second) < 1e-3 and -1e-3 < first < 1 + 1e-3):
        msg = (
            f"The state at {name} is no running average, m s + (1 - m) b: by one batch "
            f"0, {_LARGE:g} and {2 * _LARGE:g} become {_LARGE * zero.mean():.3g}, "
            f"{_LARGE * one.mean():.3g} and {_LARGE * two.mean():.3g} (means). Only "
            "networks whose state are such averages can have statistics taken again."
        )
        raise ValueError(msg)
    # As it was written; what is left is rounding, which counts where m is near 1.
    momentum = round((first + second) / 2, 6)
    return None if momentum >= 1 else max(momentum, 0.0)


@jax.jit
def _moved(classifier, images, key, value) -> PyTree:
    """The state after a batch, where all of it was `value`."""

    # In half precision no momentum could be told.
    def fill(leaf):
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        return jnp.full(leaf.shape, value, dtype)

    state = jax.tree.map(lambda s: fill(s) if _moves(s) else s, classifier.state)
    given = classifier.params, state, images, key
    after = classifier.network.apply_train(*given)[1]
    # Of keys and counters nothing, since sums over batches are taken.
    return jax.tree.map(lambda s: s if _moves(s) else jnp.zeros(()), after)


def _moves(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
