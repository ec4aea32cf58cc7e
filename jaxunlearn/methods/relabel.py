"""New labels for the forget set, chosen from a classifier's logits.

Arguments that are concrete are checked in full; under `jit` and `vmap` only shapes,
types and the class numbers are.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxunlearn.checks import check_labels, is_traced
from jaxunlearn.tasks import check_classes


def runner_up_labels(
    logits: Array | np.ndarray,
    labels: Any,
    *,
    exclude: Iterable = (),
) -> Int32[Array, " n"]:
    """The most likely class other than the label: CovarNav's mislabels.

        y'_i = argmax_c { z_ic : c != y_i, c not in exclude }

    Args:
      logits: `[n, k]`.
      labels: the true classes, `[n]`.
      exclude: classes never to choose, such as all those to be forgotten.

    Raises:
      TypeError: logits are not floating point, labels or classes not integers.
      ValueError: shapes do not fit, logits are NaN, a label or class does not exist,
        or some sample has no class left to choose (under `jit` it gets class 0).

    Source: arXiv 2311.12999, section 3.

    >>> logits = jnp.array([[5.0, 1.0, 3.0], [4.0, 9.0, 2.0]])
    >>> runner_up_labels(logits, [0, 1]).tolist()
    [2, 0]
    """
    logits = _check_logits(logits)
    n, k = logits.shape
    exclude = check_classes(exclude, k, name="exclude")
    labels = _check_labels(labels, n, k, exclude)
    own = labels[:, None] == jnp.arange(k)[None, :]
    return _argmax(jnp.where(own, -jnp.inf, _mask(logits, exclude)))


def nearest_retained_labels(
    logits: Array | np.ndarray, forget_classes: Iterable
) -> Int32[Array, " n"]:
    """The most likely retained class: UNSC's pseudo-labels.

        y'_i = argmax_c { z_ic : c not in forget_classes }

    With `forget_classes=()` that is the prediction itself; for sample-wise forgetting
    see `runner_up_labels`.

    Args:
      logits: `[n, k]`.
      forget_classes: classes never to choose.

    Raises:
      TypeError: logits are not floating point, or a class is not an integer.
      ValueError: logits are not `[n, k]` or hold NaN; a class does not exist or is
        given twice; no class is retained.

    Source: arXiv 2404.13588, section 3.

    >>> nearest_retained_labels(jnp.array([[5.0, 1.0, 3.0]]), [0]).tolist()
    [2]
    """
    logits = _check_logits(logits)
    return _argmax(_mask(logits, check_classes(forget_classes, logits.shape[1])))


def random_retained_labels(
    key: Array, n: int, num_classes: int, forget_classes: Iterable
) -> Int32[Array, " n"]:
    """Labels drawn uniformly from the retained classes, independently.

    Raises:
      TypeError: `n`, `num_classes` or a class is not an integer.
      ValueError: `n` is negative; a class does not exist or is given twice; no class
        is retained.

    >>> labels = random_retained_labels(jax.random.key(0), 100, 3, [1])
    >>> sorted(set(labels.tolist()))
    [0, 2]
    """
    forget_classes = check_classes(forget_classes, num_classes)
    if n < 0:
        msg = f"n must be a number of samples, 0 or more; it is {n}."
        raise ValueError(msg)
    retained = [c for c in range(num_classes) if c not in forget_classes]
    return jax.random.choice(key, jnp.array(retained, jnp.int32), (n,))


def retained_probabilities(
    logits: Array | np.ndarray, forget_classes: Iterable
) -> Float[Array, "n k"]:
    """Softmax with the forgotten classes masked out: soft targets, rows sum to 1.

        q_ic = exp(z_ic) / sum_{c' not in forget_classes} exp(z_ic'),  0 if forgotten

    The dtype is that of the logits.

    Raises:
      TypeError: logits are not floating point, or a class is not an integer.
      ValueError: logits are not `[n, k]` or hold NaN; a class does not exist or is
        given twice; no class is retained.

    >>> retained_probabilities(jnp.array([[7.0, 1.0, 1.0]]), [0]).tolist()
    [[0.0, 0.5, 0.5]]
    """
    logits = _check_logits(logits)
    classes = check_classes(forget_classes, logits.shape[1])
    return jax.nn.softmax(_mask(logits, classes), axis=-1)


def _nearest_retained(logits, labels, classes, key):
    del key
    if not classes:
        return runner_up_labels(logits, labels)
    return nearest_retained_labels(logits, classes)


def _random(logits, labels, classes, key):
    count = logits.shape[1]
    if classes:
        return random_retained_labels(key, len(labels), count, classes)
    shift = jax.random.randint(key, labels.shape, 1, count)
    return (jnp.asarray(labels) + shift) % count


def _probabilities(logits, labels, classes, key):
    del key
    if classes:
        return retained_probabilities(logits, classes)
    own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    return jax.nn.softmax(jnp.where(own, -jnp.inf, logits))


# By name: `(logits, labels, forget_classes, key)` to labels `[n]` or probabilities
# `[n, k]`. Where no class is forgotten only a sample's own label is excluded.
RELABELLINGS: dict[str, Callable[..., Array]] = {
    "runner-up": lambda logits, labels, classes, key: runner_up_labels(
        logits, labels, exclude=classes
    ),
    "nearest-retained": _nearest_retained,
    "retained-probabilities": _probabilities,
    "random": _random,
    "true": lambda logits, labels, classes, key: jnp.asarray(labels),
}


def _mask(logits, classes):
    """Logits with -inf at `classes`, and there alone: a masked head has its own."""
    masked = np.isin(np.arange(logits.shape[1]), classes)
    finite = jnp.maximum(logits, jnp.finfo(logits.dtype).min)
    return jnp.where(masked[None, :], -jnp.inf, finite)


def _argmax(logits):
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _check_logits(logits):
    logits = jnp.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        msg = f"logits must be [n, k], a row for each sample; their shape is {logits.shape}."  # noqa: E501
        raise ValueError(msg)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        msg = f"logits must be floating point; they are {logits.dtype}."
        raise TypeError(msg)
    if not is_traced(logits):
        bad = np.isnan(np.asarray(logits)).any(axis=1)
        if bad.any():
            msg = (
                f"logits are not a number in {bad.sum()} of {bad.size} rows, the first "
                f"being row {bad.argmax()}: the classifier has diverged."
            )
            raise ValueError(msg)
    return logits


def _check_labels(labels, n, k, exclude):
    hint = f"The logits have {k} columns."
    labels = check_labels("labels", labels, n, k, hint)
    if n and not is_traced(labels):
        alone = len(exclude) == k - 1 and ~np.isin(labels, exclude)
        if np.any(alone):
            msg = (
                f"exclude {list(exclude)} leaves samples of class "
                f"{labels[alone][0]} no other class to choose: exclude fewer."
            )
            raise ValueError(msg)
    return jnp.asarray(labels, jnp.int32)
