"""Images as batches of one size: cut, padded, and sorted by class where asked for."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.checks import check_finite
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.independence import check_program

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
    """A sample of the images for shapes and checks; refuses what cannot be read twice.

    Raises:
      TypeError: a stream that can be read only once, or is no stream at all.
      ValueError: what `check_program` refuses, or an empty stream.
    """
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
    """Batches of exactly `batch_size` images, each of a single slot.

    Args:
      images: one array, or a re-iterable of batches (of pairs with labels, where
        `slot_of` is given).
      slots: for an array: Int[n], the slot of each image.
      batch_size: of every batch yielded. A slot's last batch is padded.
      slot_of: for a stream of pairs: labels to slots. None: everything is slot 0.
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
    pending: dict[int, list[Any]] = {}
    for item in images:
        batch, labels = _split(item, slot_of is not None)
        check_finite(batch)
        where = np.zeros(len(batch), int) if slot_of is None else slot_of(labels)
        if len(where) != len(batch):
            msg = f"A batch holds {len(batch)} images and {len(where)} labels."
            raise ValueError(msg)
        for slot in np.unique(where):
            parts = pending.setdefault(int(slot), [])
            parts.append(np.asarray(batch)[where == slot])
            whole = np.concatenate(parts)
            while len(whole) >= batch_size:
                yield Batch(whole[:batch_size], batch_size, int(slot))
                whole = whole[batch_size:]
            pending[int(slot)] = [whole.copy()]
    for slot, parts in sorted(pending.items()):
        for part in parts:
            if len(part):
                yield _pad(part, batch_size, slot)


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


def _pad(part, batch_size: int, slot: int) -> Batch:
    count = len(part)
    if count < batch_size:
        part = part[_full(count, batch_size)]
    return Batch(part, count, slot)


def _full(count: int, batch_size: int) -> np.ndarray:
    """Places of a full batch. What is missing is a copy of a real image.

    Zeros could make a NaN, which masking alone would not keep out of gradients.
    """
    return np.minimum(np.arange(batch_size), count - 1)
