"""What a ledger holds, and how an event changes it."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxtyping import PyTree

from jaxunlearn.checks import check_type
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.ledger import classifiers
from jaxunlearn.ledger.entries import Entry, now
from jaxunlearn.ledger.kept_moments import read_moments, write_moments
from jaxunlearn.ledger.store import Head, Store, Stored
from jaxunlearn.methods.statistics import remaining
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.models.files import Card, save_classifier, versions
from jaxunlearn.nullspace.moments import class_moments
from jaxunlearn.tasks import Data, Task, check_classes, check_data


class State:
    """The files that count, the log, and the current classifier."""

    def __init__(self, store: Store, classifier: Any, train: Data | None):
        self.store, self.train = store, train
        self.head, self.log = store.read()
        path = store.path(self.head.current)
        self.classifier = classifiers.read_current(store, self.head, classifier)
        self.card = classifiers.read_card(path)[0]
        if train is not None:
            self.check_images("train", train)
        self._moments: PyTree = None
        if self.log[-1].kind == "commit" and store.unnamed(self.head):
            # A commit that was killed is not done until nothing is left.
            with contextlib.suppress(ValueError), self.writing():
                store.clean(self.head)

    def check_images(self, name: str, data: Any) -> None:
        """Refuse what is no `Data`, or of other images or classes than the ledger's."""
        check_data(name, data)
        shapes = self.card.image_shape, tuple(data.images.shape[1:])
        if shapes[0] is not None and shapes[0] != shapes[1]:
            msg = (
                f"Images of {name} have shape {list(shapes[1])}, and those of the "
                f"ledger {list(shapes[0])}: they must agree."
            )
            raise ValueError(msg)
        highest = int(data.labels.max(initial=-1))
        if highest >= self.card.num_classes:
            msg = f"Labels of {name} go up to {highest}, and the ledger is of {self.card.num_classes} classes."  # noqa: E501
            raise ValueError(msg)

    def moments(self) -> PyTree:
        """Of every class that was not forgotten for good."""
        if self._moments is None:
            path = self.store.path(self.head.moments)
            self._moments = read_moments(path, self.classifier.params)
        return self._moments

    def base(self) -> Classifier:
        """What requests started from, at first or since the last commit."""
        path = self.store.path(self.head.base)
        return classifiers.with_parameters(self.classifier, path)

    def task(self, data: Data, forgotten: tuple[int, ...], **given: Any) -> Task:
        """To forget these samples, where all these classes count as forgotten."""
        moments, count = self.moments(), self.card.num_classes
        given |= {"num_classes": count, "class_moments": moments}
        return Task(data, None, forgotten, **given)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Alone, and as the folder was read."""
        with self.store.lock.held():
            if self.store.read_head() != self.head:
                msg = (
                    f"{self.store.folder} has changed since it was opened here: "
                    "another process has written to it. Open it again."
                )
                raise ValueError(msg)
            yield

    def save(self, classifier: Classifier, forgotten: tuple[int, ...]) -> Stored:
        """The file of the parameters after the next entry."""
        return save(self.store, classifier, self.card, len(self.log), forgotten)

    def append(self, head: Head, classifier: Classifier, **fields: Any) -> None:
        """The next entry of the log, and with it what holds from now on."""
        entry = Entry(
            number=len(self.log),
            time=now(),
            previous=self.head.last,
            forgotten=head.forgotten,
            parameters=head.current.sha256,
            versions=versions(),
            **fields,
        )
        if head.moments != self.head.moments:
            self._moments = None
        self.head = self.store.write(head, entry)
        self.log = (*self.log, entry)
        self.classifier = classifier


def create(store: Store, classifier: Any, train: Any, card: Card | None) -> None:
    """A new ledger: one pass over the training data, and the first entry."""
    missing = [
        name
        for name, given in (("classifier", classifier), ("train", train))
        if given is None
    ]
    if missing:
        msg = (
            f"There is no ledger in {store.folder}: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} needed to make one, "
            "Ledger.open(path, classifier, train)."
        )
        raise ValueError(msg)
    check_classifier(classifier)
    check_data("train", train)
    check_type("card", card, Card, optional=True)
    store.check_free()
    count = num_classes(classifier, train.images)
    card = classifiers.card_of(classifier, train, count) if card is None else card
    committed = tuple(sorted(check_classes(card.forgotten, count)))
    watch = Stopwatch()
    with watch.stage("statistics"):
        moments = class_moments(
            classifier, train.images, train.labels, num_classes=count
        )
    store.folder.mkdir(parents=True, exist_ok=True)
    with store.lock.held():
        if store.is_there:
            msg = f"Another process has made the ledger in {store.folder}: open it."
            raise ValueError(msg)
        path = store.folder / "moments-0.safetensors"
        write_moments(path, moments, committed)
        base = save(store, classifier, card, 0, committed)
        head = Head(moments=store.stored(path, 0), base=base, committed=committed)
        entry = Entry(
            number=0,
            kind="open",
            time=now(),
            previous="",
            classes=tuple(remaining(moments, committed)),
            forgotten=committed,
            seconds=spent(watch),
            samples_read={"forget": 0, "retain": len(train)},
            parameters=base.sha256,
            versions=versions(),
        )
        store.write(head, entry)


def save(
    store: Store,
    classifier: Classifier,
    card: Card,
    number: int,
    forgotten: tuple[int, ...],
) -> Stored:
    """The file of the parameters after an entry: a checkpoint as any other."""
    path = store.folder / f"parameters-{number}.safetensors"
    card = dataclasses.replace(card, forgotten=forgotten)
    save_classifier(path, classifier, card)
    return store.stored(path, number)


def spent(watch: Stopwatch) -> dict[str, float]:
    """Seconds by stage; of compilation only where there was some."""
    return {stage: s for stage, s in watch.seconds.items() if s or stage != "compile"}
