"""`jaxunlearn sweep`: forget every class by itself, or any sets, in one program."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
from tyro.conf import arg

from jaxunlearn import parallel, training
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.checkpoint import load_original, with_checkpoint
from jaxunlearn.cli.console import bars, consoles
from jaxunlearn.cli.forget import keys
from jaxunlearn.cli.settings import DESCENDING, Methods, Run
from jaxunlearn.cli.source import Folder, check_names
from jaxunlearn.cli.swept import LEGEND, check_place, cost, judged, new_folder, table
from jaxunlearn.cli.trained import Trained
from jaxunlearn.datasets.splits import SPLITS
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.methods import sweep
from jaxunlearn.methods.grid import TOLERANCE, trial_records
from jaxunlearn.methods.requests import class_sets
from jaxunlearn.methods.results import Sweep as Swept
from jaxunlearn.methods.stacked import WAYS
from jaxunlearn.models.files import save_with_card, versions
from jaxunlearn.serialization import to_dict, write_json
from jaxunlearn.tasks import Data, check_classes, split_by_class

_Rates = Annotated[tuple[float, ...], arg(metavar="[RATE ...]")]
_Sets = Annotated[tuple[str, ...], arg(metavar="each|CLASS[,CLASS...] ...")]

# Where a sweep goes is not part of what it is.
_PLACES = ("out", "overwrite", "save_classifiers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Methods, Trained):
    """Forget every class by itself, or any sets of classes, each in its own copy.

    Attributes:
      forget: "each" class by itself, or sets of classes such as 0 1,2 for two requests,
        of which the second forgets two classes.
      method: what to forget with.
      learning_rates: the grid from which one rate for all requests is taken: the
        smallest whose mean of Acc_r - Acc_f on validation data is within a point of the
        best. Empty: the method's own, such as --unsc.learning-rate.
      checkpoint: start from this classifier instead of training one, as for run.
      how: how a step of all requests is computed: "vmap", "map" (a loop on the device),
        "one by one", or "auto", whichever is fast here.
      save_classifiers: write every unlearned classifier too.
      out: the sweep's folder; by default runs/DATASET-sweep-METHOD-seed-SEED.
      overwrite: replace the sweep that is there, once the new one is complete.
    """

    forget: _Sets = ("each",)
    method: Annotated[str, arg(metavar="|".join(DESCENDING))] = "unsc"
    learning_rates: _Rates = (1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    checkpoint: Annotated[Path | None, arg(metavar="FILE")] = None
    how: Annotated[str, arg(metavar="auto|vmap|map|'one by one'")] = "auto"
    save_classifiers: bool = False
    out: Folder = None
    overwrite: bool = False

    @property
    def place(self) -> Path:
        """Where the sweep goes."""
        name = f"{self.label}-sweep-{self.method}-seed-{self.seed}"
        return Path("runs") / name if self.out is None else self.out

    @property
    def requests(self) -> str | list[tuple[int, ...]]:
        """The requests as `jaxunlearn.sweep` takes them.

        Raises:
          ValueError: one is no list of class numbers.
        """
        if self.forget == ("each",):
            return "each"
        found = []
        for text in self.forget:
            try:
                found.append(tuple(int(part) for part in text.split(",")))
            except ValueError:
                msg = (
                    '--forget takes "each" by itself, or sets of classes with commas '
                    f"inside and blanks between them, such as 0 1,2; one is {text!r}."
                )
                raise ValueError(msg) from None
        return found

    def check(self) -> None:
        """Check what can be checked before any data are read.

        Raises:
          TypeError: the network has no such option.
          ValueError: names, classes, rates or a seed are not what they can be.
        """
        super().check()
        check_names("method that a sweep can share", [self.method], DESCENDING)
        self.check_rates()
        known = ("auto", *WAYS)
        if self.how not in known:
            msg = f"--how must be one of {', '.join(map(repr, known))}; it is {self.how!r}."  # noqa: E501
            raise ValueError(msg)
        requests = self.requests
        if requests != "each":
            for classes in requests:
                check_classes(classes, self.num_classes(), name="--forget")
        check_place(self.place, overwrite=self.overwrite)

    def plain(self) -> dict[str, Any]:
        """What decides about the results, as plain values."""
        plain = to_dict(self)
        return {name: plain[name] for name in plain if name not in _PLACES}

    def of_checkpoint(self, path: Path) -> "Sweep":
        """With the defaults that a checkpoint sets, as for `run`."""
        run = with_checkpoint(Run(), path)
        set_there = ("mean", "std", "model", "options", "dataset", "size", "split_seed")
        return dataclasses.replace(self, **{n: getattr(run, n) for n in set_there})


def sweep_classes(settings: Sweep) -> None:
    """Train or load the original, unlearn all requests, print a table, write it."""
    results, progress = consoles()
    settings.check()
    splits = {s: settings.load(s, settings.validation_seed) for s in SPLITS}
    train, test = splits["train"], splits["test"]
    count = settings.num_classes()
    sets = class_sets(settings.requests, train, count, name="--forget")
    for classes in sets:
        for split in ("validation", "test"):
            split_by_class(splits[split], classes)
    if settings.checkpoint is None:
        settings.check_images(train.images)
    watch = Stopwatch()
    with new_folder(settings.place, overwrite=settings.overwrite) as folder:
        with bars(progress) as shown:
            with shown.row("original") as move, watch.stage("original"):
                original = _original(settings, splits, move)
            with shown.row(settings.method) as move:
                swept = _swept(settings, original, splits, sets, move)
        watch.add(swept.seconds)
        with watch.stage("evaluation"):
            records = judged(original, swept, test)
        if settings.save_classifiers:
            _save(settings, folder, original, swept, records, train)
        record = _record(settings, swept, records, splits, watch.seconds)
        write_json(folder / "sweep.json", record)
    title = f"{settings.dataset}, {settings.model}, {settings.method}"
    results.print(table(records, f"{title}, seed {settings.seed}"))
    results.print(LEGEND)
    results.print(cost(swept, watch.seconds, len(train)))
    results.print(f"Written to {settings.place}.")


def _original(settings: Sweep, splits: dict[str, Data], move) -> Classifier:
    images = splits["train"].images
    if settings.checkpoint is not None:
        shared = [f.name for f in dataclasses.fields(Trained)] + ["checkpoint"]
        run = Run(**{name: getattr(settings, name) for name in shared})
        return load_original(run, images.shape[1:])
    total = settings.recipe.steps(len(images))
    classifier = training.fit(
        settings.create(),
        splits["train"],
        recipe=settings.recipe,
        key=keys(settings.seed)[0],
        preprocess=settings.preprocess(settings.validation_seed),
        validation=splits["validation"],
        callback=lambda step, _: move("training", step + 1, total),
    )
    return jax.block_until_ready(classifier)


def _swept(settings: Sweep, original: Classifier, splits, sets, move) -> Swept:
    return sweep(
        original,
        splits["train"],
        sets,
        settings.settings_of(settings.method),
        key=keys(settings.seed)[1],
        validation=splits["validation"],
        rates=settings.learning_rates,
        how=settings.how,
        progress=move,
    )


def _record(settings: Sweep, swept: Swept, records, splits, seconds) -> dict[str, Any]:
    """What `sweep.json` holds."""
    names = ("how", "step_seconds", "passes", "samples_read")
    return {
        "settings": settings.plain(),
        "requests": records,
        **swept.tuned,
        **{name: getattr(swept, name) for name in names},
        "validation_trials": trial_records(swept.tuned, swept.trials),
        "learning_rate_rule": "the smallest of the grid whose mean over requests of "
        f"Acc_r - Acc_f on validation data is within {TOLERANCE:g} of the best",
        "seconds": seconds,
        "samples": {split: len(data) for split, data in splits.items()},
        "versions": versions(),
        "device": parallel.device_kind(),
    }


def _save(
    settings: Sweep,
    folder: Path,
    original: Classifier,
    swept: Swept,
    records: list[dict[str, Any]],
    train: Data,
) -> None:
    """The original and every unlearned classifier, each with its card."""
    shape = train.images.shape[1:]
    card = settings.card("original", shape, ())
    save_with_card(folder / "original.safetensors", original, card, {})
    for record, result in zip(records, swept.results, strict=True):
        classes = record["forget"]
        name = f"forget-{'-'.join(map(str, classes))}"
        card = settings.card(settings.method, shape, classes)
        details = {"accuracies": {"test": record["test"]}}
        path = folder / f"{name}.safetensors"
        save_with_card(path, result.classifier, card, details)
