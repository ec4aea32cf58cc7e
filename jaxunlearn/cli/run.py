"""`jaxunlearn run`: train, forget, compare."""

import dataclasses
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax

from jaxunlearn import methods, parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.console import Bars, bars, comparison, consoles
from jaxunlearn.cli.folder import Kind, OutputFolder
from jaxunlearn.cli.images import load_images, save_images
from jaxunlearn.cli.plots import plot_accuracies, plot_images
from jaxunlearn.cli.processes import Distributed, is_first, joined
from jaxunlearn.cli.settings import (
    Classes,
    File,
    Folder,
    MethodSettings,
    TrainingSettings,
    check_forget,
    check_names,
    keys,
)
from jaxunlearn.cli.sources import load_original, train_network, with_checkpoint
from jaxunlearn.cli.unlearn import forget
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Trace
from jaxunlearn.methods.learning_rates import TOLERANCE
from jaxunlearn.metrics import relative_change
from jaxunlearn.metrics.evaluation import evaluate, logits
from jaxunlearn.metrics.proxies import proxy_quality
from jaxunlearn.models.files import load_classifier, save_with_card, versions
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.serialization import from_dict, read_json, to_dict
from jaxunlearn.tasks import Data, Task, split_by_class

RUN = Kind(
    name="run",
    settings=("request.json",),
    complete=("metrics.json",),
    written=("*.json", "*.safetensors", "*.png", "*.npz"),
    unfinished=("pieces", "request.json"),
    beside=True,
)

# Where a run goes, and on how many processes, is not part of what it is.
_ELSEWHERE = ("out", "overwrite", "config") + tuple(
    field.name for field in dataclasses.fields(Distributed)
)

_LEGEND = """\
Acc_r, Acc_f: test accuracy, mean over retained and over forgotten classes.
change: of the logits of the retained test images, relative to the original's.
seconds: at the final rate, without compilation, which the first to need a
program pays for all.
rate: learning rate, """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Distributed, MethodSettings, TrainingSettings):
    """Train a classifier, forget classes with several methods, compare them.

    Attributes:
      forget: the classes to forget.
      methods: what to compare.
      checkpoint: start from this classifier instead of training one: a .safetensors
        file of jaxunlearn, which sets the defaults of --dataset, --size, --mean,
        --std, --model, --options and --split-seed; or PyTorch's parameters of that
        --model.
      judge_proxies: measure how well CovarNav's proxies stand in for the retained data,
        and what it does with true images instead.
      out: the run's folder; by default runs/DATASET-forget-CLASSES-seed-SEED.
      overwrite: replace what is there, once the new run is complete.
      config: the config.json of a run, whose values become the defaults of all flags.
    """

    examples = (
        "jaxunlearn run --forget 3",
        "jaxunlearn run --forget 3 5 --methods unsc retrain --unsc.energy 0.95",
    )
    first = (
        *("forget", "methods", "dataset", "data_dir", "size", "model", "options"),
        *("recipe.epochs", "checkpoint", "learning_rates", "judge_proxies", "seed"),
        *("out", "overwrite", "config"),
    )

    choices = TrainingSettings.choices | {"methods": methods.by_name}

    forget: Classes = (3,)
    methods: Annotated[tuple[str, ...], "METHOD"] = (
        "covarnav",
        "unsc",
        "unprojected",
        "retrain",
    )
    checkpoint: File | None = None
    judge_proxies: bool = True
    out: Folder = None
    overwrite: bool = False
    config: File | None = None

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> "Run":
        """Those of a stored configuration, then of a checkpoint."""
        run = cls()
        if given.get("config") is not None:
            run = read_config(given["config"])
        if given.get("checkpoint") is not None:
            run = with_checkpoint(run, given["checkpoint"])
        return run

    @property
    def place(self) -> Path:
        """Where the run goes."""
        classes = "-".join(map(str, self.forget))
        name = f"{self.label}-forget-{classes}-seed-{self.seed}"
        return Path("runs") / name if self.out is None else self.out

    def check(self) -> None:
        """Check what can be checked before any data are read.

        Raises:
          TypeError: the network has no such option.
          ValueError: names, classes, rates or a seed are not what they can be.
        """
        super().check()
        self.check_processes()
        check_names("method", self.methods, list(methods.by_name))
        check_forget(self.forget, self.num_classes())
        self.check_rates()

    def to_dict(self) -> dict[str, Any]:
        """What makes two runs the same: all but where they go."""
        return super().to_dict(self.methods, _ELSEWHERE)

    def run(self) -> None:
        """Do all of it, and print the table; alone, or as one of several processes."""
        self.check()
        with joined(self):
            _run(self)


def read_config(path: Path) -> Run:
    """A run's stored configuration.

    Raises:
      ValueError: there is no such file, it is no JSON object, or what it holds does not
        fit.
    """
    if not path.is_file():
        msg = f"There is no file {path}: --config takes the config.json of a run."
        raise ValueError(msg)
    stored = read_json(path)
    try:
        return from_dict(Run(), stored)
    except (ValueError, TypeError) as error:
        msg = f"{path} is no configuration of a run. {error}"
        raise ValueError(msg) from error


