"""Images in batches of one size, and their moments added up over all batches.

Sums are compensated, one carry a device, in memory that does not grow with the data.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn import parallel
from jaxunlearn.capture.grams import Moment, layer_sums, moments_of, sum_shapes
from jaxunlearn.checks import check_finite
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.independence import check_program
from jaxunlearn.parallel import Transform

Images = Any  # one array, or a re-iterable of batches


class Batch(NamedTuple):
    """A batch of the full size.

    Attributes:
      images: `[batch_size, h, w, c]`; padding repeats a real image.
      count: how many of them are real, from the front.
      slot: which class they all belong to.
    """

    images: Any
    count: int
    slot: int


def is_stream(images: Images) -> bool:
    """Whether `images` is a stream of batches and not one array."""
    return not hasattr(images, "shape")


def first_images(classifier: Classifier, images: Images, *, labelled: bool) -> Any:
    """Some of the images, checked; refuses a stream that cannot be read twice."""
    if not is_stream(images):
        check_program(classifier, images)
        return images
    if not isinstance(images, Iterable) or iter(images) is images:
        msg = (
            "images must be one array or something that can be iterated over again, "
            f"such as a list or a loader; a {type(images).__name__} can be read only "
            "once. Wrap it in a class whose __iter__ starts anew."
        )
        raise TypeError(msg)
    for item in images:
        batch = _split(item, labelled)[0]
        check_program(classifier, batch)
        return batch
    msg = "The stream of images is empty: at least one batch is needed."
    raise ValueError(msg)


def full_batches(
    images: Images, slots: Any, batch_size: int, *, slot_of=None
) -> Iterator[Batch]:
    """Batches of exactly `batch_size` images, each of one slot, its last one padded.

    Args:
      images: one array, or a re-iterable of batches (of pairs with labels, where
        `slot_of` is given).
      slots: for an array: Int[n], the slot of each image.
      batch_size: of every batch yielded.
      slot_of: for a stream of pairs: from labels and how many they must be to slots.
        None: everything is slot 0.
    """
    if not is_stream(images):
        for slot in np.unique(slots):
            index = np.flatnonzero(slots == slot)
            for start in range(0, len(index), batch_size):
                part = index[start : start + batch_size]
                # Padded before it is gathered, so that one program gathers all.
                padded = part[_full(len(part), batch_size)]
                yield Batch(images[padded], len(part), int(slot))
        return
    pending: dict[int, np.ndarray] = {}
    for item in images:
        batch, labels = _split(item, slot_of is not None)
        check_finite(batch)
        count = len(batch)
        where = np.zeros(count, int) if slot_of is None else slot_of(labels, count)
        for slot in np.unique(where):
            part = np.asarray(batch)[where == slot]
            if slot in pending:
                part = np.concatenate([pending[slot], part])
            while len(part) >= batch_size:
                yield Batch(part[:batch_size], batch_size, int(slot))
                part = part[batch_size:]
            pending[slot] = part.copy()
    for slot, part in sorted(pending.items()):
        if len(part):
            whole = part[_full(len(part), batch_size)]
            yield Batch(whole, len(part), int(slot))


def _split(item, labelled: bool):
    if labelled:
        if not isinstance(item, tuple | list) or len(item) != 2:
            msg = (
                "With labels=None a stream must yield pairs (images, labels); it "
                f"yielded a {type(item).__name__}."
            )
            raise TypeError(msg)
        return item
    if isinstance(item, tuple) and len(item) == 2:
        return item[0], None
    return item, None


def _full(count: int, batch_size: int) -> np.ndarray:
    """Places of a full batch. What is missing is a copy of a real image.

    Zeros could make a NaN, which masking alone would not keep out of gradients.
    """
    return np.minimum(np.arange(batch_size), count - 1)


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
    transform: Transform,
) -> list[Moment | None]:
    """The moments of all images, with a leading axis of `count` slots.

    Every process streams its own images over its own devices, however many batches
    that takes; only what the devices hold at the end is added up over processes.
    `slots` is Int[n], the slot of each image, or None for a single slot; for a stream
    of pairs it is `slot_of` of `full_batches`.
    """
    own = parallel.own_mesh(mesh)
    devices = 1 if own is None else own.size
    stream = is_stream(images)
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
    return lax.map(moments_of, sums)
