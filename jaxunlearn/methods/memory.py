"""How many requests, and how many results, a device's memory holds at once."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxunlearn import parallel
from jaxunlearn.nullspace.memory import SHARE, tree_bytes


def requests_at_once(needed: Callable[[int], int], requests: int, devices: int) -> int:
    """How many requests each device computes together, as even a share as may be.

    All that are its own, or in turns so many that half of the memory that is free now
    holds them. `needed` says what a program for so many takes of a device.
    """
    own = -(-requests // devices)
    limit = SHARE * parallel.free_memory(devices)
    whole = needed(own)
    if whole <= limit or own == 1:
        return own
    one = needed(1)
    each = max(1, (whole - one) / (own - 1))
    room = max(1, int((limit - one) / each) + 1)
    rounds = -(-own // room)
    return -(-own // rounds)


def on_device_if_they_fit(trees: Sequence[PyTree]) -> list[PyTree]:
    """Arrays of the host on the default device, or all as they are.

    They fit where half of the memory that is free now holds them.
    """
    if sum(map(tree_bytes, trees)) > SHARE * parallel.free_memory(1):
        return list(trees)
    return jax.tree.map(jnp.asarray, list(trees))
