"""How far apart the output distributions of two classifiers are, on the same samples.

Probabilities are `[n, k]`, a row a sample; a value is the mean over samples of a sum
over classes. Everything is traceable and in nats; divide by log 2 for bits.
The target of a distance between an unlearned and a retrained model is that between two
retrained ones, not 0.
"""

from typing import Any

import jax.numpy as jnp
from jax.scipy.special import rel_entr, xlogy
from jaxtyping import Array, Float

from jaxunlearn.checks import check_choice


def kl_divergence(p: Any, q: Any, *, floor: float = 1e-30) -> Float[Array, ""]:
    """The Kullback-Leibler divergence KL(p || q), in nats.

        mean_x sum_c p_c log(p_c / q_c)

    Args:
      p: probabilities, such as the retrained model's.
      q: probabilities of the other model.
      floor: the least that q counts as, so that a class with q = 0 costs a finite
        amount; a class with p = 0 costs nothing.

    Raises:
      TypeError: either is not floating point.
      ValueError: shapes differ, are not `[n, k]`, or hold no sample.

    >>> p, q = jnp.array([[0.7, 0.2, 0.1]]), jnp.array([[0.4, 0.25, 0.35]])
    >>> round(float(kl_divergence(p, q)), 6)
    0.221826
    """
    p, q = _pair(p, q)
    return rel_entr(p, jnp.maximum(q, floor)).sum(axis=1).mean()


def js_divergence(p: Any, q: Any, *, variant: str = "exact") -> Float[Array, ""]:
    """The Jensen-Shannon divergence, in nats: symmetric, in [0, log 2].

        mean_x [KL(p || m) + KL(q || m)] / 2,   m = (p + q) / 2

    Args:
      p: probabilities of one model.
      q: probabilities of the other.
      variant: "exact", or "as-coded:bad-teaching" (also of selective-synaptic-dampening
        and SUPREME), which swaps the arguments and averages over classes too: 6 times
        too small with 10 classes, 63 times with 100.

    Raises:
      TypeError: as for `kl_divergence`.
      ValueError: as for `kl_divergence`, or there is no such variant.

    >>> p, q = jnp.array([[0.7, 0.2, 0.1]]), jnp.array([[0.1, 0.3, 0.6]])
    >>> round(float(js_divergence(p, q)), 6)
    0.230645
    """
    return js_by_sample(p, q, variant=variant).mean()


