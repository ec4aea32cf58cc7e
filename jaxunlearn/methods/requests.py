"""Requests to forget: which classes each names, and where their samples are."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxunlearn.checks import as_integer, short
from jaxunlearn.tasks import (
    Data,
    Task,
    check_classes,
    check_leaves_some,
    class_numbers,
    split_by_class,
)
from jaxunlearn.tasks.classes import elements

# "each" class by itself, or sets of classes.
Sets = str | Iterable[Any]


def class_sets(
    requests: Sets, train: Data, num_classes: int, *, name: str = "requests"
) -> tuple[tuple[int, ...], ...]:
    """The classes of each request, checked; `name` is what the caller calls them.

    "each" is every class that the data hold, by itself. Classes are numbers, or names
    where the data have them. A single class may stand without brackets.
    """
    present = np.unique(train.labels).tolist()
    if isinstance(requests, str):
        if requests != "each":
            msg = f'{name} must be "each" or sets of classes, such as [[0, 1], [2]]; they are {short(requests)}.'  # noqa: E501
            raise ValueError(msg)
        requests = [[c] for c in present]
    requests = _bracketed(elements(requests, name, "sets of classes"), name)
    sets = tuple(
        check_classes(
            _numbers(classes, train.class_names, num_classes, f"{name}[{number}]"),
            num_classes,
            name=f"{name}[{number}]",
        )
        for number, classes in enumerate(requests)
    )
    if not sets:
        msg = f"{name} are empty: name at least one set of classes."
        raise ValueError(msg)
    for number, classes in enumerate(sets):
        check_leaves_some(f"{name}[{number}]", classes, present)
        same = [n for n in range(number) if set(sets[n]) == set(classes)]
        if same:
            msg = f"{name}[{same[0]}] and {name}[{number}] are the same classes, {list(classes)}: leave one out."  # noqa: E501
            raise ValueError(msg)
    return sets


def _bracketed(requests: list[Any], name: str) -> list[Any]:
    """With brackets around a single class, which then is not mistaken for a set."""
    bare = [c for c in requests if isinstance(c, str) or as_integer(c) is not None]
    if len(requests) == len(bare) == 1:
        return [bare]
    if len(requests) == len(bare) > 1:
        each = short([[c] for c in bare])
        msg = (
            f"{name} are {short(requests)}, which has two readings: write "
            f"{short([bare])} for one request to forget them all, or {each} for one "
            "request each."
        )
        raise ValueError(msg)
    return requests


def _numbers(classes, class_names, num_classes, name):
    """Integers are numbers of classes, whatever classes are called."""
    asked = elements(classes, name)
    if not any(isinstance(one, str) for one in asked):
        return asked
    asked = [one if as_integer(one) is None else f"number:{one}" for one in asked]
    return class_numbers(asked, class_names, num_classes, name=name)


def check_samplewise(method: Any) -> None:
    """Refuse a method of whole classes where samples are forgotten.

    Its class says in `classwise` what it does with a class.
    """
    if reason := getattr(method, "classwise", ""):
        msg = (
            f"{type(method).__name__} {reason}, and forget_classes is (): it has no "
            "meaning where samples are forgotten."
        )
        raise ValueError(msg)


@dataclasses.dataclass(frozen=True, eq=False)
class Requests:
    """What to forget, each from the same original.

    Attributes:
      task: that of a single request; of several, `retain` holds all classes, of which
        each request leaves its own out.
      classes: which each forgets; `()` where samples are forgotten.
      rows: where the samples of each are in `task.forget`.
    """

    task: Task
    classes: tuple[tuple[int, ...], ...]
    rows: tuple[Int[np.ndarray, " _"], ...]

    @classmethod
    def of_task(cls, task: Task) -> "Requests":
        """A single one."""
        return cls(task, (task.forget_classes,), (np.arange(len(task.forget)),))

    @classmethod
    def of_sets(
        cls,
        sets: tuple[tuple[int, ...], ...],
        train: Data,
        num_classes: int,
        validation: Data | Any | None = None,
    ) -> "Requests":
        """One for each of these sets of classes."""
        given = {"num_classes": num_classes, "validation": validation}
        if len(sets) == 1:
            return cls.of_task(_task_of(sets[0], train, **given))
        task = Task(train, train, (), **given)
        rows = tuple(np.flatnonzero(np.isin(train.labels, s)) for s in sets)
        return cls(task, sets, rows)

    def __len__(self) -> int:
        return len(self.classes)

    def tasks(self) -> Iterator[Task]:
        """Each by itself."""
        if len(self) == 1:
            yield self.task
        else:
            task = self.task
            for classes in self.classes:
                yield _task_of(
                    *(classes, task.forget),
                    num_classes=task.num_classes,
                    validation=task.validation,
                )


def _task_of(classes: tuple[int, ...], train: Data, **given: Any) -> Task:
    return Task(*split_by_class(train, classes), classes, **given)
