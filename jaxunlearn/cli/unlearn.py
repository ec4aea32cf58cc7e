"""`jaxunlearn unlearn` and `jaxunlearn evaluate`: work on a saved classifier."""

import dataclasses
import json
import textwrap
import warnings
from typing import Annotated, Any, Literal

import numpy as np

from jaxunlearn import datasets
from jaxunlearn.cli.classes import class_names, forget_numbers
from jaxunlearn.cli.console import Bars, consoles, loaded
from jaxunlearn.cli.judging import ClassJudge, Judge, SampleJudge
from jaxunlearn.cli.places import Lock, check_reachable
from jaxunlearn.cli.samples import Forgotten, SampleSettings, samples_of_card
from jaxunlearn.cli.saved import SavedSettings
from jaxunlearn.cli.settings import (
    Classes,
    File,
    MethodSettings,
    UnlearningMethod,
    as_rgb,
    as_trained_on,
    channels_of,
    check_seed,
    keys,
)
from jaxunlearn.datasets.splits import SPLITS
from jaxunlearn.methods import forget_task
from jaxunlearn.methods.rules import NotForgotten
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.models.files import Card, save_classifier
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, Task, check_classes, split_by_index


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnSaved(SavedSettings):
    """A saved classifier and its data.

    Attributes:
      checkpoint: a .safetensors file of a training or a run, or PyTorch's weights of a
        --model.
    """

    checkpoint: File

    def class_names(self, card: Card) -> tuple[str, ...] | None:
        """Of the data set, whose classes must be those of the classifier."""
        name, where = self.dataset or card.dataset, self.data_dir
        if name is None:
            msg = f"{self.checkpoint} does not say what it was trained on: give --dataset."  # noqa: E501
            raise ValueError(msg)
        count = datasets.num_classes(name, data_dir=where)
        if count != card.num_classes:
            msg = (
                f"{self.checkpoint} tells {card.num_classes} classes apart and the "
                f"data set {name} has {count}."
            )
            raise ValueError(msg)
        names = class_names(name, where)
        own = card.class_names
        if own and names and own != names:
            c = next(c for c in range(count) if own[c] != names[c])
            msg = (
                f"Class {c} of {self.checkpoint} is {own[c]!r}, and that of the data "
                f"set {name} is {names[c]!r}: give the --dataset of the classifier."
            )
            raise ValueError(msg)
        return names or card.class_names

    def load(self, card: Card, *splits: str) -> list[Data]:
        """Splits of the data set, as the classifier was trained on them."""
        name, where = self.dataset or card.dataset, self.data_dir

        def load(split):
            drawn = {"seed": card.split_seed, "size": card.size}
            drawn["channels"] = channels_of(card)
            data = datasets.load(name, split, data_dir=where, **drawn)
            data = as_trained_on(data, split, card.imbalance, card.split_seed)
            data = as_rgb(data) if self.grey_to_rgb else data
            shapes = [list(card.image_shape), list(data.images.shape[1:])]
            if shapes[0] != shapes[1]:
                msg = (
                    f"{self.checkpoint} takes images of shape {shapes[0]} and those of "
                    f"the data set are {shapes[1]}."
                )
                if (shapes[0][2], shapes[1][2]) == (3, 1):
                    msg += " --grey-to-rgb gives them three channels."
                raise ValueError(msg)
            return data

        return loaded(splits, load)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlearn(SampleSettings, MethodSettings, OnSaved):
    """Forget classes or samples in a saved classifier.

    Attributes:
      out: the .safetensors file to write.
      forget: the classes to forget, besides those that it has forgotten already.
      method: what to forget with.
      seed: random seed.
      overwrite: replace a file that is there.
    """

    examples = (
        "jaxunlearn unlearn --checkpoint a.safetensors --forget 3 --out b.safetensors",
        "jaxunlearn unlearn --checkpoint b.safetensors --forget 5 --out c.safetensors",
    )
    first = (
        *("checkpoint", "forget", "forget_indices", "forget_random", "out", "method"),
        *("dataset", "data_dir", "learning_rates", "seed", "overwrite"),
    )

    out: File
    forget: Classes = ()
    method: UnlearningMethod = "covarnav"
    seed: int = 0
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what cannot be, and a file that cannot be written, before any work."""
        super().check()
        check_seed(self.seed)
        self.check_forgotten([self.method])
        out = self.out
        if out.suffix != ".safetensors":
            msg = f"--out must end in .safetensors; it is {out}."
            raise ValueError(msg)
        if out.is_dir() or (out.exists() and not self.overwrite):
            msg = (
                f"{out} is there: choose another file, or replace it with --overwrite."
            )
            raise ValueError(msg)
        check_reachable(out)

    def run(self) -> None:
        """Forget classes or samples in a saved classifier, and save the result."""
        self.check()
        _, classifier, card = self.read(self.checkpoint)
        names = self.class_names(card)
        if not self.samplewise:
            numbers = forget_numbers(self.forget, names, card.num_classes)
            self = dataclasses.replace(self, forget=numbers)
        splits = dict(zip(SPLITS, self.load(card, *SPLITS), strict=True))
        train = splits["train"]
        forgotten = self.forgotten(train, self.seed)
        task, made = _task(card, train, forgotten)
        judge: Judge = SampleJudge(splits, (task.forget, task.retain))
        if not self.samplewise:
            judge = ClassJudge(splits, task.forget_classes)
        results, progress = consoles()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with Lock(self.out).held(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotForgotten)  # It is printed below.
            with Bars(console=progress) as shown, shown.row(self.method) as move:
                result = forget_task(
                    self.settings_of(self.method),
                    classifier,
                    task,
                    validation=splits["validation"],
                    grid=self.grid_of(self.method),
                    key=keys(self.seed)[1],
                    progress=move,
                )
            unlearned, tuned = result.classifier, result.trace.tuned
            chosen = "".join(f", {n.replace('_', ' ')} {x:g}" for n, x in tuned.items())
            results.print(f"before\n{judge.text(classifier)}")
            judge.start_from(classifier)
            results.print(f"after {self.method}{chosen}")
            results.print(judge.text(unlearned))
            if result.trace.caution:
                results.print(textwrap.fill(result.trace.caution, 80))
            if samples := forgotten.record():
                results.print(f"SHA-256 of the samples: {samples['sha256']}.")
            made |= {"name": self.method, "class_names": names}
            card = dataclasses.replace(card, **made)
            save_classifier(self.out, unlearned, card)
        results.print(f"Written to {self.out}.")


def _task(card: Card, train: Data, new: Forgotten) -> tuple[Task, dict[str, Any]]:
    """The request, and what the card says afterwards.

    What was forgotten before is neither protected nor, of classes, a new label.
    """
    classes = tuple(sorted({*card.forgotten, *new.classes}))
    check_classes(classes, card.num_classes, name="--forget")
    old = list(card.forgotten_samples)
    samples = sorted({*old, *([] if new.indices is None else new.indices.tolist())})
    gone = np.isin(train.labels, classes)
    gone[samples] = True
    if gone.all():
        msg = "Nothing is left to retain after what the checkpoint has forgotten before: forget less."  # noqa: E501
        raise ValueError(msg)
    retain = split_by_index(train, np.flatnonzero(gone))[1]
    asked = classes if new.classes else ()
    task = Task(new.split(train)[0], retain, asked, num_classes=card.num_classes)
    made = samples_of_card(samples) if samples else {}
    return task, made | {"forgotten": classes}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(OnSaved):
    """Accuracy of a saved classifier on every class.

    Attributes:
      forget: the classes that count as forgotten; by default those that it has
        forgotten according to the file.
      split: of the data set.
      json: print JSON instead of a table.
    """

    examples = (
        "jaxunlearn evaluate --checkpoint runs/digits-forget-3-seed-0/unsc.safetensors",
        "jaxunlearn evaluate --checkpoint model.safetensors --split train --json",
    )

    forget: Annotated[tuple[int | str, ...] | None, "CLASS"] = None
    split: Literal[SPLITS] = "test"
    json: bool = False

    def run(self) -> None:
        """Print the accuracies."""
        _, classifier, card = self.read(self.checkpoint)
        names, forgotten = self.class_names(card), card.forgotten
        if self.forget is not None:
            forgotten = forget_numbers(self.forget, names, card.num_classes)
        (data,) = self.load(card, self.split)
        evaluation = evaluate(classifier, data, forgotten)
        if self.json:
            print(json.dumps(to_dict(evaluation), allow_nan=False))
        else:
            consoles()[0].print(str(evaluation))
