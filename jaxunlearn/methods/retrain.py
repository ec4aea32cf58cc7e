"""The reference: train from scratch on what is retained."""

import dataclasses
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.checks import check_key, check_type
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result, Trace
from jaxunlearn.progress import Progress
from jaxunlearn.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrain:
    """Train from scratch on the retained data, with `task.train`.

    Every other method is judged by this one's values.

    >>> Retrain.changes_state
    True
    """

    changes_state: ClassVar[bool] = True
    changes_network: ClassVar[bool] = False
    reads_retained: ClassVar[bool] = True
    tuned: ClassVar[str | None] = None
    from_scratch: ClassVar[bool] = True

    def __call__(
        self,
        classifier: Classifier,
        task: Task | Any,
        *,
        key: Array,
        progress: Progress = None,
        mesh: Mesh | None = None,
    ) -> Result:
        """Train; `classifier` only gives the shape of the answer.

        Raises:
          TypeError: `task` is no `Task`, or `task.train` returns no `Classifier`.
          ValueError: the task has no retained data, or no `train`.
        """
        check_type("task", task, Task, "Task(forget, retain, ...) makes one.")
        check_key(key)
        if task.retain is None or task.train is None:
            missing = "retain" if task.retain is None else "train"
            msg = (
                f"Retrain needs Task({missing}=...): retained data, and a function "
                "(data, key) -> Classifier that trains from scratch."
            )
            raise ValueError(msg)
        del classifier, progress, mesh  # `task.train` brings its own
        watch = Stopwatch()
        with watch.stage("steps"):
            trained = task.train(task.retain, key)
            check_classifier(trained, "what task.train returns")
            jax.block_until_ready(jax.tree.leaves(trained.params))
        read = {"forget": 0, "retain": len(task.retain)}
        return Result(trained, Trace(seconds=watch.seconds, samples_read=read))
