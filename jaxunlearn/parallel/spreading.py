"""Independent pieces of work, each for one device, shared out."""

import collections
import concurrent.futures
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.parallel.hardware import linear_algebra_device
from jaxunlearn.parallel.processes import exchange


def spread(
    function: Callable[[Any, jax.Device], Any],
    items: Sequence[Any],
    sizes: Sequence[float],
    mesh: Mesh | None = None,
) -> list[Any]:
    """`function(item, device)` for every item, in their order, known to every process.

    Each process of `mesh` takes as much work as any other and spreads it over its
    devices; then all tell each other what they found. Every process must make the same
    call, and then has the same bits.

    Args:
      function: of an item and a device; its result travels between processes pickled.
      items: what there is to do.
      sizes: of the items, in units of work.
      mesh: the processes that take part; with None, or where it holds one process,
        this one does everything.

    >>> spread(lambda item, device: 2 * item, [1, 3, 2], sizes=[1, 27, 8])
    [2, 6, 4]
    """
    if mesh is None or not mesh.is_multi_process:
        return spread_over_devices(function, items, sizes)
    processes = sorted({device.process_index for device in mesh.devices.flat})
    owners = shared_out(sizes, len(processes))
    me = processes.index(jax.process_index())
    own = [index for index, owner in enumerate(owners) if owner == me]
    done = spread_over_devices(
        function, [items[index] for index in own], [sizes[index] for index in own]
    )
    # Among processes of one run, which run the same code.
    parts = [iter(pickle.loads(data)) for data in exchange(pickle.dumps(done), mesh)]
    return [next(parts[owner]) for owner in owners]


def shared_out(sizes: Sequence[float], count: int) -> list[int]:
    """Which of `count` workers takes each item: the largest first, to the least busy.

    >>> shared_out([1, 3, 2], 2)
    [1, 0, 1]
    """
    busy, owners = [0.0] * count, [0] * len(sizes)
    for index in np.argsort(-np.asarray(sizes), kind="stable").tolist():
        owners[index] = busy.index(min(busy))
        busy[owners[index]] += sizes[index]
    return owners


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
