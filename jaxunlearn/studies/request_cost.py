"""What requests cost: one by one, from a ledger, together, or by retraining."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.ledger import Ledger
from jaxunlearn.methods import forget_task
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.studies.given import Given, Rows
from jaxunlearn.tasks import Task, split_by_class


class Served(NamedTuple):
    """What requests left behind, and how many retained samples they read."""

    classifier: Classifier
    read: int


def request_cost(given: Given, *, counts: Sequence[int]) -> Rows:
    """Seconds and samples read by so many requests for one class each.

    The classes are the first ones in order. Methods keep the value of their grid that
    the classes of `given` lead to. Compilation is not counted, and retraining is so
    many trainings as the original's: as often as requests come, and once together.

    Args:
      given: of one training seed.
      counts: numbers of requests, each less than there are classes.

    Returns:
      By "METHOD, WAY, COUNT" for the ways "one by one", "ledger" (the pass over all
      data that opens it included) and "together", and by "retraining, one by one,
      COUNT" and "retraining, together, COUNT": "seconds" of all, "seconds_each" of a
      request, "read" (retained samples, repeats included), and for methods
      "accuracy/retained" and "accuracy/forgotten" at the end.

    Raises:
      ValueError: a count is none of 1 to the number of classes less one.
    """
    for count in counts:
        if not 1 <= count < given.num_classes:
            msg = f"counts must be 1 to {given.num_classes - 1}, which leaves a class to retain; one is {count}."  # noqa: E501
            raise ValueError(msg)
    rows: Rows = {}
    for count in counts:
        for way, times in (("one by one", count), ("together", 1)):
            seconds = times * given.training_seconds
            read = float(times * given.training_samples)
            about = {"seconds": seconds, "seconds_each": seconds / count, "read": read}
            rows[f"retraining, {way}, {count}"] = about
    for title in given.methods:
        method = given.tuned(title)
        for way, serve in _WAYS.items():
            for count in counts:
                rows[f"{title}, {way}, {count}"] = _row(given, method, serve, count)
    return rows


def _row(given: Given, method: Any, serve: Callable[..., Served], count: int):
    watch, classes = Stopwatch(), tuple(range(count))
    with watch.stage("requests"):
        served = serve(given, method, classes)
    seconds = watch.seconds["requests"]
    end = evaluate(served.classifier, given.test, classes)
    return {
        "seconds": seconds,
        "seconds_each": seconds / count,
        "read": float(served.read),
        "accuracy/retained": end.retained,
        "accuracy/forgotten": end.forgotten,
    }


def _one_by_one(given: Given, method: Any, classes: tuple[int, ...]) -> Served:
    """Each from what the last one left; the retained data are read for each."""
    classifier, read = given.original, 0
    for number, now in enumerate(classes, 1):
        forget = given.train.take(np.flatnonzero(given.train.labels == now))
        retain = split_by_class(given.train, classes[:number])[1]
        task = Task(forget, retain, classes[:number], num_classes=given.num_classes)
        result = forget_task(method, classifier, task, key=given.key)
        classifier = result.classifier
        read += result.trace.samples_read.get("retain", 0)
    return Served(classifier, read)


def _ledger(given: Given, method: Any, classes: tuple[int, ...]) -> Served:
    """From moments that are taken once, and kept on disk."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "ledger"
        ledger = Ledger.open(place, given.original, given.train)
        read = len(given.train)
        for now in classes:
            result = ledger.forget([now], method, key=given.key)
            read += result.trace.samples_read.get("retain", 0)
        return Served(ledger.classifier, read)


def _together(given: Given, method: Any, classes: tuple[int, ...]) -> Served:
    """As one request."""
    parts = split_by_class(given.train, classes)
    task = Task(*parts, classes, num_classes=given.num_classes)
    result = forget_task(method, given.original, task, key=given.key)
    return Served(result.classifier, result.trace.samples_read.get("retain", 0))


_WAYS = {"one by one": _one_by_one, "ledger": _ledger, "together": _together}
