"""The classifiers of a run: made, judged, saved, and read back when it is taken up."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxunlearn import parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.console import Bars, classes_left_out
from jaxunlearn.cli.folder import OutputFolder
from jaxunlearn.cli.images import load_images, save_images
from jaxunlearn.cli.judging import ClassJudge, Judge, SampleJudge
from jaxunlearn.cli.judging import further_metrics as further_metrics
from jaxunlearn.cli.plots import plot_classes
from jaxunlearn.cli.samples import Forgotten
from jaxunlearn.cli.settings import keys
from jaxunlearn.cli.sources import train_network
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result, Trace
from jaxunlearn.methods import forget_task
from jaxunlearn.methods.grid import trial_records
from jaxunlearn.metrics import audit_all
from jaxunlearn.metrics.proxies import proxy_quality
from jaxunlearn.models.files import load_classifier
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, Task

# What records hold elsewhere than under the name that a trace gives it.
_SEPARATE = ("proxies", "trials")


class RunClassifiers:
    """Makes each classifier of a `jaxunlearn run` with its record, and saves both."""

    def __init__(
        self,
        settings: Any,
        splits: Mapping[str, Data],
        folder: OutputFolder,
        shown: Bars,
        forgotten: Forgotten | None = None,
    ):
        self._forgotten = forgotten or Forgotten(settings.forget)
        self._settings, self._splits = settings, splits
        self._folder, self._bars = folder, shown
        self._mesh = parallel.global_mesh()
        parts, classes = self._forgotten.split(splits["train"]), self._forgotten.classes
        self._task = Task(*parts, classes, num_classes=settings.num_classes())
        self.judge: Judge = (
            ClassJudge(splits, classes, self._mesh)
            if classes
            else SampleJudge(splits, parts, self._mesh)
        )

    def original(self, given: Classifier | None) -> dict[str, Any]:
        """The classifier to unlearn from, given or trained; before all others."""

        def make(progress):
            watch, train = Stopwatch(), self._splits["train"]
            with watch.stage("steps"):
                classifier = given or train_network(
                    self._settings, self._splits, train, progress, mesh=self._mesh
                )
            result = Result(classifier, Trace(seconds=watch.seconds))
            return self._saved("original", result)

        record = self._record("original", make)
        self._original = self._load("original")
        self.judge.start_from(self._original)
        return record

    def unlearned(self, name: str) -> dict[str, Any]:
        """One method's classifier, made from the original."""

        def make(progress):
            result = self._forget(name, self._settings.settings_of(name), progress)
            trace, write = result.trace, self._folder.write
            if (proxies := trace.proxies) is not None:
                seed = self._settings.seed
                shown = {"title": f"{name}: stand-ins for retained images"}
                write("proxies.png", lambda path: plot_classes(path, proxies, **shown))
                write("proxies.npz", lambda path: save_images(path, proxies, seed))
            trials = {"validation_trials": trial_records(trace.tuned, trace.trials)}
            return self._saved(title_of(name), result) | trials

        return self._record(title_of(name), make)

    def proxies(self) -> dict[str, Any]:
        """How well CovarNav's proxies stand in for the retained data.

        Beside it, what CovarNav does with equally many true images in their place. The
        network retrained without the forgotten classes is the second judge, where it is
        part of the run.
        """
        method, mesh = self._settings.settings_of("covarnav"), self._mesh
        retrained = "retrain" in self._settings.methods

        def make(progress):
            progress("statistics", 0, 1)
            images = self._task.retain.images
            share = parallel.own_share(len(images), mesh)
            quality = proxy_quality(
                self._original,
                load_images(self._folder.work / "proxies.npz"),
                second_moments(self._original, images[share], mesh=mesh),
                second=self._load("retrained") if retrained else None,
                **(method.rule if method.projection == "hard" else {}),
            )
            progress("statistics", 1, 1)
            ceiling = dataclasses.replace(method, stand_in="retained")
            result = self._forget("covarnav", ceiling, progress)
            return to_dict(quality) | {
                "with_true_images": self.judge.shown(result.classifier)
                | result.trace.tuned
                | {"images": len(result.trace.proxies)}
            }

        return self._record("proxies", make)

    def audits(self) -> dict[str, Any]:
        """Every method's classifier beside two retrained ones, of different seeds."""
        second = self._record("retrained-2", self._retrained_again)
        del second  # It is a file from here on.
        names = [n for n in map(title_of, self._settings.methods) if n != "retrained"]

        def make(progress):
            return audit_all(
                {name: self._load(name) for name in names},
                original=self._original,
                retrained=[self._load(name) for name in ("retrained", "retrained-2")],
                train=self._splits["train"],
                test=self._splits["test"],
                forget_classes=self._forgotten.classes,
                forget=None if self._forgotten.classes else self._task.forget,
                key=jax.random.fold_in(keys(self._settings.seed)[1], 1),
                progress=progress,
            )

        return self._record("audit", make)

    def _retrained_again(self, progress) -> dict[str, Any]:
        key = jax.random.fold_in(keys(self._settings.seed)[1], 2)
        given = {"key": key, "preprocess": self._original.preprocess}
        watch = Stopwatch()
        with watch.stage("steps"), classes_left_out():
            classifier = train_network(
                *(self._settings, self._splits, self._task.retain, progress),
                **given,
                mesh=self._mesh,
            )
        return self._saved(
            "retrained-2", Result(classifier, Trace(seconds=watch.seconds))
        )

    def _record(self, title: str, make) -> dict[str, Any]:
        """What is known of a classifier, which is made unless it is there already."""

        def made() -> dict[str, Any]:
            with self._bars.row(title) as progress:
                return make(progress)

        return self._folder.piece(f"pieces/{title}.json", made)

    def _saved(self, title: str, result: Result) -> dict[str, Any]:
        """Its record, after the classifier is written with its card."""
        settings, classifier = self._settings, result.classifier
        accuracies = self.judge.accuracies(classifier)
        settings.save(
            self._folder,
            title,
            classifier,
            {"accuracies": accuracies},
            name=title,
            image_shape=self._task.forget.images.shape[1:],
            **({} if title == "original" else self._forgotten.card()),
        )
        costs = {n: x for n, x in vars(result.trace).items() if n not in _SEPARATE}
        return {
            **accuracies,
            **self.judge.further(classifier, accuracies["test"]),
            "learning_rate": result.trace.tuned.get("learning_rate"),
            **costs,
        }

    def _forget(self, name: str, method: Any, progress) -> Result:
        settings, like = self._settings, self._original.preprocess

        def train(data, key):
            given = {"key": key, "preprocess": like, "mesh": self._mesh}
            with classes_left_out():
                return train_network(settings, self._splits, data, progress, **given)

        return forget_task(
            method,
            self._original,
            dataclasses.replace(self._task, train=train),
            validation=self._splits["validation"],
            grid=settings.grid_of(name),
            key=keys(settings.seed)[1],
            progress=progress,
            mesh=self._mesh,
        )

    def _load(self, title: str) -> Classifier:
        return load_classifier(self._folder.work / f"{title}.safetensors")[0]


def title_of(method: str) -> str:
    """What a method's classifier is called in tables and files."""
    return "retrained" if method == "retrain" else method
