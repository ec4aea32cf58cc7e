"""`jaxunlearn run`: train, forget, compare."""

import dataclasses
import platform
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxunlearn import datasets, models, training
from jaxunlearn.classifier import Classifier
from jaxunlearn.cli.console import Bars, bars, comparison
from jaxunlearn.cli.folder import RunFolder
from jaxunlearn.cli.settings import Run, to_json
from jaxunlearn.evaluation import Evaluation, evaluate, logits
from jaxunlearn.methods import Descent
from jaxunlearn.methods.selection import choose_learning_rate
from jaxunlearn.metrics import relative_change
from jaxunlearn.report.plots import plot_accuracies, plot_images
from jaxunlearn.stopwatch import Stopwatch
from jaxunlearn.tasks import Data, Task, split_by_class
from jaxunlearn.unlearning import Trace

_PACKAGES = ("jaxunlearn", "jax", "flax", "optax", "numpy")


def run(settings: Run, console: Console) -> None:
    """Do all of it, and print the table."""
    settings = settings.checked()
    splits = {
        split: datasets.load(
            settings.dataset, split, data_dir=settings.data_dir, seed=settings.seed
        )
        for split in ("train", "validation", "test")
    }
    for data in splits.values():
        split_by_class(data, settings.forget)
    folder = RunFolder(settings)
    if folder.resumed:
        console.print(f"Taking up the unfinished run in {folder.partial}.")
    with bars(console) as shown:
        work = _Work(settings, folder, splits, shown)
        records = {"original": work.original()}
        for name in settings.methods:
            records[_title(name)] = work.unlearned(name)
    _write(settings, folder, splits, records)
    final = folder.finish()
    console.print(comparison(records, _headline(settings)))
    console.print(
        "Acc_r, Acc_f: test accuracy on retained and forgotten classes, unweighted "
        "class means.\nlogit change: of the retained test images, relative to the "
        "original's.\nrate: learning rate, chosen on validation data by one rule for "
        "all methods.",
        soft_wrap=True,
    )
    console.print(f"Written to {final}.")


