"""How many requests, and how many results, a device's memory holds at once."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn import parallel
from jaxunlearn.methods.stacked_step import StackedStep
from jaxunlearn.nullspace.memory import SHARE, tree_bytes
from jaxunlearn.planning.costs import program_cost


def requests_at_once(
    step: StackedStep,
    carry: PyTree,
    constants: PyTree,
    row: PyTree,
    requests: int,
    devices: int,
) -> int:
    """How many requests each device computes together, as even a share as may be.

    All that are its own, or in turns so many that half of the memory that is free now
    holds their parameters and optimizer states twice, a minibatch of each, and the
    intermediate results of a step.

    Args:
      step: of several requests.
      carry: parameters and optimizer state of one request, or their shapes.
      constants: what all have in common.
      row: a minibatch of one request, or its shapes.
      requests: how many there are.
      devices: how many share them.
    """
    own = -(-requests // devices)
    step = StackedStep(step.augment, step.update, step.how, None)

    def needed(count: int) -> float:
        held, rows = (_stacked(tree, count) for tree in (carry, row))
        cost = program_cost(step, held, constants, np.int32(0), rows)
        return cost.held + 2 * tree_bytes(held) + tree_bytes(rows)

    limit = SHARE * parallel.free_memory(devices)
    whole = needed(own)
    if whole <= limit or own == 1:
        return own
    one = needed(1)
    each = (whole - one) / (own - 1)
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


def _stacked(tree: PyTree, count: int) -> PyTree:
    """The shapes of so many of these."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *np.shape(x)), x.dtype), tree
    )
