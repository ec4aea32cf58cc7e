"""`Ledger`: one classifier, and the requests that it serves one after another."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Array

from jaxunlearn.checks import check_eager, check_key
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result
from jaxunlearn.ledger.asking import (
    asked_classes,
    check_method,
    forget_data,
    key_record,
    method_record,
)
from jaxunlearn.ledger.certificate import certificate
from jaxunlearn.ledger.classifiers import check_network, with_parameters
from jaxunlearn.ledger.entries import Entry
from jaxunlearn.ledger.kept_moments import write_moments
from jaxunlearn.ledger.replaying import Replay, plan, replayed
from jaxunlearn.ledger.revival import Revived, check_revival, revived
from jaxunlearn.ledger.state import State, create, spent
from jaxunlearn.ledger.store import Head, Standing, Store
from jaxunlearn.methods import forget_task
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.models.files import Card
from jaxunlearn.progress import Progress
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, check_data
from jaxunlearn.tasks.classes import name_classes


class Ledger:
    """A classifier in a folder, with class moments in place of its training data.

    Requests to forget classes come one after another. Each starts from the current
    parameters, descends on the new classes' images alone and reads no retained image:
    what it must not disturb it knows from `C = sum(C_c)` over the classes that are
    still retained, in ascending order, so that the projector of a set of classes has
    the same bits in whatever order they were asked for. Every event is a line of the
    log, with the hash of the line before.

    The folder holds the base and all parameters since, moments, `log.jsonl` and
    `ledger.json`, which is written last: a request that is killed leaves the ledger as
    it was. One process at a time writes. `Ledger.open` makes one, or reads it.

    Attributes:
      classifier: the current one.
      forgotten: the classes that are forgotten, in ascending order.
      log: the `Entry` of every event.
      card: what the files say of the classifier: classes, image shape, names.
      folder: where it is.

    >>> import tempfile
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> import jaxunlearn as ju
    >>> def logits(params, state, images):
    ...     return images.reshape(len(images), -1) @ params["kernel"]
    >>> classifier = ju.freeze(ju.Function(logits, {"kernel": 5 * jnp.eye(3)}))
    >>> images = np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1)
    >>> train, method = ju.Data(images, [0, 1, 2]), ju.UNSC(learning_rate=1.0, steps=30)
    >>> with tempfile.TemporaryDirectory() as place:
    ...     ledger = ju.Ledger.open(place, classifier, train)
    ...     result = ledger.forget([0], method, key=jax.random.key(1))
    ...     print(ledger.classifier(images).argmax(axis=1).tolist(), ledger.forgotten)
    ...     ledger.undo()
    ...     print(ledger.classifier(images).argmax(axis=1).tolist())
    ...     print([entry.kind for entry in ledger.log])
    [1, 1, 2] (0,)
    [0, 1, 2]
    ['open', 'forget', 'undo']
    """

    def __init__(self, state: State):
        self._state = state

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        classifier: Classifier | Any = None,
        train: Data | Any = None,
        *,
        card: Card | None = None,
    ) -> "Ledger":
        """The ledger in a folder; where none is yet, a new one.

        Args:
          path: of the folder.
          classifier: needed for a new one. Of one that is there it gives the network,
            which is needed where `models.create` does not make it, and must have the
            parameters that the ledger started from or those it has now.
          train: the training data. A new ledger reads them in one pass, for the moments
            of every class. Later they serve for the images to forget.
          card: for a new one, what files say of the classifier (data set, names,
            classes that it has forgotten already); None: what can be seen.

        Raises:
          TypeError: an argument is of the wrong type.
          ValueError: there is no ledger and `classifier` or `train` is missing; a file
            of it is missing or damaged, or the log was changed; `classifier` is
            another; another process is writing; or what `class_moments` refuses.
        """
        store = Store(Path(path))
        if train is not None:
            check_data("train", train)
        if not store.is_there:
            create(store, classifier, train, card)
        return cls(State(store, classifier, train))

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._state.store.folder

    @property
    def path(self) -> Path:
        """The file of the current parameters, a checkpoint as any other."""
        return self._state.store.path(self._state.head.current)

    @property
    def card(self) -> Card:
        """What the files say of the classifier."""
        return self._state.card

    @property
    def classifier(self) -> Classifier:
        """The current one."""
        return self._state.classifier

    @property
    def forgotten(self) -> tuple[int, ...]:
        """The classes that are forgotten, in ascending order."""
        return self._state.head.forgotten

    @property
    def log(self) -> tuple[Entry, ...]:
        """Every event, from the first on."""
        return self._state.log

    def forget(
        self,
        classes: Iterable[Any],
        method: Any,
        *,
        key: Array,
        forget: Data | Any = None,
        test: Data | Any = None,
        validation: Data | Any = None,
        grid: Iterable[float] | None = None,
        progress: Progress = None,
    ) -> Result:
        """Forget further classes, from the current parameters on.

        Earlier classes are neither protected nor new labels. No retained image is read,
        but those of `test`, to measure, and of `validation`, if there is a grid.

        Args:
          classes: by number, or by name where the data have names.
          method: one that needs no retained images: UNSC works from the moments that
            are kept, CovarNav inverts images, others need neither.
          key: a `jax.random.key`.
          forget: samples of these classes; None: those in `train`.
          test: samples of all classes; the log then has their accuracies.
          validation: as for `jaxunlearn.forget`, like `grid`.
          grid: values of the field that the method tunes. The log has the chosen one.
          progress: None, "bar", or a function `(stage, done, total)`.

        Raises:
          TypeError: an argument is of the wrong type.
          ValueError: classes that are forgotten already, do not exist or are all that
            is left; a method that reads retained images; no images to forget; another
            process is writing; or what the method refuses.
        """
        state, before, card = self._state, self.classifier, self.card
        asked = asked_classes(
            classes, self.forgotten, card.num_classes, card.class_names
        )
        check_method(method)
        check_key(key)
        data, samples = forget_data(asked, forget, state.train)
        for name, other in (("test", test), ("validation", validation)):
            if other is not None:
                state.check_images(name, other)
        state.check_images("forget", data)
        check_eager("Ledger.forget", data.images)
        forgotten, watch = tuple(sorted({*self.forgotten, *asked})), Stopwatch()
        with state.writing():
            task, grid = state.task(data, forgotten), () if grid is None else grid
            given = {"key": key, "validation": validation, "grid": grid}
            result = forget_task(method, before, task, **given, progress=progress)
            after, trace = result.classifier, result.trace
            check_network(method, before, after)
            with watch.stage("certificate"):
                sides = state.base(), before, after
                found = certificate(state.moments(), forgotten, *sides)
            with watch.stage("test"):
                accuracies = None if test is None else evaluate(after, test, forgotten)
            request = Standing(asked, state.save(after, forgotten))
            requests = (*state.head.requests, request)
            state.append(
                dataclasses.replace(state.head, requests=requests),
                after,
                kind="forget",
                classes=asked,
                samples=samples,
                method=method_record(method, dict(trace.tuned)),
                key=key_record(key),
                certificate=found | {"since": state.head.base.entry},
                test=to_dict(accuracies),
                seconds={**trace.seconds, **spent(watch)},
                samples_read=dict(trace.samples_read),
            )
        return result

    def undo(self) -> None:
        """Back to the parameters before the last request that stands, bit for bit.

        Raises:
          ValueError: no request stands, or all were committed; another process is
            writing.
        """
        head, committed = self._state.head, self._state.head.committed
        if not head.requests:
            why = "no request stands"
            if committed:
                why = f"{why}, and {name_classes(committed)} went for good"
            msg = f"There is nothing to undo: {why}."
            raise ValueError(msg)
        with self._state.writing():
            last, left = head.requests[-1], head.requests[:-1]
            head = dataclasses.replace(head, requests=left)
            path = self._state.store.path(head.current)
            before = with_parameters(self.classifier, path)
            about = {"classes": last.classes, "about": last.parameters.entry}
            self._state.append(head, before, kind="undo", **about)

    def commit(self) -> None:
        """Forget for good: what could bring the forgotten classes back is deleted.

        Their moments go, and all parameters but the current ones, which are the new
        base: no undo reaches behind it. Files are unlinked; copies elsewhere, and
        blocks that a disk has not yet overwritten, are not reached.

        Raises:
          ValueError: no request stands; another process is writing.
        """
        state, head = self._state, self._state.head
        if not head.requests:
            msg = "There is nothing to commit: no request stands since the ledger was opened or committed."  # noqa: E501
            raise ValueError(msg)
        with state.writing():
            number = len(self.log)
            path = self.folder / f"moments-{number}.safetensors"
            write_moments(path, state.moments(), self.forgotten)
            kept = {"moments": state.store.stored(path, number), "base": head.current}
            new = Head(**kept, committed=self.forgotten)
            gone = {s.file for s in head.files} - {s.file for s in new.files}
            classes = tuple(sorted(set(self.forgotten) - set(head.committed)))
            said = {"classes": classes, "deleted": tuple(sorted(gone))}
            state.append(new, self.classifier, kind="commit", **said)

    def replay(self, *, forget: Mapping[int, Data] | None = None) -> Replay:
        """Make all standing requests again, from the base, and compare.

        Methods, settings and keys are those of the log. Equal bits are to be expected
        on the same kind of device with the same versions.

        Args:
          forget: the samples of requests that were given theirs, by the number of the
            request's entry; the others' are those in `train`.

        Raises:
          ValueError: no request stands; a method is not one of `methods.by_name`;
            images are missing or not those of the log; another process is writing.
        """
        state, watch = self._state, Stopwatch()
        given = {} if forget is None else dict(forget)
        planned = plan(state.head, self.log, state.train, given)
        with state.writing():
            with watch.stage("replay"):
                found = replayed(state.base(), self.classifier, planned, state.task)
            record = {"replay": to_dict(found), "seconds": spent(watch)}
            state.append(state.head, self.classifier, kind="replay", **record)
        return found

    def revival(
        self,
        train: Data,
        test: Data,
        *,
        key: Array,
        target: float = 90.0,
        cap: int | None = None,
        append: bool = False,
    ) -> dict[int, Revived]:
        """Does an earlier class come back? Measured for every forgotten class.

        Its accuracy, what a linear probe reads of it off the features, and how many
        minibatches teach it again. Both sets are read to measure alone.

        Args:
          train: training samples of all classes, the forgotten ones included.
          test: held-out samples of all classes.
          key: a `jax.random.key`, for the order of relearning.
          target: the accuracy in percent that relearning is to reach.
          cap: the most minibatches; None: `metrics.Relearning`'s.
          append: whether the records become an entry of the log.

        Raises:
          TypeError: an argument is of the wrong type.
          ValueError: nothing is forgotten, a set lacks a class, or a target outside
            (0, 100].
        """
        check_key(key)
        for name, data in (("train", train), ("test", test)):
            self._state.check_images(name, data)
        check_revival(train, test, self.forgotten, target, cap)
        watch, given = Stopwatch(), (self.classifier, train, test, self.forgotten)
        with watch.stage("revival"):
            found = revived(*given, key=key, target=float(target), cap=cap)
        if append:
            records = {str(c): to_dict(one) for c, one in found.items()}
            said = {"classes": self.forgotten, "key": key_record(key)}
            said |= {"revival": records, "seconds": spent(watch)}
            with self._state.writing():
                self._state.append(
                    self._state.head, self.classifier, kind="revival", **said
                )
        return found
