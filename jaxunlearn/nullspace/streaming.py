"""Grams added up over batches: compensated, one carry a device, constant memory."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn import parallel
from jaxunlearn.capture.inputs import LayerGram, layer_sums, sum_shapes
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.nullspace.batches import Images, full_batches, is_stream
from jaxunlearn.nullspace.memory import batch_that_fits, check_moments
from jaxunlearn.parallel import Transform


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
    batch_size: int | None,
    mesh: Mesh | None,
    transform: Transform,
) -> list[LayerGram | None]:
    """`layer_grams` over all images, with a leading axis of `count` slots.

    Every process streams its own images over its own devices, however many batches
    that takes; only what the devices hold at the end is added up over processes.

    Args:
      classifier: a `Classifier`.
      images: one array, or a re-iterable of batches.
      sample: some of the images, for their shape and type.
      slots: for an array: Int[n], the slot of each image, or None for a single slot.
        For a stream of pairs: labels to slots.
      count: how many slots there are.
      batch_size: images per compiled step, over all devices of this process; None for
        what fits.
      mesh: a one-axis mesh over whose devices each batch is cut.
      transform: what runs a step on every device.

    Raises:
      ValueError: the sums do not fit into memory.
    """
    own = parallel.own_mesh(mesh)
    devices = 1 if own is None else own.size
    stream = is_stream(images)
    check_moments(classifier, sample, count, devices)
    if batch_size is None:
        batch_size = batch_that_fits(classifier, sample, devices)
    if not stream:
        slots = np.zeros(len(images), int) if slots is None else np.asarray(slots)
        batch_size = min(batch_size, int(np.bincount(slots).max()))
        # Shards are cut on the host; an array of one device comes there once.
        images = images if own is None else np.asarray(images)
    share = -(-batch_size // devices)
    blank = sum_shapes(classifier, sample)
    sums = jax.tree.map(lambda shape: _zero(count, shape, own), blank)
    classifier = parallel.place_whole(classifier, own)
    add = functools.partial(_add, mesh=own, transform=transform)
    running: list[Array] = []
    for batch in full_batches(
        images,
        None if stream else slots,
        share * devices,
        slot_of=slots if stream else None,
    ):
        mask = (np.arange(share * devices) < batch.count).astype(np.float32)
        rows = parallel.place_rows((batch.images, mask), own)
        sums, done = add(sums, (classifier, np.int32(batch.slot)), *rows)
        # The next batch is made ready while this one runs, but no further one.
        running.append(done)
        if len(running) > 1:
            running.pop(0).block_until_ready()
    return _finish(sums, mesh, transform)


def _zero(count, shape, mesh) -> Sums:
    size = (count, *shape.shape)
    return Sums(*(parallel.zeros(size, shape.dtype, mesh) for _ in range(2)))


@functools.partial(jax.jit, static_argnames=("mesh", "transform"), donate_argnums=0)
def _add(sums, shared, images, mask, *, mesh, transform):
    """One batch of one slot, added to the sums (of each device); and a sign of it."""

    def local(sums, shared, images, mask):
        classifier, slot = shared
        new = layer_sums(classifier, images, mask)
        sums = jax.tree.map(lambda new, old: _compensated(old, new, slot), new, sums)
        return sums, mask.sum()

    if mesh is None:
        return local(sums, shared, images, mask)

    def on_device(sums, *arguments):
        own = jax.tree.map(lambda x: x[0], sums)
        return jax.tree.map(lambda x: x[None], local(own, *arguments))

    run = parallel.map_shards(on_device, mesh, (0, None, 0, 0), 0, transform)
    return run(sums, shared, images, mask)


def _compensated(sums: Sums, value, slot) -> Sums:
    """Kahan's step on one slot: `excess` is what the total holds too much."""
    total, excess = sums.total[slot], sums.excess[slot]
    value = value - excess
    new = total + value
    excess = (new - total) - value
    return Sums(sums.total.at[slot].set(new), sums.excess.at[slot].set(excess))


def _finish(sums, mesh, transform):
    """What all devices of all processes hold, added up; a copy on the default one."""
    values = _values(
        *(
            jax.tree.map(lambda s, i=i: s[i], sums, is_leaf=lambda x: type(x) is Sums)
            for i in range(2)
        )
    )
    if mesh is not None:
        values = parallel.join_processes(values, mesh)
        values = _reduce(values, mesh=mesh, transform=transform)
        values = parallel.from_mesh(values, mesh)
    return _grams(values)


@functools.partial(jax.jit, donate_argnums=0)
def _values(totals, excesses):
    return jax.tree.map(jnp.subtract, totals, excesses)


@functools.partial(jax.jit, static_argnames=("mesh", "transform"))
def _reduce(values, *, mesh, transform):
    axis = parallel.axis_of(mesh)

    def add(values):
        return lax.psum(jax.tree.map(lambda x: x[0], values), axis)

    return parallel.map_shards(add, mesh, (0,), None, transform)(values)


@jax.jit
def _grams(sums):
    """Slot by slot, so that no more than one is held twice."""
    return lax.map(lambda slot: [layer and layer.gram() for layer in slot], sums)
