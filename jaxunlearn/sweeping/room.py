"""How many requests a device's memory holds at once."""

import jax
import numpy as np
from jaxtyping import PyTree

from jaxunlearn import parallel
from jaxunlearn.planning.costs import program_cost
from jaxunlearn.sweeping.step import StackedStep

# Of what is free: the rest is for what the estimate leaves out, and for others.
_SHARE = 0.5


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
        return cost.held + 2 * _bytes(held) + _bytes(rows)

    limit = _SHARE * parallel.free_memory(devices)
    whole = needed(own)
    if whole <= limit or own == 1:
        return own
    one = needed(1)
    each = (whole - one) / (own - 1)
    room = max(1, int((limit - one) / each) + 1)
    rounds = -(-own // room)
    return -(-own // rounds)


def _stacked(tree: PyTree, count: int) -> PyTree:
    """The shapes of so many of these."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *np.shape(x)), x.dtype), tree
    )


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
