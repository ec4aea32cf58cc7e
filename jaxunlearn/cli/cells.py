"""The models and audits of a comparison: each is made once, and kept.

Where it is kept says how it was made: the name is the hash of all that decides about
it. So a comparison that was killed goes on where it was, and another one that shares
originals with it trains none.
"""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.console import Bars, classes_left_out
from jaxunlearn.cli.judging import ClassJudge, Judge, SampleJudge
from jaxunlearn.cli.later import told
from jaxunlearn.cli.making import Maker
from jaxunlearn.cli.pieces import Pieces
from jaxunlearn.cli.samples import Forgotten
from jaxunlearn.cli.settings import TrainingSettings, circumstances, keys
from jaxunlearn.cli.sources import train_network
from jaxunlearn.cli.variants import Variant
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result, Trace
from jaxunlearn.methods.grid import trial_records
from jaxunlearn.methods.multiply_adds import Costs
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.metrics.verdict import audit_all
from jaxunlearn.models.files import load_classifier, versions
from jaxunlearn.serialization import to_dict, to_json
from jaxunlearn.tasks import Data

# To be raised when the same settings come to mean something else.
_FORMAT = 1

# Where data lie decides nothing: what they are is hashed.
_ELSEWHERE = ("data_dir",)


class Cell(NamedTuple):
    """Something that was made: its name in the cache, and what is known of it."""

    digest: str
    record: dict[str, Any]


