"""A request to forget."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxunlearn.checks import check_labels, short
from jaxunlearn.tasks.classes import check_classes, name_classes
from jaxunlearn.tasks.data import Data, check_data


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A request to forget.

    Attributes:
      forget: the samples to forget.
      retain: samples to keep, or None where none are left.
      forget_classes: the classes to forget, a tuple of integers: `forget` holds samples
        of these and `retain` none. `()` is sample-wise forgetting, where both may hold
        samples of any class.
      num_classes: how many classes the classifier tells apart.
      train: `(data, key) -> Classifier`, for methods that train from scratch.
      validation: samples of all classes, for what a method chooses, or None.
      class_moments: what `jaxunlearn.class_moments` took of the training data, in place
        of `retain` for a method that needs no more than that; or None.

    Raises:
      TypeError: a set is no `Data`, a forget class no integer, `train` no function.
      ValueError: the forget set is empty; a class does not exist, is given twice or is
        in the wrong set; no class is left; the images of the two sets differ in shape,
        or their classes in names.

    >>> import numpy as np
    >>> images = np.zeros((2, 8, 8, 1), np.uint8)
    >>> Task(Data(images, [3, 3]), forget_classes=[3], num_classes=10).forget_classes
    (3,)
    """

    # What is none is refused here, not by a type checker.
    forget: Data | Any
    retain: Data | Any | None = None
    forget_classes: Any = ()
    _: dataclasses.KW_ONLY
    num_classes: int | Any
    train: Callable[..., Any] | Any | None = None
    validation: Data | Any | None = None
    class_moments: Any = None

    def __post_init__(self):
        classes = check_classes(self.forget_classes, self.num_classes)
        object.__setattr__(self, "forget_classes", classes)
        check_data("forget", self.forget)
        if self.train is not None and not callable(self.train):
            msg = (
                "train must be a function (data, key) -> Classifier; it is "
                f"{short(self.train)}."
            )
            raise TypeError(msg)
        if len(self.forget) == 0:
            msg = "The forget set is empty: give at least one sample to forget."
            raise ValueError(msg)
        self._check_labels("forget", self.forget)
        strangers = sorted(set(self.forget.labels.tolist()) - set(classes))
        if classes and strangers:
            msg = (
                f"The forget set holds samples of {name_classes(strangers)}, which "
                f"forget_classes {short(list(classes))} does not list: add them to it, "
                "take those samples out, or forget sample-wise with forget_classes=()."
            )
            raise ValueError(msg)
        for name in ("retain", "validation"):
            data = getattr(self, name)
            if data is not None:
                self._check_other(name, data)
        if self.retain is not None:
            self._check_disjoint(self.retain)

    def _check_labels(self, name, data):
        name, hint = f"labels of the {name} set", "num_classes says how many there are."
        check_labels(name, data.labels, len(data), self.num_classes, hint)

    def _check_disjoint(self, retain):
        forgotten = sorted(set(retain.labels.tolist()) & set(self.forget_classes))
        if forgotten:
            msg = (
                f"The retain set holds samples of {name_classes(forgotten)}, which is "
                "to be forgotten: split_by_class(data, forget_classes) takes them "
                "apart."
            )
            raise ValueError(msg)

    def _check_other(self, name, data):
        """That it is of the same images and classes as the forget set."""
        check_data(name, data)
        self._check_labels(name, data)
        shapes = self.forget.images.shape[1:], data.images.shape[1:]
        if shapes[0] != shapes[1]:
            msg = (
                f"Images of the forget set have shape {shapes[0]} and those of the "
                f"{name} set {shapes[1]}: they must agree."
            )
            raise ValueError(msg)
        names = self.forget.class_names, data.class_names
        if None not in names and names[0] != names[1]:
            msg = (
                f"The classes of the forget set are called {short(names[0])} and those "
                f"of the {name} set {short(names[1])}: they must agree."
            )
            raise ValueError(msg)
