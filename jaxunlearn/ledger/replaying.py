"""All standing requests made again: do they lead to the same bits?"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.ledger.asking import forget_data, key_of, method_of
from jaxunlearn.ledger.certificate import differences
from jaxunlearn.ledger.entries import Entry
from jaxunlearn.ledger.store import Head
from jaxunlearn.methods import forget_task
from jaxunlearn.tasks import Data, Task


@dataclasses.dataclass(frozen=True)
class Replay:
    """Whether the standing requests, made again, give the stored parameters.

    Attributes:
      equal: whether they do, bit for bit.
      differences: the largest difference in every leaf of parameters and state.
      requests: how many were made again.

    >>> str(Replay(True, {"dense/kernel": 0.0}, 2))
    '2 requests made again: bit for bit the stored parameters'
    """

    equal: bool
    differences: dict[str, float]
    requests: int

    def __str__(self):
        noun = "request" if self.requests == 1 else "requests"
        said = f"{self.requests} {noun} made again: "
        if self.equal:
            return f"{said}bit for bit the stored parameters"
        name = max(self.differences, key=lambda name: self.differences[name])
        largest = self.differences[name]
        return f"{said}NOT the stored parameters, {largest:.3g} apart in {name}"


def plan(
    head: Head,
    log: Sequence[Entry],
    train: Data | None,
    forget: Mapping[int, Data],
) -> list[tuple[Entry, Any, Data]]:
    """Of every standing request its entry, its method and its images, checked.

    Raises:
      ValueError: no request stands, a method is not of this library, or images are not
        those that were forgotten.
    """
    if not head.requests:
        msg = "There is nothing to replay: no request stands since the ledger was opened or committed."  # noqa: E501
        raise ValueError(msg)
    planned = []
    for request in head.requests:
        entry = log[request.parameters.entry]
        method = method_of(entry.method or {"name": ""}, entry.number)
        data, found = forget_data(request.classes, forget.get(entry.number), train)
        stored = entry.samples or {}
        if found["images_sha256"] != stored["images_sha256"]:
            msg = (
                f"The images of {list(request.classes)} are not those that entry "
                f"{entry.number} forgot ({found['count']} images of SHA-256 "
                f"{found['images_sha256'][:12]}, and it had {stored['count']} of "
                f"{stored['images_sha256'][:12]}): open the ledger with the same "
                f"train, or give them as forget={{{entry.number}: Data(...)}}."
            )
            raise ValueError(msg)
        planned.append((entry, method, data))
    return planned


def replayed(
    base: Classifier,
    stored: Classifier,
    planned: Sequence[tuple[Entry, Any, Data]],
    task_of: Callable[[Data, tuple[int, ...]], Task],
) -> Replay:
    """Every planned request from the base on, beside what is stored."""
    current: PyTree = base
    for entry, method, data in planned:
        task = task_of(data, entry.forgotten)
        key = key_of(entry.key or {})
        current = forget_task(method, current, task, key=key).classifier
    found = differences(stored, current)
    return Replay(not any(found.values()), found, len(planned))
