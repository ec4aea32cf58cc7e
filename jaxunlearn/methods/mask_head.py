"""The honesty check: forbid the answer, forget nothing."""

import dataclasses
from typing import ClassVar

import numpy as np

from jaxunlearn.methods.baseline import check_whole_classes
from jaxunlearn.methods.edit import Edit, change_head
from jaxunlearn.metrics.head import find_head


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskHead(Edit):
    """Zero the forgotten classes' rows of the head and set their biases far below.

    Accuracy on them is 0 and on the others what masking gives; nothing else changes.
    What a method cannot beat here it has not forgotten. Refused are samples without
    whole classes, and heads without a bias.

    Attributes:
      bias: of the forgotten classes.

    Source: the "Fisher" baseline of several notebooks does no more.

    >>> MaskHead().bias
    -10.0
    """

    bias: float = -10.0

    read: ClassVar[tuple[str, ...]] = ()
    classwise: ClassVar[str] = "forbids whole classes"

    def __post_init__(self):
        if not (np.isfinite(self.bias) and self.bias < 0):
            msg = f"bias must be a finite number below 0; it is {self.bias}."
            raise ValueError(msg)

    def edited(self, classifier, task, key, measured):
        """The masked head, and all else as it was."""
        del key, measured
        check_whole_classes(task, self)
        classes = np.asarray(task.forget_classes, dtype=int)
        images = task.forget.images[:1]
        if find_head(classifier, images).bias is None:
            msg = "MaskHead needs a bias in the head, which this network has not."
            raise ValueError(msg)
        return change_head(
            classifier,
            images,
            lambda kernel: kernel.at[..., classes].set(0),
            lambda bias: bias.at[classes].set(self.bias),
        )
