"""The pieces of a run, one for each classifier; those already done are read back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxunlearn import parallel, training
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.console import Bars
from jaxunlearn.cli.forget import keys
from jaxunlearn.cli.settings import Run
from jaxunlearn.cli.shared import SharedFolder
from jaxunlearn.cli.trained import of_classes
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Trace
from jaxunlearn.methods import forget_task
from jaxunlearn.methods.grid import trial_records
from jaxunlearn.metrics import relative_change
from jaxunlearn.metrics.evaluation import evaluate, logits
from jaxunlearn.metrics.proxies import proxy_quality
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, Task, split_by_class


class Pieces:
    """Makes each classifier of a run with its record, and saves both."""

    def __init__(
        self,
        settings: Run,
        splits: Mapping[str, Data],
        folder: SharedFolder,
        bars: Bars,
        *,
        given: Classifier | None,
        mesh: Mesh | None = None,
    ):
        self._settings, self._splits, self._given = settings, splits, given
        self._folder, self._bars, self._mesh = folder, bars, mesh
        forgotten, retained = split_by_class(splits["train"], settings.forget)
        self._task = Task(
            forgotten,
            retained,
            settings.forget,
            num_classes=settings.num_classes(),
        )
        self._retained = retained.images
        self._original_key, self._method_key = keys(settings.seed)
        self._test = split_by_class(splits["test"], settings.forget)[1].images

    def original(self) -> dict[str, Any]:
        """The classifier to unlearn from, given or trained; before all others."""
        done = self._folder.load("original")
        if done is not None:
            record, classifier = done
        else:
            watch = Stopwatch()
            with self._bars.row("original") as progress, watch.stage("steps"):
                classifier = self._given
                if classifier is None:
                    classifier = self._train(
                        self._splits["train"],
                        self._original_key,
                        progress,
                        self._settings.preprocess(self._settings.validation_seed),
                    )
                jax.block_until_ready(classifier.params)
            trace = Trace(seconds=watch.seconds)
            record = self._save("original", classifier, trace, {"learning_rate": None})
        self._original, self._logits = classifier, self._outputs(classifier)
        return record

    def unlearned(self, name: str) -> dict[str, Any]:
        """One method's classifier, made from the original."""
        title = title_of(name)
        done = self._folder.load(title)
        if done is not None:
            return done[0]
        with self._bars.row(title) as progress:
            result = forget_task(
                self._settings.settings_of(name),
                self._original,
                dataclasses.replace(
                    self._task,
                    train=lambda data, key: self._train(
                        data, key, progress, self._original.preprocess
                    ),
                ),
                validation=self._splits["validation"],
                grid=self._settings.learning_rates,
                key=self._method_key,
                progress=progress,
                mesh=self._mesh,
            )
        classifier, trace = result.classifier, result.trace
        if trace.proxies is not None:
            self._folder.save_proxies(trace.proxies, self._settings.seed)
        change = relative_change(self._logits, self._outputs(classifier))
        details = {
            "retained_logit_change": change,
            "learning_rate": trace.tuned.get("learning_rate"),
            "validation_trials": trial_records(trace.tuned, trace.trials),
        }
        return self._save(title, classifier, trace, details)

    def proxies(self) -> dict[str, Any]:
        """How well CovarNav's proxies stand in for the retained data.

        Beside it, what CovarNav does with equally many true images in their place. The
        network retrained without the forgotten classes is the second judge, where it is
        part of the run.
        """
        done = self._folder.load_record("proxies")
        if done is not None:
            return done
        settings = self._settings
        method = settings.settings_of("covarnav")
        with self._bars.row("proxies") as progress:
            progress("statistics", 0, 1)
            images = self._retained
            share = parallel.own_share(len(images), self._mesh)
            retained = second_moments(self._original, images[share], mesh=self._mesh)
            retrained = self._folder.load("retrained")
            rule = method.rule if method.projection == "hard" else {}
            quality = proxy_quality(
                self._original,
                self._folder.load_proxies(),
                retained,
                second=None if retrained is None else retrained[1],
                **rule,
            )
            progress("statistics", 1, 1)
            result = forget_task(
                method.replace(stand_in="retained"),
                self._original,
                self._task,
                validation=self._splits["validation"],
                grid=settings.learning_rates,
                key=self._method_key,
                progress=progress,
                mesh=self._mesh,
            )
        classifier = result.classifier
        instead = self._evaluate(classifier, "test")
        record = to_dict(
            {
                **to_dict(quality),
                "with_true_images": {
                    "retained": instead.retained,
                    "forgotten": instead.forgotten,
                    "retained_logit_change": relative_change(
                        self._logits, self._outputs(classifier)
                    ),
                    "learning_rate": result.trace.tuned["learning_rate"],
                    "images": len(result.trace.proxies),
                },
            }
        )
        self._folder.save_record("proxies", record)
        return record

    def _train(self, data, key, progress, preprocess) -> Classifier:
        settings = self._settings
        total = settings.recipe.steps(len(data))
        progress("training", 0, total)
        return training.fit(
            settings.create(),
            data,
            recipe=settings.recipe,
            key=key,
            preprocess=preprocess,
            validation=of_classes(self._splits["validation"], data.labels),
            callback=lambda step, _: progress("training", step + 1, total),
            mesh=self._mesh,
        )

    def _outputs(self, classifier):
        """Logits of the retained test images."""
        return logits(classifier, self._test, mesh=self._mesh)

    def _evaluate(self, classifier, split):
        data = self._splits[split]
        return evaluate(classifier, data, self._settings.forget, mesh=self._mesh)

    def _save(self, title, classifier, trace, details) -> dict[str, Any]:
        settings = self._settings
        record = {split: self._evaluate(classifier, split) for split in self._splits}
        record |= {"retained_logit_change": None, **details}
        record |= {
            field.name: getattr(trace, field.name)
            for field in dataclasses.fields(trace)
            if field.name not in ("proxies", "tuned", "trials")
        }
        record = to_dict(record)
        forgotten = () if title == "original" else settings.forget
        card = settings.card(title, self._task.forget.images.shape[1:], forgotten)
        self._folder.save(title, classifier, card, record)
        return record


def title_of(method: str) -> str:
    """What a method's classifier is called in tables and files."""
    return "retrained" if method == "retrain" else method
