"""What the baselines that change parameters once, without a descent, have in common."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.step import check_parameters
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result, Trace
from jaxunlearn.methods.baseline import check_call
from jaxunlearn.metrics.head import find_head
from jaxunlearn.progress import Progress, Report, reporting
from jaxunlearn.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """Change parameters by a formula, from what was measured on the sets.

    A method of this kind says `measured`, `edited`, and in `read` the sets of which it
    reads every sample; one that changes more than parameters, or takes long, says
    `changed` in place of the last two.
    """

    changes_state: ClassVar[bool] = False
    changes_network: ClassVar[bool] = False
    # Whether accuracy on the forget set is meant to fall.
    forgets: ClassVar[bool] = True
    tuned: ClassVar[str | None] = None
    read: ClassVar[tuple[str, ...]] = ("forget", "retain")

    @property
    def reads_retained(self) -> bool:
        """Whether images of the retained set are read."""
        return "retain" in self.read

    def reads(self, retained: int, classes: int) -> dict[str, int]:
        """Of so many retained images and classes: what `planning.Workload` asks."""
        del classes
        return {"images": retained if "retain" in self.read else 0}

    def measured(self, classifier: Classifier, task: Task, key: Array) -> Any:
        """All that the tuned field does not change."""
        del classifier, task, key

    def edited(
        self, classifier: Classifier, task: Task, key: Array, measured: Any
    ) -> PyTree:
        """The new parameters."""
        raise NotImplementedError

    def changed(
        self,
        classifier: Classifier,
        task: Task,
        key: Array,
        measured: Any,
        report: Report,
    ) -> tuple[Classifier, dict[str, Any]]:
        """The classifier that comes of it, and fields of its trace."""
        del report
        params = self.edited(classifier, task, key, measured)
        field = "the settings" if self.tuned is None else self.tuned
        check_parameters(params, f"Change {field}.")
        sizes: Mapping[str, Any] = {"forget": task.forget, "retain": task.retain}
        count = {n: len(d) if n in self.read else 0 for n, d in sizes.items()}
        return classifier.replace(params=params), {"samples_read": count}

    def __call__(
        self,
        classifier: Classifier | Any,
        task: Task | Any,
        *,
        key: Array,
        progress: Progress = None,
        measured: Any = None,
    ) -> Result:
        """Forget `task.forget`; `classifier` is not modified.

        `measured` is what the method of that name returned for the same arguments.

        Raises:
          TypeError: an argument is of the wrong type.
          ValueError: retained data are needed, and there are none; or the network lacks
            what the method changes.
          FloatingPointError: a parameter at the end is not finite.
        """
        check_call(classifier, task, key)
        watch = Stopwatch()
        if measured is None:
            with watch.stage("statistics"):
                measured = self.measured(classifier, task, key)
        with watch.stage("steps"), reporting(progress) as report:
            given = classifier, task, key, measured, report
            changed, noted = self.changed(*given)
        return Result(changed, Trace(seconds=watch.seconds, **noted))

    def replace(self, **fields: Any) -> "Edit":
        """A copy with these fields replaced."""
        return dataclasses.replace(self, **fields)


def change_head(
    classifier: Classifier,
    images: Any,
    kernel: Callable[[Array], Array],
    bias: Callable[[Array], Array] = lambda bias: bias,
) -> PyTree:
    """Parameters whose head has another kernel `[1, d, k]`, and bias if there is one.

    Refused are networks without a head; see `metrics.head.find_head`.
    """
    head = find_head(classifier, images)
    leaves, structure = jax.tree.flatten(classifier.params)
    old = jnp.asarray(leaves[head.kernel])  # It may be a NumPy array.
    new = head.layout.from_matrix(kernel(head.layout.to_matrix(old)))
    leaves[head.kernel] = new.astype(old.dtype)
    if head.bias is not None:
        leaves[head.bias] = bias(jnp.asarray(leaves[head.bias]))
    return jax.tree.unflatten(structure, leaves)
