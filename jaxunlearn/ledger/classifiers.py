"""The classifier of a ledger, read from its files and held beside one that is given."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import models
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.ledger.store import Head, Store
from jaxunlearn.models.files import Card, linen_module, load
from jaxunlearn.models.tensors import (
    check_tensors,
    describe,
    from_tensors,
    read_tensors,
    to_tensors,
)
from jaxunlearn.serialization import from_dict, to_dict
from jaxunlearn.tasks import Data

_ADVICE = "Give the classifier that the ledger was opened with, or its current one."


def card_of(classifier: Classifier, train: Data, num_classes: int) -> Card:
    """What files say of a classifier of which no file has said it."""
    known = models.recognise(linen_module(classifier)) or {"num_classes": num_classes}
    shape = tuple(map(int, train.images.shape[1:]))
    return Card(**known, image_shape=shape, class_names=train.class_names)


def read_card(path: Path) -> tuple[Card, Any]:
    """The card in a file of parameters, and the preprocessing as it is stored."""
    fields = dict(read_tensors(path)[1] or {})
    pixels = fields.pop("preprocess", None)
    return from_dict(Card, fields), pixels


def read_current(store: Store, head: Head, given: Any) -> Classifier:
    """The current classifier; `given` has the network, or None.

    Raises:
      TypeError: what is given is no classifier.
      ValueError: nothing is given and the files do not say which network it is; or what
        is given has other parameters than the ledger at its base or now.
    """
    path = store.path(head.current)
    card, pixels = read_card(path)
    if given is None and not card.model:
        msg = f"{store.folder} does not say which network it is of, which models.create does not make: open it with classifier=..., the one that it was opened with."  # noqa: E501
        raise ValueError(msg)
    if given is None:
        return load(path)
    check_classifier(given)
    if to_dict(given.preprocess) != pixels:
        msg = f"classifier has the preprocessing {given.preprocess}, and that of {store.folder} is {pixels}. {_ADVICE}"  # noqa: E501
        raise ValueError(msg)
    own = to_tensors({"params": given.params, "state": given.state})
    known = [
        read_tensors(store.path(stored))[0] for stored in (head.base, head.current)
    ]
    what = f"classifier is not the one of {store.folder}"
    check_tensors(what, describe(own), describe(known[0]), _ADVICE)
    if not any(_equal(own, tensors) for tensors in known):
        msg = (
            f"classifier has other parameters than those that {store.folder} started "
            f"from or has now. {_ADVICE}"
        )
        raise ValueError(msg)
    return with_parameters(given, path)


def with_parameters(classifier: Classifier, path: Path) -> Classifier:
    """The same network with the parameters and the state in a file."""
    tree = {"params": classifier.params, "state": classifier.state}
    return classifier.replace(**from_tensors(read_tensors(path)[0], tree))


def check_network(method: Any, before: Classifier, after: Classifier) -> None:
    """Refuse a result of another network, whose parameters would not fit."""
    sides = (
        describe(to_tensors({"params": side.params, "state": side.state}))
        for side in (after, before)
    )
    name = getattr(method, "__qualname__", type(method).__qualname__)
    what = f"{name} returned a classifier with other parameters than it was given"
    check_tensors(what, *sides, "A ledger is of one network.")


def _equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one)