def _run(settings: Run) -> None:
    results, progress = consoles(quiet=not is_first())
    splits = settings.load_splits()
    for data in splits.values():
        split_by_class(data, settings.forget)  # both parts must be there
    given, images = None, splits["train"].images
    if settings.checkpoint is None:
        settings.check_images(images)
    else:
        given = load_original(settings, settings.checkpoint, images.shape[1:])
    folder = OutputFolder(
        settings.place,
        settings.to_dict(),
        kind=RUN,
        resume=True,
        overwrite=settings.overwrite,
    )
    if folder.resumed:
        progress.print(f"Taking up the unfinished run in {folder.work}.")
    with folder:
        with bars(progress) as shown:
            classifiers = _Classifiers(settings, splits, folder, shown)
            records = {"original": classifiers.original(given)}
            for name in settings.methods:
                records[title_of(name)] = classifiers.unlearned(name)
            judged = settings.judge_proxies and "covarnav" in settings.methods
            proxies = classifiers.proxies() if judged else None
        _write(settings, folder, splits, records, proxies)
        folder.finish()
    classes = ", ".join(map(str, settings.forget))
    title = (
        f"{settings.dataset}, {settings.model}, forget {classes}, seed {settings.seed}"
    )
    results.print(comparison(records, title))
    chosen = "chosen on validation data by one rule for all."
    results.print(_LEGEND + (chosen if settings.learning_rates else "set by hand."))
    if proxies is not None:
        results.print(_judgement(proxies))
    results.print(f"Written to {folder.place}.")


class _Classifiers:
    """Makes each classifier of a run with its record, and saves both.

    Those of an unfinished run that is taken up are read back.
    """

    def __init__(
        self,
        settings: Run,
        splits: Mapping[str, Data],
        folder: OutputFolder,
        shown: Bars,
    ):
        self._settings, self._splits = settings, splits
        self._folder, self._bars = folder, shown
        self._mesh = parallel.global_mesh()
        forgotten, retained = split_by_class(splits["train"], settings.forget)
        self._task = Task(
            forgotten,
            retained,
            settings.forget,
            num_classes=settings.num_classes(),
        )
        self._key, self._method_key = keys(settings.seed)
        self._test = split_by_class(splits["test"], settings.forget)[1].images

    def original(self, given: Classifier | None) -> dict[str, Any]:
        """The classifier to unlearn from, given or trained; before all others."""
        record, classifier = self._folder.read_json("pieces/original.json"), given
        if record is not None:
            classifier = self._load("original")
        else:
            watch = Stopwatch()
            with self._bars.row("original") as progress, watch.stage("steps"):
                if classifier is None:
                    classifier = self._train(
                        self._splits["train"],
                        self._key,
                        progress,
                        self._settings.preprocess(),
                    )
                jax.block_until_ready(classifier.params)
            trace = Trace(seconds=watch.seconds)
            record = self._save("original", classifier, trace, {"learning_rate": None})
        self._original, self._logits = classifier, self._outputs(classifier)
        return record

    def unlearned(self, name: str) -> dict[str, Any]:
        """One method's classifier, made from the original."""
        title = title_of(name)
        done = self._folder.read_json(f"pieces/{title}.json")
        if done is not None:
            return done
        with self._bars.row(title) as progress:
            forgotten = self._forget(self._settings.settings_of(name), progress)
        classifier, trace = forgotten.result.classifier, forgotten.result.trace
        if trace.proxies is not None:
            self._save_proxies(trace.proxies)
        details = {
            "retained_logit_change": self._change(classifier),
            "learning_rate": forgotten.learning_rate,
            "validation_trials": [trial._asdict() for trial in forgotten.trials],
        }
        return self._save(title, classifier, trace, details)

    def proxies(self) -> dict[str, Any]:
        """How well CovarNav's proxies stand in for the retained data.

        Beside it, what CovarNav does with equally many true images in their place. The
        network retrained without the forgotten classes is the second judge, where it is
        part of the run.
        """
        done = self._folder.read_json("pieces/proxies.json")
        if done is not None:
            return done
        method = self._settings.settings_of("covarnav")
        with self._bars.row("proxies") as progress:
            progress("statistics", 0, 1)
            images = self._task.retain.images
            share = parallel.own_share(len(images), self._mesh)
            retained = second_moments(self._original, images[share], mesh=self._mesh)
            retrained = "retrain" in self._settings.methods
            quality = proxy_quality(
                self._original,
                load_images(self._folder.work / "proxies.npz"),
                retained,
                second=self._load("retrained") if retrained else None,
                **(method.rule if method.projection == "hard" else {}),
            )
            progress("statistics", 1, 1)
            ceiling = dataclasses.replace(method, stand_in="retained")
            forgotten = self._forget(ceiling, progress)
        classifier = forgotten.result.classifier
        with_true = self._evaluate(classifier, "test")
        record = to_dict(quality) | {
            "with_true_images": {
                "retained": with_true.retained,
                "forgotten": with_true.forgotten,
                "retained_logit_change": self._change(classifier),
                "learning_rate": forgotten.learning_rate,
                "images": len(forgotten.result.trace.proxies),
            }
        }
        self._folder.write_json("pieces/proxies.json", record)
        return to_dict(record)

    def _forget(self, method: Any, progress):
        def train(data, key):
            return self._train(data, key, progress, self._original.preprocess)

        return forget(
            method,
            self._original,
            dataclasses.replace(self._task, train=train),
            self._splits["validation"],
            self._settings.learning_rates,
            key=self._method_key,
            progress=progress,
            mesh=self._mesh,
        )

    def _train(self, data, key, progress, preprocess) -> Classifier:
        return train_network(
            self._settings,
            data,
            self._splits["validation"],
            progress,
            key=key,
            preprocess=preprocess,
            mesh=self._mesh,
        )

    def _outputs(self, classifier):
        """Logits of the retained test images."""
        return logits(classifier, self._test, mesh=self._mesh)

    def _change(self, classifier) -> float:
        return relative_change(self._logits, self._outputs(classifier))

    def _evaluate(self, classifier, split):
        data = self._splits[split]
        return evaluate(classifier, data, self._settings.forget, mesh=self._mesh)

    def _load(self, title: str) -> Classifier:
        return load_classifier(self._folder.work / f"{title}.safetensors")[0]

    def _save_proxies(self, proxies: Data) -> None:
        folder, seed = self._folder, self._settings.seed
        folder.write(
            "proxies.png",
            lambda path: plot_images(path, proxies.images, proxies.labels),
        )
        folder.write("proxies.npz", lambda path: save_images(path, proxies, seed))

    def _save(self, title, classifier, trace, details) -> dict[str, Any]:
        """The classifier with its card, then its record, which stands for all of it."""
        accuracies = {s: self._evaluate(classifier, s) for s in self._splits}
        record = accuracies | {"retained_logit_change": None} | details
        record |= {
            field.name: getattr(trace, field.name)
            for field in dataclasses.fields(trace)
            if field.name != "proxies"
        }
        forgotten = () if title == "original" else self._settings.forget
        shape = self._task.forget.images.shape[1:]
        card = self._settings.card(title, shape, forgotten)
        self._folder.write(
            f"{title}.safetensors",
            lambda path: save_with_card(
                path, classifier, card, {"accuracies": accuracies}
            ),
        )
        self._folder.write_json(f"pieces/{title}.json", record)
        return to_dict(record)


