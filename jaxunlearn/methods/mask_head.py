"""The honesty check: forbid the answer, forget nothing."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from jaxunlearn.checks import check_key
from jaxunlearn.descent.unlearning import Result, Trace
from jaxunlearn.metrics.head import find_head
from jaxunlearn.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskHead:
    """Zero the forgotten classes' rows of the head and set their biases far below.

    Accuracy on them is 0 and on the others what masking gives; nothing else changes.
    What a method cannot beat here it has not forgotten.

    Attributes:
      bias: of the forgotten classes.

    Source: the "Fisher" baseline of several notebooks does no more.

    >>> MaskHead().bias
    -10.0
    """

    bias: float = -10.0

    changes_state: ClassVar[bool] = False
    changes_network: ClassVar[bool] = False
    forgets: ClassVar[bool] = True
    tuned: ClassVar[str | None] = None

    def __post_init__(self):
        if not (np.isfinite(self.bias) and self.bias < 0):
            msg = f"bias must be a finite number below 0; it is {self.bias}."
            raise ValueError(msg)

    def reads(self, retained: int, classes: int) -> dict[str, int]:
        """Of so many retained images and classes: what `planning.Workload` asks."""
        del retained, classes
        return {"images": 0}

    def __call__(self, classifier, task, *, key, progress: Progress = None) -> Result:
        """Mask; `classifier` is not modified.

        Raises:
          TypeError: `key` is no key.
          ValueError: samples and not classes are to be forgotten, or the network has no
            head with a bias and one row a class.
        """
        check_key(key)
        del key, progress
        classes = np.asarray(task.forget_classes, dtype=int)
        if not classes.size:
            msg = (
                "MaskHead forbids whole classes, and forget_classes is (): it has no "
                "meaning where samples are forgotten."
            )
            raise ValueError(msg)
        head = find_head(classifier, task.forget.images[:1])
        if head.bias is None:
            msg = "MaskHead needs a bias in the head, which this network has not."
            raise ValueError(msg)
        leaves, structure = jax.tree.flatten(classifier.params)
        kernel, read = leaves[head.kernel], head.layout
        zeroed = read.to_matrix(kernel).at[..., classes].set(0)
        leaves[head.kernel] = read.from_matrix(zeroed)
        leaves[head.bias] = leaves[head.bias].at[classes].set(self.bias)
        masked = classifier.replace(params=jax.tree.unflatten(structure, leaves))
        return Result(masked, Trace(samples_read={"forget": 0, "retain": 0}))
