"""Labelled images, and taking them apart."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn.checks import as_array, check_finite, check_labels, check_type
from jaxunlearn.tasks.classes import as_integers, check_leaves_some, check_names


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Labelled images.

    Attributes:
      images: `[n, h, w, c]`, uint8 or finite floats; kept where they are, on the host
        or on a device.
      labels: `[n]`, class numbers from 0; kept on the host as an int32 NumPy array.
      class_names: what class 0, 1, ... is called, a tuple of strings, or None.

    Raises:
      TypeError: images are neither uint8 nor floating point, labels are not integers,
        class names are not strings.
      ValueError: ranks or lengths are wrong, a label is negative, no 32-bit integer or
        has no name, two classes have one name, a pixel is not finite, an entry masked.

    >>> len(Data(np.zeros((2, 8, 8, 1), np.uint8), [3, 5]))
    2
    """

    images: Any
    labels: Any
    class_names: Any = None

    def __post_init__(self):
        images = as_array("images", self.images)
        _check_pixels(images)
        labels = check_labels("labels", self.labels, images.shape[0])
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int32))
        if self.class_names is not None:
            names = check_names(self.class_names)
            _check_named(names, labels)
            object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, rows: Any) -> "Data":
        """The samples at these places, in their order, or those that a mask keeps.

        >>> data = Data(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 2])
        >>> data.take([2, 0]).labels.tolist()
        [2, 0]
        >>> data.take(data.labels > 0).labels.tolist()
        [1, 2]
        """
        rows = np.asarray(rows)
        return Data(self.images[rows], self.labels[rows], self.class_names)


def check_data(name: str, data: Any) -> None:
    """Refuse what is no `Data`."""
    check_type(name, data, Data, "Data(images, labels) makes one.")


def split_by_class(data: Any, forget_classes: Any) -> tuple[Data, Data]:
    """Split into the samples of the forget classes and all others, order kept.

    Returns:
      `(forget, retain)`.

    Raises:
      TypeError: `data` is no `Data`, a forget class no integer.
      ValueError: a forget class does not occur in the labels or is named twice, or
        every class is one.

    >>> data = Data(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 0])
    >>> [len(part) for part in split_by_class(data, [1])]
    [1, 2]
    """
    check_data("data", data)
    present = np.unique(data.labels).tolist()
    classes = as_integers(forget_classes, "forget_classes")
    check_leaves_some("forget_classes", classes, present)
    return _split(data, np.isin(data.labels, classes))


def split_by_index(data: Any, indices: Any) -> tuple[Data, Data]:
    """Split into the samples at these places and all others, order kept.

    For forgetting samples and not classes: `Task(forget, retain, num_classes=k)`.

    Returns:
      `(forget, retain)`.

    Raises:
      TypeError: `data` is no `Data`, an index no integer.
      ValueError: there is no such sample, one is named twice, none or all are.

    >>> data = Data(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 0])
    >>> [part.labels.tolist() for part in split_by_index(data, [2, 1])]
    [[1, 0], [0]]
    """
    check_data("data", data)
    places, count = as_array("indices", indices), len(data)
    if places.ndim != 1 or not len(places) > 0:
        msg = (
            "indices must be a sequence of at least one place, [n]; their shape is "
            f"{places.shape}."
        )
        raise ValueError(msg)
    if places.dtype.kind not in "iu":
        msg = f"indices must be integers; they are {places.dtype}."
        raise TypeError(msg)
    beyond = places[(places < 0) | (places >= count)]
    if len(beyond):
        msg = (
            f"indices name sample {beyond[0]}, which does not exist: the samples are 0 "
            f"to {count - 1}."
        )
        raise ValueError(msg)
    chosen = np.bincount(np.asarray(places, int), minlength=count)
    if chosen.max() > 1:
        msg = f"indices must name each sample once; {chosen.argmax()} is there twice."
        raise ValueError(msg)
    if chosen.all():
        msg = f"indices name all {count} samples: leave at least one to retain."
        raise ValueError(msg)
    return _split(data, chosen > 0)


def _split(data, chosen):
    return data.take(chosen), data.take(~chosen)


def _check_named(names, labels):
    highest = int(labels.max(initial=-1))
    if highest >= len(names):
        msg = (
            f"class_names names {len(names)} classes, and the labels go up to "
            f"{highest}: give a name for each class from 0 to {highest}."
        )
        raise ValueError(msg)


def _check_pixels(images):
    if images.ndim != 4:
        msg = f"images must be [n, h, w, c]; their shape is {images.shape}."
        raise ValueError(msg)
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        msg = f"images must be uint8 or floating point; they are {images.dtype}."
        raise TypeError(msg)
    if len(images) and 0 in images.shape:
        msg = f"images must have pixels; their shape is {images.shape}."
        raise ValueError(msg)
    check_finite(images)