def js_by_sample(p: Any, q: Any, *, variant: str = "exact") -> Float[Array, " n"]:
    """`js_divergence` of each sample by itself.

    Raises:
      TypeError: as for `js_divergence`, like ValueError.

    >>> p, q = jnp.array([[0.7, 0.2, 0.1]]), jnp.array([[0.1, 0.3, 0.6]])
    >>> [round(float(value), 6) for value in js_by_sample(p, q)]
    [0.230645]
    """
    check_choice("variant", variant, ("exact", "as-coded:bad-teaching"))
    p, q = _pair(p, q)
    middle = (p + q) / 2
    if variant == "exact":
        return (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / 2
    return (rel_entr(middle, p) + rel_entr(middle, q)).mean(axis=1) / 2


def total_variation_distance(p: Any, q: Any) -> Float[Array, ""]:
    """The total variation distance, in [0, 1].

        mean_x 1/2 sum_c |p_c - q_c|

    Raises:
      TypeError: as for `kl_divergence`, like ValueError.

    >>> p, q = jnp.array([[0.7, 0.2, 0.1]]), jnp.array([[0.1, 0.3, 0.6]])
    >>> round(float(total_variation_distance(p, q)), 6)
    0.6
    """
    p, q = _pair(p, q)
    return (jnp.abs(p - q).sum(axis=1) / 2).mean()


def activation_distance(p: Any, q: Any, *, variant: str = "mean") -> Float[Array, ""]:
    """The mean Euclidean distance between probability vectors.

        mean_x |p - q|_2

    Args:
      p: probabilities of one model.
      q: probabilities of the other.
      variant: "mean", or "as-coded:supreme-unlearning", the root of the mean square.

    Raises:
      TypeError: as for `kl_divergence`.
      ValueError: as for `kl_divergence`, or there is no such variant.

    Source: Golatkar et al. (arXiv 1911.04933); selective synaptic dampening.

    >>> p, q = jnp.array([[0.7, 0.2, 0.1]]), jnp.array([[0.1, 0.3, 0.6]])
    >>> round(float(activation_distance(p, q)), 6)
    0.787401
    """
    check_choice("variant", variant, ("mean", "as-coded:supreme-unlearning"))
    p, q = _pair(p, q)
    squares = jnp.square(p - q).sum(axis=1)
    return jnp.sqrt(squares).mean() if variant == "mean" else jnp.sqrt(squares.mean())


def zrf(
    p: Any,
    p_random: Any,
    *,
    variant: str = "exact",
) -> Float[Array, ""]:
    """Zero retrain forgetting: likeness to randomly initialised networks.

        1 - mean_x JS(p, p_random),   in [1 - log 2, 1]

    Args:
      p: the unlearned model's probabilities on forget samples.
      p_random: those of a network with random weights, or of several (a list), over
        which the value is averaged.
      variant: as for `js_divergence`.

    Raises:
      TypeError: as for `js_divergence`, like ValueError.

    Source: Chundawat et al., arXiv 2205.08096. Saturates near 1: judge it by the
    retrained model's.

    >>> p, q = jnp.array([[0.7, 0.2, 0.1]]), jnp.array([[0.1, 0.3, 0.6]])
    >>> round(float(zrf(p, q)), 6)
    0.769355
    """
    several = p_random if isinstance(p_random, list | tuple) else [p_random]
    if not several:
        msg = "p_random is empty: give the probabilities of at least one network."
        raise ValueError(msg)
    values = [js_divergence(p, other, variant=variant) for other in several]
    return 1 - jnp.stack(values).mean()


def completeness(p: Any, q: Any) -> Float[Array, ""]:
    """The share of samples of which both models say the same class.

        mean_x 1[argmax p = argmax q]

    The target is the value of two retrained models, not 1. Logits will do, too.

    Raises:
      TypeError: as for `kl_divergence`, like ValueError.

    >>> p, q = jnp.array([[0.7, 0.3], [0.2, 0.8]]), jnp.array([[0.6, 0.4], [0.9, 0.1]])
    >>> float(completeness(p, q))
    0.5
    """
    p, q = _pair(p, q)
    return (p.argmax(axis=1) == q.argmax(axis=1)).mean()


def label_histogram(p: Any) -> Float[Array, " k"]:
    """The share of samples that are taken for each class.

    On the forgotten classes' test samples it shows where they went; compare two with
    half the sum of absolute differences, their total variation distance.

    Raises:
      TypeError: `p` is not floating point.
      ValueError: it is not `[n, k]`, or holds no sample.

    >>> label_histogram(jnp.array([[0.7, 0.3], [0.2, 0.8]])).tolist()
    [0.5, 0.5]
    """
    p = _probabilities("p", p)
    return jnp.zeros(p.shape[1]).at[p.argmax(axis=1)].add(1 / p.shape[0])


def entropy(p: Any) -> Float[Array, " n"]:
    """The entropy of each row, in nats.

        -sum_c p_c log p_c

    Raises:
      TypeError: `p` is not floating point.
      ValueError: it is not `[n, k]`, or holds no sample.

    >>> entropy(jnp.array([[0.7, 0.2, 0.1]]))
    Array([0.80181855], dtype=float32)
    """
    p = _probabilities("p", p)
    return -xlogy(p, p).sum(axis=1)


def _pair(p, q):
    p, q = _probabilities("p", p), _probabilities("q", q)
    if p.shape != q.shape:
        msg = (
            "p and q must be probabilities of the same samples and classes; their "
            f"shapes are {p.shape} and {q.shape}."
        )
        raise ValueError(msg)
    return p, q


def _probabilities(name, values):
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        msg = f"{name} must be floating point, [n, k]; they are {values.dtype}."
        raise TypeError(msg)
    if values.ndim != 2 or 0 in values.shape:
        msg = f"{name} must be [n, k], a row for each sample; their shape is {values.shape}."  # noqa: E501
        raise ValueError(msg)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
