"""Independent pieces of work, each for one device, shared out."""

import collections
import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.parallel.hardware import linear_algebra_device
from jaxunlearn.parallel.processes import from_first


def spread(
    function: Callable[[Any, jax.Device], Any],
    items: Sequence[Any],
    sizes: Sequence[float],
    mesh: Mesh | None = None,
) -> list[Any]:
    """`function(item, device)` for every item, in their order, with the same bits.

    Each process spreads all of the work over its own devices. Where `mesh` holds
    several processes, all then take what process 0 has come to.

    Args:
      function: of an item and a device; its result is a tree of arrays.
      items: what there is to do.
      sizes: of the items, in units of work.
      mesh: the processes that must have the same bits: every one of the run, each of
        which makes the same call. None: this process alone.

    >>> spread(lambda item, device: 2 * item, [1, 3, 2], sizes=[1, 27, 8])
    [2, 6, 4]
    """
    done = spread_over_devices(function, items, sizes)
    return done if mesh is None or not mesh.is_multi_process else from_first(done)


def spread_over_devices(
    function: Callable[[Any, jax.Device], Any],
    items: Sequence[Any],
    sizes: Sequence[float],
    devices: Sequence[jax.Device] | None = None,
) -> list[Any]:
    """`function(item, device)` for every item, in their order; the largest begin.

    Whichever device is free takes the largest item left. By default these are the
    devices that `linear_algebra_device` is one of, without the simulated ones, which
    share their cores. What a call raises is raised here; no further item is begun.

    >>> spread_over_devices(lambda item, device: 2 * item, [1, 3, 2], sizes=[1, 3, 2])
    [2, 6, 4]
    """
    if devices is None:
        on_gpu = jax.default_backend() == "gpu"
        devices = jax.local_devices() if on_gpu else [linear_algebra_device()]
    ahead = collections.deque(np.argsort(-np.asarray(sizes), kind="stable").tolist())
    found: list[Any] = [None] * len(items)

    def work(device: jax.Device) -> None:
        while True:
            try:
                index = ahead.popleft()
            except IndexError:
                return
            try:
                found[index] = function(items[index], device)
            except BaseException:
                ahead.clear()
                raise

    if len(devices) == 1 or len(items) == 1:
        work(devices[0])
        return found
    with concurrent.futures.ThreadPoolExecutor(len(devices)) as threads:
        for _ in threads.map(work, devices):
            pass
    return found
