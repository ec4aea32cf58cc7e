"""Independent pieces of work, each for one device, shared out."""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.parallel.hardware import linear_algebra_devices
from jaxunlearn.parallel.processes import from_first


def spread(
    function: Callable[[Any, jax.Device], Any],
    items: Sequence[Any],
    sizes: Sequence[float],
    mesh: Mesh | None = None,
) -> list[Any]:
    """`function(item, device)` for every item, in their order, with the same bits.

    Whichever of this process's `linear_algebra_devices` is free takes the largest item
    left. Where `mesh` holds several processes, each of which makes the same call, all
    then take what process 0 has come to. What a call raises is raised here.
    """
    devices = linear_algebra_devices()
    free: queue.SimpleQueue[jax.Device] = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def work(index: int) -> Any:
        device = free.get()
        try:
            return function(items[index], device)
        finally:
            free.put(device)

    order = np.argsort(-np.asarray(sizes), kind="stable").tolist()
    with ThreadPoolExecutor(len(devices)) as threads:
        results = dict(zip(order, threads.map(work, order), strict=True))
    done = [results[index] for index in range(len(items))]
    return done if mesh is None or not mesh.is_multi_process else from_first(done)
