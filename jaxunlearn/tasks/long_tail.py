"""Training data of which some classes have far fewer samples than others."""

import math
from typing import Any

import numpy as np

from jaxunlearn.checks import as_integer, as_number, short
from jaxunlearn.tasks.data import Data, check_data


def long_tailed(data: Data, imbalance: float, *, seed: int = 0) -> Data:
    """Fewer and fewer samples from class to class, down to a share of the first's.

    Of class k of the K that occur, in ascending order of their numbers,

        n_k = floor(n imbalance^(-k / (K - 1))),  k = 0, ..., K - 1,

    samples are kept, at least one, where n is the smallest number that any class has:
    class 0 is the head and class K - 1 the tail. A single class keeps its samples.

    Args:
      data: the samples; the order of those that are kept stays.
      imbalance: how many times as many samples the head has as the tail, at least 1.
      seed: of the NumPy generator that draws which are kept, without replacement.

    Raises:
      TypeError: `data` is no `Data`, `imbalance` no number, `seed` no integer.
      ValueError: `imbalance` is less than 1 or not finite, `seed` negative.

    Source: the exponential profile of Cui, Jia, Lin, Song, Belongie: Class-balanced
    loss based on effective number of samples, arXiv 1901.05555.

    >>> even = Data(np.zeros((30, 8, 8, 1), np.uint8), np.arange(30) % 3)
    >>> np.bincount(long_tailed(even, 10).labels).tolist()
    [10, 3, 1]
    """
    check_data("data", data)
    imbalance = check_imbalance("imbalance", imbalance)
    if as_integer(seed) is None:
        msg = f"seed must be an integer; it is {short(seed)}."
        raise TypeError(msg)
    if seed < 0:
        msg = f"seed must be 0 or more; it is {short(seed)}."
        raise ValueError(msg)
    classes, counts = np.unique(data.labels, return_counts=True)
    generator, kept = np.random.default_rng(seed), np.zeros(len(data), bool)
    for k, c in enumerate(classes):
        share = k / max(len(classes) - 1, 1)
        # The nudge: of 1000 and 1000^(1/3) the quotient is 100, and no less.
        count = math.floor(counts.min() / imbalance**share + 1e-9)
        drawn = generator.permutation(np.flatnonzero(data.labels == c))
        kept[drawn[: max(count, 1)]] = True
    return data.take(kept)


def check_imbalance(name: str, imbalance: Any) -> float:
    """How many times as many samples the head has as the tail."""
    number = as_number(imbalance)
    if number is None:
        msg = f"{name} must be a number; it is {short(imbalance)}."
        raise TypeError(msg)
    if not 1 <= number < math.inf:
        msg = (
            f"{name} must be finite and at least 1, the head's samples over the "
            f"tail's; it is {short(imbalance)}."
        )
        raise ValueError(msg)
    return number
