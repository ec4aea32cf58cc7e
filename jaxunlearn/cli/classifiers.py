"""The classifiers of a run: made, judged, saved, and read back when it is taken up."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxunlearn import parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.console import Bars
from jaxunlearn.cli.folder import OutputFolder
from jaxunlearn.cli.images import load_images, save_images
from jaxunlearn.cli.plots import plot_images
from jaxunlearn.cli.settings import keys
from jaxunlearn.cli.sources import train_network
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Trace
from jaxunlearn.methods import forget_task
from jaxunlearn.methods.grid import trial_records
from jaxunlearn.metrics import METRICS, relative_change
from jaxunlearn.metrics.evaluation import Evaluation, evaluate, logits
from jaxunlearn.metrics.proxies import proxy_quality
from jaxunlearn.metrics.table import Judged
from jaxunlearn.models.files import load_classifier, save_with_card
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, Task, split_by_class


class RunClassifiers:
    """Makes each classifier of a `jaxunlearn run` with its record, and saves both."""

    def __init__(
        self,
        settings: Any,
        splits: Mapping[str, Data],
        folder: OutputFolder,
        shown: Bars,
    ):
        self._settings, self._splits = settings, splits
        self._folder, self._bars = folder, shown
        self._mesh = parallel.global_mesh()
        forget_set, retained = split_by_class(splits["train"], settings.forget)
        classes = {"forget_classes": settings.forget}
        classes["num_classes"] = settings.num_classes()
        self._task = Task(forget_set, retained, **classes)
        self._test = split_by_class(splits["test"], settings.forget)[1].images
        self._logits = None

    def original(self, given: Classifier | None) -> dict[str, Any]:
        """The classifier to unlearn from, given or trained; before all others."""

        def make(progress):
            watch = Stopwatch()
            with watch.stage("steps"):
                key = keys(self._settings.seed)[0]
                classifier = given or self._train(
                    self._splits["train"], key, progress, self._settings.preprocess()
                )
                jax.block_until_ready(classifier.params)
            trace, details = Trace(seconds=watch.seconds), {"learning_rate": None}
            return self._saved("original", classifier, trace, details)

        record = self._record("original", make)
        self._original = self._load("original")
        self._logits = logits(self._original, self._test, mesh=self._mesh)
        return record

    def unlearned(self, name: str) -> dict[str, Any]:
        """One method's classifier, made from the original."""

        def make(progress):
            result = self._forget(self._settings.settings_of(name), progress)
            trace, seed = result.trace, self._settings.seed
            if trace.proxies is not None:
                arrays = trace.proxies.images, trace.proxies.labels
                write = self._folder.write
                write("proxies.png", lambda p: plot_images(p, *arrays))
                write(
                    "proxies.npz", lambda path: save_images(path, trace.proxies, seed)
                )
            details = {
                "learning_rate": trace.tuned.get("learning_rate"),
                "validation_trials": trial_records(trace.tuned, trace.trials),
            }
            return self._saved(title_of(name), result.classifier, trace, details)

        return self._record(title_of(name), make)

    def proxies(self) -> dict[str, Any]:
        """How well CovarNav's proxies stand in for the retained data.

        Beside it, what CovarNav does with equally many true images in their place. The
        network retrained without the forgotten classes is the second judge, where it is
        part of the run.
        """
        method = self._settings.settings_of("covarnav")
        retrained = "retrain" in self._settings.methods

        def make(progress):
            progress("statistics", 0, 1)
            images = self._task.retain.images
            share = parallel.own_share(len(images), self._mesh)
            quality = proxy_quality(
                self._original,
                load_images(self._folder.work / "proxies.npz"),
                second_moments(self._original, images[share], mesh=self._mesh),
                second=self._load("retrained") if retrained else None,
                **(method.rule if method.projection == "hard" else {}),
            )
            progress("statistics", 1, 1)
            ceiling = dataclasses.replace(method, stand_in="retained")
            result = self._forget(ceiling, progress)
            classifier = result.classifier
            with_true = self._evaluate(classifier, "test")
            outputs = logits(classifier, self._test, mesh=self._mesh)
            return to_dict(quality) | {
                "with_true_images": {
                    "retained": with_true.retained,
                    "forgotten": with_true.forgotten,
                    "retained_logit_change": relative_change(self._logits, outputs),
                    "learning_rate": result.trace.tuned["learning_rate"],
                    "images": len(result.trace.proxies),
                }
            }

        return self._record("proxies", make)

    def _record(self, title: str, make) -> dict[str, Any]:
        """What is known of a classifier; its file stands for all that was written."""
        name = f"pieces/{title}.json"
        record = self._folder.read_json(name)
        if record is None:
            with self._bars.row(title) as progress:
                record = to_dict(make(progress))
            self._folder.write_json(name, record)
        return record

    def _saved(self, title, classifier, trace, details) -> dict[str, Any]:
        """Its record, after the classifier is written with its card."""
        accuracies = {s: self._evaluate(classifier, s) for s in self._splits}
        forgotten = () if title == "original" else self._settings.forget
        shape = self._task.forget.images.shape[1:]
        card = self._settings.card(title, shape, forgotten)
        shown = {"accuracies": accuracies}
        self._folder.write(
            f"{title}.safetensors",
            lambda path: save_with_card(path, classifier, card, shown),
        )
        costs = {
            field.name: getattr(trace, field.name)
            for field in dataclasses.fields(trace)
            if field.name not in ("proxies", "tuned", "trials")
        }
        outputs = logits(classifier, self._test, mesh=self._mesh)
        further = further_metrics(accuracies["test"], outputs, self._logits)
        return accuracies | further | details | costs

    def _forget(self, method: Any, progress):
        def train(data, key):
            return self._train(data, key, progress, self._original.preprocess)

        return forget_task(
            method,
            self._original,
            dataclasses.replace(self._task, train=train),
            validation=self._splits["validation"],
            grid=self._settings.learning_rates,
            key=keys(self._settings.seed)[1],
            progress=progress,
            mesh=self._mesh,
        )

    def _train(self, data, key, progress, preprocess) -> Classifier:
        given = {"key": key, "preprocess": preprocess, "mesh": self._mesh}
        validation = self._splits["validation"]
        return train_network(self._settings, data, validation, progress, **given)

    def _evaluate(self, classifier, split):
        data = self._splits[split]
        return evaluate(classifier, data, self._settings.forget, mesh=self._mesh)

    def _load(self, title: str) -> Classifier:
        return load_classifier(self._folder.work / f"{title}.safetensors")[0]


def title_of(method: str) -> str:
    """What a method's classifier is called in tables and files."""
    return "retrained" if method == "retrain" else method


def further_metrics(evaluation: Evaluation, outputs, original) -> dict[str, Any]:
    """What `METRICS` has besides the fields of an evaluation.

    Args:
      evaluation: on test data.
      outputs: logits of the retained test images.
      original: the original's on the same, or None for the original itself.
    """
    judged = Judged(evaluation, outputs, original)
    return {
        name: metric.function(judged)
        for name, metric in METRICS.items()
        if not hasattr(evaluation, name)
    }
