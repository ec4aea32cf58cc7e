"""Grams added up over batches: compensated, one carry a device, constant memory."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn import parallel
from jaxunlearn.batches import Images, full_batches, is_stream
from jaxunlearn.classifier import Classifier
from jaxunlearn.inputs import LayerGram, gram_shapes, layer_grams


class Sums(NamedTuple):
    """A compensated sum: `total - excess` is the value."""

    total: Array
    excess: Array


def stream_grams(
    classifier: Classifier,
    images: Images,
    sample: Array | np.ndarray,
    slots: Any,
    count: int,
    *,
    batch_size: int,
    mesh: Mesh | None,
) -> list[LayerGram | None]:
    """`layer_grams` over all images, with a leading axis of `count` slots.

    Args:
      classifier: a `Classifier`.
      images: one array, or a re-iterable of batches.
      sample: some of the images, for their shape and type.
      slots: for an array: Int[n], the slot of each image, or None for a single slot.
        For a stream of pairs: labels to slots.
      count: how many slots there are.
      batch_size: images per compiled step, over all devices.
      mesh: a one-axis mesh over whose devices each batch is cut.

    Raises:
      ValueError: the sums do not fit into memory.
    """
    devices = 1 if mesh is None else mesh.size
    stream = is_stream(images)
    if not stream:
        slots = np.zeros(len(images), int) if slots is None else np.asarray(slots)
        batch_size = min(batch_size, int(np.bincount(slots).max()))
    batch_size = -(-batch_size // devices) * devices
    blank = gram_shapes(classifier, sample)
    _check_size(blank, count, devices)
    lead = (count,) if mesh is None else (devices, count)
    sums = parallel.place_rows(jax.tree.map(lambda s: _zero(lead, s), blank), mesh)
    classifier = parallel.place_whole(classifier, mesh)
    for batch in full_batches(
        images, None if stream else slots, batch_size, slot_of=slots if stream else None
    ):
        mask = (np.arange(batch_size) < batch.count).astype(np.float32)
        rows = parallel.place_rows((batch.images, mask), mesh)
        slot = parallel.place_whole(jnp.int32(batch.slot), mesh)
        sums = _add(sums, classifier, *rows, slot, mesh=mesh)
    return _finish(sums, mesh=mesh)


def _zero(lead, shape) -> Sums:
    return Sums(*(jnp.zeros((*lead, *shape.shape), shape.dtype) for _ in range(2)))


def _check_size(blank, count, devices):
    per_slot = sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(blank))
    # Twice, for the compensation.
    needed, limit = 2 * count * per_slot, parallel.memory_limit()
    if needed > limit:
        msg = (
            f"Moments of {count} classes take {needed:,} bytes on each of {devices} "
            f"devices, which hold {limit:,}. Ask for fewer with classes=(...), whose "
            "last entry is all other classes together."
        )
        raise ValueError(msg)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _add(sums, classifier, images, mask, slot, mesh):
    """One batch of one slot, added to the sums (of each device)."""

    def local(sums, shared, images, mask):
        classifier, slot = shared
        grams = layer_grams(classifier, images, mask)
        return jax.tree.map(lambda new, old: _compensated(old, new, slot), grams, sums)

    if mesh is not None:
        local = parallel.over_devices(local, mesh)
    return local(sums, (classifier, slot), images, mask)


def _compensated(sums: Sums, value, slot) -> Sums:
    """Kahan's step on one slot: `excess` is what the total holds too much."""
    total, excess = sums.total[slot], sums.excess[slot]
    value = value - excess
    new = total + value
    excess = (new - total) - value
    return Sums(sums.total.at[slot].set(new), sums.excess.at[slot].set(excess))


@functools.partial(jax.jit, static_argnames="mesh")
def _finish(sums, mesh):
    def value(s):
        total = s.total - s.excess
        return total if mesh is None else total.sum(0)

    return jax.tree.map(value, sums, is_leaf=lambda x: isinstance(x, Sums))