def title_of(method: str) -> str:
    """What a method's classifier is called in tables and files."""
    return "retrained" if method == "retrain" else method


def _write(
    settings: Run,
    folder: OutputFolder,
    splits: dict[str, Data],
    records: dict[str, dict[str, Any]],
    proxies: dict[str, Any] | None,
) -> None:
    """The files that need all of the run: configuration, metrics, accuracies."""
    config = settings.to_dict()
    for name in settings.methods:
        rate = records[title_of(name)]["learning_rate"]
        if rate is not None:
            config[name.replace("-", "_")]["learning_rate"] = rate
    folder.write_json("config.json", config)
    metrics = {
        "classifiers": records,
        "proxies": proxies,
        "learning_rate_rule": "the smallest of the grid whose Acc_r - Acc_f on "
        f"validation data is within {TOLERANCE:g} of the best",
        "samples": {split: len(data) for split, data in splits.items()},
        "versions": versions(),
        "device": parallel.device_kind(),
        "devices": parallel.device_count(),
        "processes": parallel.process_count(),
    }
    folder.write_json("metrics.json", metrics)
    per_class = {name: r["test"]["per_class"] for name, r in records.items()}
    folder.write(
        "accuracies.png",
        lambda path: plot_accuracies(path, per_class, settings.forget),
    )


def _judgement(proxies: dict[str, Any]) -> str:
    """What the numbers on proxies come to."""
    captured = {n: c for n, c in proxies["captured_energy"].items() if c is not None}
    least = min(captured, key=captured.__getitem__)
    second = proxies["second_accuracy"]
    others = "" if second is None else f", the retrained one {second:.0f} %"
    true = proxies["with_true_images"]
    text = (
        f"CovarNav's proxies capture at least {100 * captured[least]:.1f} % of the "
        f"retained data's energy in a layer ({least}). The original recognises "
        f"{proxies['accuracy']:.0f} %{others}. With as many true images instead: "
        f"Acc_r {true['retained']:.2f}, Acc_f {true['forgotten']:.2f}, change "
        f"{true['retained_logit_change']:.3f}."
    )
    return textwrap.fill(text, 80)