@dataclasses.dataclass
class _Work:
    """The pieces of a run; each is read back if an earlier run has finished it."""

    settings: Run
    folder: RunFolder
    splits: dict[str, Data]
    bars: Bars

    def __post_init__(self):
        forget, retain = split_by_class(self.splits["train"], self.settings.forget)
        self.task = Task(
            forget,
            retain,
            self.settings.forget,
            num_classes=datasets.num_classes(self.settings.dataset),
            train=self._trainer("retrained"),
        )
        keys = jax.random.split(jax.random.key(self.settings.seed), 3)
        self.original_key, self.method_key, self.steps_key = keys

    def _trainer(self, name: str):
        def train(data: Data, key) -> Classifier:
            recipe = self.settings.recipe
            size = min(recipe.batch_size, len(data))
            total = recipe.epochs * (len(data) // size)
            model = models.create(
                self.settings.model,
                num_classes=datasets.num_classes(self.settings.dataset),
            )
            return training.fit(
                model,
                data,
                recipe=recipe,
                key=key,
                preprocess=datasets.preprocess(self.settings.dataset),
                callback=lambda step, _: self.bars.update(
                    f"{name}: train", step + 1, total
                ),  # noqa: E501
            )

        return train

    def original(self) -> dict[str, Any]:
        """The classifier to unlearn from."""
        self.classifier = self.folder.load("original")
        stored = self.folder.read_json("original.json")
        if self.classifier is None or stored is None:
            watch = Stopwatch()
            with watch.stage("steps"):
                train = self._trainer("original")
                self.classifier = train(self.splits["train"], self.original_key)
                jax.block_until_ready(self.classifier.params)
            stored = self._finish("original", self.classifier, watch.seconds, {})
        self.logits = self._retained_logits(self.classifier)
        return stored

    def unlearned(self, name: str) -> dict[str, Any]:
        """One method's classifier."""
        title = _title(name)
        stored = self.folder.read_json(f"{title}.json")
        if stored is not None:
            return stored
        method = self.settings.settings_of(name)

        def progress(stage, done, total):
            self.bars.update(f"{title}: {stage}", done, total)

        if isinstance(method, Descent):
            classifier, trace, extra = self._descend(title, method, progress)
        else:
            result = method(self.classifier, self.task, key=self.method_key)
            classifier, trace, extra = result.classifier, result.trace, {}
        extra |= _trace_record(trace)
        if trace.proxies is not None:
            plot_images(
                self.folder.partial / "proxies.png",
                trace.proxies.images,
                trace.proxies.labels,
            )
        return self._finish(title, classifier, dict(trace.seconds), extra)

    def _descend(self, title, method, progress):
        setting = method.prepare(
            self.classifier, self.task, key=self.method_key, progress=progress
        )
        extra: dict[str, Any] = {}
        if self.settings.learning_rates:
            rate, trials = choose_learning_rate(
                method,
                self.classifier,
                self.task,
                setting,
                self.splits["validation"],
                self.settings.learning_rates,
                key=self.steps_key,
                progress=lambda done, total: progress("rates", done, total),
            )
            method = method.replace(learning_rate=rate)
            extra["validation_trials"] = [trial._asdict() for trial in trials]
        result = method.descend(
            self.classifier, self.task, setting, key=self.steps_key, progress=progress
        )
        extra["learning_rate"] = method.learning_rate
        return result.classifier, result.trace, extra

    def _retained_logits(self, classifier):
        test = self.splits["test"]
        kept = ~np.isin(test.labels, self.settings.forget)
        return logits(classifier, test.images[kept])

    def _finish(self, title, classifier, seconds, extra) -> dict[str, Any]:
        change = None
        if title != "original":
            change = relative_change(self.logits, self._retained_logits(classifier))
        evaluations = {
            split: evaluation_record(evaluate(classifier, data, self.settings.forget))
            for split, data in self.splits.items()
        }
        record = {
            **evaluations,
            "retained_logit_change": change,
            "seconds": seconds,
            **extra,
        }  # noqa: E501
        card = {
            "model": self.settings.model,
            "num_classes": self.task.num_classes,
            "options": {},
            "dataset": self.settings.dataset,
            "split_seed": self.settings.seed,
            "image_shape": list(self.task.forget.images.shape[1:]),
            "name": title,
            "forgotten": [] if title == "original" else list(self.settings.forget),
        }
        self.folder.save(title, classifier, card)
        self.folder.write_json(f"{title}.json", record)
        return record


def _title(name: str) -> str:
    """What a method's classifier is called in tables and files."""
    return "retrained" if name == "retrain" else name


def _headline(settings: Run) -> str:
    classes = ", ".join(map(str, settings.forget))
    return (
        f"{settings.dataset}, {settings.model}: forget {classes}, seed {settings.seed}"
    )


def evaluation_record(found: Evaluation) -> dict[str, Any]:
    """An evaluation as plain values."""
    record = dataclasses.asdict(found)
    return {
        k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in record.items()
    }


def _trace_record(trace: Trace) -> dict[str, Any]:
    return {
        "losses": np.asarray(trace.losses).tolist(),
        "ranks": dict(trace.ranks),
        "surviving_gradient": dict(trace.surviving_gradient),
        "samples_read": dict(trace.samples_read),
    }


def _write(settings: Run, folder: RunFolder, splits, records) -> None:
    """The files that need all of the run: configuration, metrics, accuracies."""
    chosen = {
        name: settings.settings_of(name).replace(
            learning_rate=records[_title(name)]["learning_rate"]
        )
        for name in settings.methods
        if "learning_rate" in records[_title(name)]
    }
    # Rates once chosen stay chosen when the configuration is run again.
    stored = dataclasses.replace(
        settings, learning_rates=(), config=None, overwrite=False, **chosen
    )
    folder.write_json("config.json", to_json(stored))
    folder.write_json(
        "metrics.json",
        {
            "learning_rates_tried": list(settings.learning_rates),
            "learning_rate_rule": choose_learning_rate.__doc__.splitlines()[0],
            "samples": {split: len(data) for split, data in splits.items()},
            "versions": {name: version(name) for name in _PACKAGES}
            | {"python": platform.python_version()},
            "device": jax.devices()[0].device_kind,
            "classifiers": records,
        },
    )
    plot_accuracies(
        folder.partial / "accuracies.png",
        {name: record["test"]["per_class"] for name, record in records.items()},
        settings.forget,
    )
    for name in records:
        (folder.partial / f"{name}.json").unlink(missing_ok=True)
