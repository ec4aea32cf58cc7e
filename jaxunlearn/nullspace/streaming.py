"""Images in batches of one size, and their moments added up over all batches.

Sums are compensated, one carry a device, in memory that does not grow with the data.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn import parallel
from jaxunlearn.capture.grams import Moment, layer_sums, moments_of, sum_shapes
from jaxunlearn.capture.layers import layer_table
from jaxunlearn.checks import check_finite, is_traced, short
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.classifier.images import check_images
from jaxunlearn.classifier.independence import check_program
from jaxunlearn.parallel import Transform

Images = Any  # one array, or a re-iterable of batches


class Measure(NamedTuple):
    """What is added up over batches: two functions of a module, hence static.

    `sums(subject, batch, mask)` are additive over images: of a classifier, or a tuple
    that starts with one, and of images, or a tuple that starts with them.
    `moments(sums)` is what they make.
    """

    sums: Callable[..., list[Any]]
    moments: Callable[[list[Any]], list[Moment | None]]


INPUTS = Measure(layer_sums, moments_of)


def is_stream(images: Images) -> bool:
    """Whether `images` is a stream of batches and not one array."""
    return not hasattr(images, "shape")


def first_images(classifier: Classifier, images: Images, *, labelled: bool) -> Any:
    """Some of the images, checked; refuses a stream that cannot be read twice.

    Of an array all; refused is a network of which no weight has an input, too.
    """
    check_classifier(classifier)
    first = check_program(classifier, _first(classifier, images, labelled))
    check_inputs(classifier, first)
    return first


def check_inputs(classifier: Classifier, images: Any) -> None:
    """Refuse a network of which no weight has an input."""
    if any(sum_shapes(classifier, images)):
        return
    table = layer_table(classifier, images)
    reasons = [f"{r.path}: {r.reason}" for r in table if len(r.shape) > 1] or ["none"]
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    msg = (
        "No weight of this network has an input that moments could be taken of, and "
        f"nothing can be projected. Its matrices: {'; '.join(reasons[:5])}{more}."
    )
    raise ValueError(msg)


def _first(classifier, images, labelled):
    if not is_stream(images):
        return images
    if isinstance(images, str | bytes | Mapping) or not isinstance(images, Iterable):
        hint = " Pass its .images." if hasattr(images, "images") else ""
        msg = f"images must be an array [n, h, w, c] or batches of them; it is {short(images)}.{hint}"  # noqa: E501
        raise TypeError(msg)
    if iter(images) is images:
        msg = (
            "images must be one array or something that can be iterated over again, "
            f"such as a list or a loader; a {type(images).__name__} can be read only "
            "once. Wrap it in a class whose __iter__ starts anew."
        )
        raise TypeError(msg)
    for item in images:
        batch = _split(item, labelled)[0]
        if is_traced((classifier, batch)):
            msg = "images are a stream, which cannot be read inside a transformation: give one array."  # noqa: E501
            raise TypeError(msg)
        return batch
    msg = "The stream of images is empty: at least one batch is needed."
    raise ValueError(msg)


def full_batches(
    classifier: Classifier, images: Images, slots: Any, batch_size: int
) -> Iterator[tuple[Any, int, int]]:
    """`(batch_size images, how many of them are real, the slot of all)`.

    Padding lies at the end and repeats a real image. `slots` is Int[n] for an array,
    for a stream of pairs a function of labels and how many they must be; None where
    there is one slot.
    """
    if not is_stream(images):
        slots = np.zeros(len(images), int) if slots is None else slots
        for slot in np.unique(slots):
            index = np.flatnonzero(slots == slot)
            for start in range(0, len(index), batch_size):
                part = index[start : start + batch_size]
                # Padded before it is gathered, so that one program gathers all.
                padded = part[_full(len(part), batch_size)]
                yield images[padded], len(part), int(slot)
        return
    pending: dict[int, np.ndarray] = {}
    first = None
    for item in images:
        batch, labels = _split(item, slots is not None)
        batch = check_images(batch, classifier.preprocess)
        first = batch[:1] if first is None else first
        _check_batch(batch, first, batch_size)
        count = len(batch)
        where = np.zeros(count, int) if slots is None else slots(labels, count)
        for slot in np.unique(where):
            part = np.asarray(batch)[where == slot]
            if slot in pending:
                part = np.concatenate([pending[slot], part])
            while len(part) >= batch_size:
                yield part[:batch_size], batch_size, int(slot)
                part = part[batch_size:]
            pending[slot] = part.copy()
    for slot, part in sorted(pending.items()):
        if len(part):
            yield part[_full(len(part), batch_size)], len(part), int(slot)


def _check_batch(batch, first, batch_size) -> None:
    """Refuse what cannot be joined with the first batch, or not in such batches."""
    check_finite(batch)
    kinds = [f"{list(images.shape[1:])} {images.dtype}" for images in (first, batch)]
    if kinds[0] != kinds[1]:
        msg = f"The batches of a stream must be alike; the first is of images {kinds[0]}, a later one of {kinds[1]}."  # noqa: E501
        raise ValueError(msg)
    needed, free = batch_size * first.nbytes, parallel.free_memory()
    if needed > free:
        msg = f"batch_size is {batch_size}: so many images take {needed:,} bytes, and {free:,} are free. Lower it."  # noqa: E501
        raise ValueError(msg)


def _split(item, labelled: bool):
    """The images and labels of a batch: a pair, or a dict as data sets have them."""
    if isinstance(item, Mapping):
        names = ("image", "images"), ("label", "labels")
        found = [[item[name] for name in either if name in item] for either in names]
        if len(found[0]) == 1 and (len(found[1]) == 1 or not labelled):
            return found[0][0], found[1][0] if labelled else None
    elif isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1] if labelled else None
    elif not labelled and not isinstance(item, tuple | list):
        return item, None
    msg = (
        "A stream for moments by class must yield (images, labels) or dicts with "
        "'image' and 'label', one for moments of all may yield images alone; it "
        f"yielded {short(dict(item) if isinstance(item, Mapping) else item)}."
    )
    raise TypeError(msg)


def _full(count: int, batch_size: int) -> np.ndarray:
    """Places of a full batch. What is missing is a copy of a real image.

    Zeros could make a NaN, which masking alone would not keep out of gradients.
    """
    return np.minimum(np.arange(batch_size), count - 1)


def stream_grams(
    classifier: Classifier,
    images: Images,
    slots: Any,
    count: int,
    batch_size: int,
    mesh: Mesh | None,
    transform: Transform,
    *,
    shapes: list[Any],
    measure: Measure = INPUTS,
    given: tuple[Any, ...] = (),
    beside: Callable[[int, int], tuple[Any, ...]] | None = None,
) -> list[Moment | None]:
    """The moments of all images, with a leading axis of `count` slots.

    Every process streams its own images over its own devices, however many batches
    that takes; only what the devices hold at the end is added up over processes.
    `slots` is that of `full_batches`. `shapes` are those of the measure's sums;
    `(classifier, *given)` is its subject, and `beside(first, stop)` gives what stands
    beside the images of these numbers, padding included.
    """
    own = parallel.own_mesh(mesh)
    devices = 1 if own is None else own.size
    if not is_stream(images):
        most = len(images) if slots is None else np.bincount(slots).max()
        batch_size = min(batch_size, int(most))
        # Shards are cut on the host; an array of one device comes there once.
        images = images if own is None else np.asarray(images)
    size = -(-batch_size // devices) * devices
    # `total - excess` is the value of a compensated sum.
    totals, excesses = (
        jax.tree.map(
            lambda like: parallel.zeros((count, *like.shape), like.dtype, own),
            shapes,
        )
        for _ in range(2)
    )
    sums = totals, excesses
    subject = (classifier, *given) if given else classifier
    subject = parallel.place_whole(subject, own)
    add = functools.partial(_add, measure=measure, mesh=own, transform=transform)
    running: list[Array] = []
    batches = full_batches(classifier, images, slots, size)
    for number, (batch, real, slot) in enumerate(batches):
        mask = (np.arange(size) < real).astype(np.float32)
        if beside is not None:
            batch = (batch, *beside(number * size, (number + 1) * size))
        rows = parallel.place_rows((batch, mask), own)
        sums, done = add(sums, (subject, np.int32(slot)), *rows)
        # The next batch is made ready while this one runs, but no further one.
        running.append(done)
        if len(running) > 1:
            jax.block_until_ready(running.pop(0))
    # What all devices of all processes hold, added up; a copy on the default one.
    values = _values(*sums)
    if mesh is not None:
        values = parallel.join_processes(values, mesh)
        values = _reduce(values, mesh=mesh, transform=transform)
        values = parallel.from_mesh(values, mesh)
    return _grams(values, measure)


@functools.partial(
    jax.jit, static_argnames=("measure", "mesh", "transform"), donate_argnums=0
)
def _add(sums, shared, images, mask, *, measure, mesh, transform):
    """One batch of one slot, added to the sums (of each device); and a sign of it."""

    def local(sums, shared, images, mask):
        subject, slot = shared
        new = measure.sums(subject, images, mask)
        return _compensated(*sums, new, slot), mask.sum()

    if mesh is None:
        return local(sums, shared, images, mask)

    def on_device(sums, *arguments):
        own = jax.tree.map(lambda x: x[0], sums)
        return jax.tree.map(lambda x: x[None], local(own, *arguments))

    run = parallel.map_shards(on_device, mesh, (0, None, 0, 0), 0, transform)
    return run(sums, shared, images, mask)


def _compensated(totals, excesses, new, slot):
    """Kahan's step on one slot: an excess is what its total holds too much."""
    each, put = jax.tree.map, lambda old, x: old.at[slot].set(x)
    values = each(lambda x, excess: x - excess[slot], new, excesses)
    after = each(lambda total, value: total[slot] + value, totals, values)
    beyond = each(lambda x, t, value: (x - t[slot]) - value, after, totals, values)
    return each(put, totals, after), each(put, excesses, beyond)


@functools.partial(jax.jit, donate_argnums=0)
def _values(totals, excesses):
    return jax.tree.map(jnp.subtract, totals, excesses)


@functools.partial(jax.jit, static_argnames=("mesh", "transform"))
def _reduce(values, *, mesh, transform):
    axis = parallel.axis_of(mesh)

    def add(values):
        return lax.psum(jax.tree.map(lambda x: x[0], values), axis)

    return parallel.map_shards(add, mesh, (0,), None, transform)(values)


@functools.partial(jax.jit, static_argnums=1)
def _grams(sums, measure):
    """Slot by slot, so that no more than one is held twice."""
    return lax.map(measure.moments, sums)
