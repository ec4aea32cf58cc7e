"""Which devices share the work, and which part of it a process has."""

import logging
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxunlearn.checks import short

_log = logging.getLogger(__name__)


def axis_of(mesh: Mesh) -> str:
    """The name of a mesh's only axis, or a sentence."""
    if not isinstance(mesh, Mesh) or len(mesh.axis_names) != 1:
        msg = (
            "mesh must be a jax.sharding.Mesh with one axis, such as "
            f"jax.make_mesh((jax.device_count(),), ('data',)); it is {short(mesh)}."
        )
        raise ValueError(msg)
    return mesh.axis_names[0]


def automatic(mesh: Mesh) -> Mesh:
    """The same devices with an automatic axis, over which XLA cuts a whole program.

    Explicit axes would ask every operation of a network for its sharding.
    """
    return _of(axis_of(mesh), mesh.devices.flat)


def _of(axis: str, devices: Iterable[jax.Device]) -> Mesh:
    return Mesh(np.array(list(devices)), (axis,), axis_types=(AxisType.Auto,))


def mesh_for_batch(mesh: Mesh | None, batch_size: int) -> Mesh | None:
    """The devices that share a minibatch of training, or None for a single one.

    Without a `mesh`: on a GPU or TPU as many of this process's devices as divide the
    minibatch, on a CPU one: simulated ones gain only where a step is long.
    """
    if mesh is not None:
        mesh = automatic(mesh)
        if batch_size % mesh.size:
            msg = (
                f"A minibatch of {batch_size} samples cannot be shared evenly by the "
                f"{mesh.size} devices of mesh: change batch_size or the mesh."
            )
            raise ValueError(msg)
        return mesh
    devices = _own_devices()
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    if len(devices) > 1:
        each = batch_size // count
        sentence = "training on %d of %d devices, %d samples of a minibatch on each"
        _log.info(sentence, count, len(devices), each)
    return _of("data", devices[:count]) if count > 1 else None


def mesh_for_rows(mesh: Mesh | None) -> Mesh | None:
    """The devices over which independent rows are cut, or None for a single one.

    Without a `mesh`: on a GPU or TPU all of this process's devices, on a CPU one.
    """
    if mesh is not None:
        return automatic(mesh)
    devices = _own_devices()
    if len(devices) == 1:
        return None
    _log.info("each batch is cut over %d devices", len(devices))
    return _of("data", devices)


def _own_devices() -> list[jax.Device]:
    """All of this process's; a CPU's simulated ones count as one."""
    return jax.local_devices()[: 1 if jax.default_backend() == "cpu" else None]


def own_mesh(mesh: Mesh | None) -> Mesh | None:
    """What this process has of `mesh`: its own devices, in the same order."""
    if mesh is None or not mesh.is_multi_process:
        return mesh
    index = jax.process_index()
    own = [device for device in mesh.devices.flat if device.process_index == index]
    if not own:
        msg = (
            f"mesh holds no device of process {index}, which cannot take part: make it "
            "of jax.devices(), or call from the processes whose devices it holds."
        )
        raise ValueError(msg)
    return _of(axis_of(mesh), own)


def global_mesh() -> Mesh | None:
    """All devices of all processes, those of one next to each other.

    None where there is one process, whose parts choose devices themselves.
    """
    return None if jax.process_count() == 1 else _of("data", jax.devices())


def own_share(count: int, mesh: Mesh | None) -> slice:
    """Which of `count` samples are this process's: as many as each other's, or one."""
    if mesh is None or not mesh.is_multi_process:
        return slice(0, count)
    processes = sorted({device.process_index for device in mesh.devices.flat})
    number = processes.index(jax.process_index())
    return slice(*(n * count // len(processes) for n in (number, number + 1)))
