"""The requests of a sweep: which classes each forgets, its samples and new labels."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int, Shaped

from jaxunlearn.methods.descent import Targets, needs_logits, relabelled
from jaxunlearn.tasks import Data, check_classes, check_leaves_some

# "each" class by itself, or sets of classes.
Requests = str | Iterable[Any]


class Request(NamedTuple):
    """One of the requests.

    Attributes:
      classes: which it forgets.
      rows: where its samples are in the training data.
      targets: their new labels `[n]`, or probabilities `[n, k]`.
    """

    classes: tuple[int, ...]
    rows: Int[np.ndarray, " n"]
    targets: Shaped[np.ndarray, "n ..."]


def class_sets(
    requests: Requests, train: Data, num_classes: int, *, name: str = "requests"
) -> tuple[tuple[int, ...], ...]:
    """The classes of each request, checked.

    Args:
      requests: "each" is every class that the data hold, by itself.
      train: what is forgotten and retained.
      num_classes: how many classes the classifier tells apart.
      name: what the caller calls the requests.

    Raises:
      TypeError: a class is no integer, or requests are no sets of classes.
      ValueError: there is no request, one is empty or given twice, a class does not
        exist or has no samples, or a request leaves none to retain.

    >>> data = Data(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 2])
    >>> class_sets("each", data, 3), class_sets([[0, 1], [2]], data, 3)
    (((0,), (1,), (2,)), ((0, 1), (2,)))
    """
    present = np.unique(train.labels).tolist()
    if isinstance(requests, str):
        if requests != "each":
            msg = f'{name} must be "each" or sets of classes, such as [[0, 1], [2]]; they are {requests!r}.'  # noqa: E501
            raise ValueError(msg)
        requests = [[c] for c in present]
    found = tuple(
        check_classes(classes, num_classes, name=f"{name}[{number}]")
        for number, classes in enumerate(requests)
    )
    if not found:
        msg = f"{name} are empty: name at least one set of classes."
        raise ValueError(msg)
    for number, classes in enumerate(found):
        check_leaves_some(f"{name}[{number}]", classes, present)
        same = [n for n in range(number) if set(found[n]) == set(classes)]
        if same:
            msg = f"{name}[{same[0]}] and {name}[{number}] are the same classes, {list(classes)}: leave one out."  # noqa: E501
            raise ValueError(msg)
    return found


def new_labels(
    kind: Targets,
    outputs: Any,
    train: Data,
    sets: tuple[tuple[int, ...], ...],
    num_classes: int,
    *,
    key: Array,
) -> list[Request]:
    """Every request with what its samples are to become.

    Args:
      kind: as in `Descent`.
      outputs: the original's logits `[n, k]` on the training data; None where `kind`
        does without.
      train: the training data.
      sets: the classes of each request.
      num_classes: how many classes there are.
      key: the same for every request, as if it were the only one.
    """
    requests = []
    for classes in sets:
        rows = np.flatnonzero(np.isin(train.labels, classes))
        if needs_logits(kind):
            # Of all samples, so that requests of different sizes share programs.
            targets = relabelled(
                kind, outputs, train.labels, classes, num_classes, key=key
            )[rows]
        else:
            own = train.labels[rows]
            targets = relabelled(kind, None, own, classes, num_classes, key=key)
        requests.append(Request(classes, rows, np.asarray(targets)))
    return requests