class Cells:
    """Makes models and audits, or finds them in the folder `settings.cache`."""

    def __init__(
        self, settings: TrainingSettings, splits: Mapping[str, Data], shown: Bars
    ):
        self._settings, self._splits, self._bars = settings, splits, shown
        self._cache = Pieces(settings.cache)
        asked = {f.name for f in dataclasses.fields(TrainingSettings)} - {*_ELSEWHERE}
        self._training = {
            "format": _FORMAT,
            "jaxunlearn": versions()["jaxunlearn"],
            "data": _fingerprint(splits),
            **{
                name: value
                for name, value in told(to_dict(settings)).items()
                if name in asked
            },
        }

    def original(self, seed: int) -> Cell:
        """The classifier that is unlearned from, trained from this seed."""
        return self._trained(f"original, seed {seed}", seed, None)

    def retrained(self, seed: int, forgotten: Forgotten) -> Cell:
        """Trained from the same seed, without what is to be forgotten."""
        return self._trained(f"retrained, seed {seed}", seed, forgotten)

    def unlearned(
        self, variant: Variant, original: Cell, forgotten: Forgotten, seed: int
    ) -> Cell:
        """What a method makes of an original; `seed` is that of the unlearning.

        A method that cannot, and says so in a sentence, leaves that under "refused".
        """
        configuration = {
            "original": original.digest,
            "forget": _said(forgotten),
            "method": variant.name,
            "settings": told(to_dict(variant.method)),
            "grid": variant.grid,
            "seed": seed,
        }

        if variant.damping is not None:
            configuration["projected"] = variant.damping
        if (order := variant.order(forgotten.classes)) is not None:
            configuration["in_turn"] = order

        def make(name, progress):
            before, maker = self.load(original), Maker(self._settings, self._splits)
            try:
                result, said = maker.unlearn(variant, before, forgotten, seed, progress)
            except (ValueError, FloatingPointError) as error:
                return {"refused": str(error)}
            trials = trial_records(result.trace.tuned, result.trace.trials)
            record = self._saved(name, variant.name, result, forgotten, before)
            return record | said | {"validation_trials": trials}

        return self._made(configuration, variant.title, make)

    def audits(
        self,
        models: Mapping[str, Cell],
        original: Cell,
        retrained: Sequence[Cell],
        forgotten: Forgotten,
        seed: int,
    ) -> dict[str, dict[str, Any]]:
        """Of each model by title; what original and retrained have in common, once."""
        shared = {
            "original": original.digest,
            "retrained": [cell.digest for cell in retrained],
            "forget": _said(forgotten),
            "which": self._settings.audits(),
            "seed": seed,
        }
        wanted = {t: shared | {"model": cell.digest} for t, cell in models.items()}
        missing = {
            title: models[title]
            for title, configuration in wanted.items()
            if self._cache.intact(f"audits/{_digest(configuration)}.json") is None
        }
        made: dict[str, Any] = {}
        if missing:
            begun, samplewise = time.perf_counter(), not forgotten.classes
            samples = forgotten.split(self._splits["train"])[0] if samplewise else None
            with self._bars.row("audit", keep=False) as progress:
                made = audit_all(
                    {title: self.load(cell) for title, cell in missing.items()},
                    original=self.load(original),
                    retrained=[self.load(cell) for cell in retrained],
                    train=self._splits["train"],
                    test=self._splits["test"],
                    forget_classes=forgotten.classes,
                    forget=samples,
                    key=jax.random.fold_in(keys(seed)[1], 1),
                    which=shared["which"],
                    progress=progress,
                )
            self._say(f"audits of {len(missing)}", begun)
        return {
            title: self._cache.piece(
                f"audits/{_digest(configuration)}.json",
                lambda title=title, of=configuration: {
                    "configuration": of,
                    **to_dict(made[title]),
                },
            )
            for title, configuration in wanted.items()
        }

    def measured(
        self, configuration: Mapping[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The rows of a study's measurement, with what they are of."""

        def made() -> dict[str, Any]:
            begun = time.perf_counter()
            rows = make()
            self._say(f"{configuration['measurement']}", begun)
            return {"configuration": configuration, "rows": rows}

        return self._cache.piece(f"measured/{_digest(configuration)}.json", made)

    def load(self, cell: Cell) -> Classifier:
        """The classifier of a cell."""
        return load_classifier(self.file(cell))[0]

    def file(self, cell: Cell) -> Path:
        """Where the classifier of a cell is."""
        return self._cache.work / "models" / f"{cell.digest}.safetensors"

    def _trained(self, title: str, seed: int, without: Forgotten | None) -> Cell:
        said = None if without is None else _said(without)
        configuration = self._training | {"seed": seed, "without": said}

        def make(name, progress):
            data, watch = self._splits["train"], Stopwatch()
            if without is not None:
                data = without.split(data)[1]
            quiet = classes_left_out() if without else contextlib.nullcontext()
            with watch.stage("steps"), quiet:
                classifier = train_network(
                    *(self._settings, self._splits, data, progress), key=keys(seed)[0]
                )
            read = {"retain": len(data) * self._settings.recipe.epochs}
            costs = {"seconds": watch.seconds, "samples_read": read}
            each = Costs(classifier, data.images).step()
            costs["multiply_adds"] = {"steps": each * read["retain"]}
            result = Result(classifier, Trace(**costs))
            kind = "original" if without is None else "retrained"
            return self._saved(name, kind, result, without, None)

        return self._made(configuration, title, make)

    def _made(
        self,
        configuration: Mapping[str, Any],
        title: str,
        make: Callable[[str, Any], dict[str, Any]],
    ) -> Cell:
        """The model of this configuration, or what `make` makes of its name."""
        digest = _digest(configuration)

        def made() -> dict[str, Any]:
            begun = time.perf_counter()
            with (
                self._bars.row(title, keep=False) as progress,
                parallel.peak_memory() as peak,
            ):
                record = make(digest, progress)
            self._say(title, begun)
            about = {"configuration": configuration, "peak_memory": peak.get("bytes")}
            return about | record

        return Cell(digest, self._cache.piece(f"records/{digest}.json", made))

    def _say(self, title: str, begun: float) -> None:
        """What of a comparison that takes a night is done, where no bar can show it."""
        seconds = time.perf_counter() - begun
        self._bars.console.print(f"made {title}, {seconds:.1f} s")

    def _saved(self, name, kind, result, forgotten, original) -> dict[str, Any]:
        """The record of a model, after it is written; the original's has no request."""
        splits, settings = self._splits, self._settings
        classifier, trace = result.classifier, result.trace
        accuracies, further = _judged(splits, classifier, forgotten, original)
        settings.save(
            self._cache,
            f"models/{name}",
            classifier,
            {"accuracies": accuracies},
            name=kind,
            image_shape=splits["test"].images.shape[1:],
            **({} if forgotten is None else forgotten.card()),
        )
        return {
            **accuracies,
            **further,
            "tuned": trace.tuned,
            "ranks": trace.ranks,
            "surviving_gradient": trace.surviving_gradient,
            "drift": trace.drift,
            "at_edge": trace.at_edge,
            "caution": trace.caution,
            "seconds": trace.seconds,
            "samples_read": trace.samples_read,
            "multiply_adds": trace.multiply_adds,
            "circumstances": circumstances(splits),
        }


def _judged(splits, classifier, forgotten, original) -> tuple[dict, dict]:
    """Accuracies by split, and what else tables show."""
    if forgotten is None:  # Of an original nobody has said yet what it is to forget.
        return {n: evaluate(classifier, data, ()) for n, data in splits.items()}, {}
    judge: Judge
    if forgotten.classes:
        judge = ClassJudge(splits, forgotten.classes)
    else:
        judge = SampleJudge(splits, forgotten.split(splits["train"]))
    if original is not None:
        judge.start_from(original)
    accuracies = judge.accuracies(classifier)
    return accuracies, judge.further(classifier, accuracies["test"])


def _said(forgotten: Forgotten) -> dict[str, Any]:
    """What decides about a request, without the indices themselves."""
    return forgotten.record() or {"classes": forgotten.classes}


def _digest(configuration: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(configuration).encode()).hexdigest()[:24]


def _fingerprint(splits: Mapping[str, Data]) -> str:
    """Of all images and labels."""
    whole = hashlib.sha256()
    for name, data in sorted(splits.items()):
        images = np.ascontiguousarray(data.images)
        whole.update(f"{name} {images.shape} {images.dtype}".encode())
        whole.update(images.data)
        whole.update(np.ascontiguousarray(data.labels).tobytes())
    return whole.hexdigest()
