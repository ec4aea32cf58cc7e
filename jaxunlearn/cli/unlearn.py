"""`jaxunlearn unlearn` and `jaxunlearn evaluate`: work on a saved classifier."""

import dataclasses
import json
from typing import Annotated, Literal

from jaxunlearn import datasets
from jaxunlearn.cli.console import Bars, consoles, loaded
from jaxunlearn.cli.places import Lock, check_reachable
from jaxunlearn.cli.saved import SavedSettings
from jaxunlearn.cli.settings import (
    Classes,
    File,
    MethodSettings,
    UnlearningMethod,
    as_rgb,
    channels_of,
    check_seed,
    class_names,
    forget_numbers,
    keys,
)
from jaxunlearn.datasets.splits import SPLITS
from jaxunlearn.methods import forget_task
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.models.files import Card, save_classifier
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, Task, check_classes, split_by_class


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
class Unlearn(MethodSettings, OnSaved):
    """Forget classes in a saved classifier.

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
        *("checkpoint", "forget", "out", "method", "dataset", "data_dir"),
        *("learning_rates", "seed", "overwrite"),
    )

    out: File
    forget: Classes
    method: UnlearningMethod = "covarnav"
    seed: int = 0
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what cannot be, and a file that cannot be written, before any work."""
        super().check()
        check_seed(self.seed)
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
        """Forget classes in a saved classifier, and save the result."""
        self.check()
        _, classifier, card = self.read(self.checkpoint)
        names = self.class_names(card)
        forget = forget_numbers(self.forget, names, card.num_classes)
        # Classes that it has forgotten before are neither protected nor new labels.
        forgotten = tuple(sorted({*card.forgotten, *forget}))
        check_classes(forgotten, card.num_classes, name="--forget")
        train, validation, test = self.load(card, *SPLITS)
        task = Task(
            split_by_class(train, forget)[0],
            split_by_class(train, forgotten)[1],
            forgotten,
            num_classes=card.num_classes,
        )
        results, progress = consoles()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with Lock(self.out).held():
            with Bars(console=progress) as shown, shown.row(self.method) as move:
                result = forget_task(
                    self.settings_of(self.method),
                    classifier,
                    task,
                    validation=validation,
                    grid=self.grid_of(self.method),
                    key=keys(self.seed)[1],
                    progress=move,
                )
            unlearned, tuned = result.classifier, result.trace.tuned
            chosen = "".join(f", {n.replace('_', ' ')} {x:g}" for n, x in tuned.items())
            results.print(f"before\n{evaluate(classifier, test, forgotten)}")
            results.print(f"after {self.method}{chosen}")
            results.print(str(evaluate(unlearned, test, forgotten)))
            made = {"name": self.method, "forgotten": forgotten, "class_names": names}
            card = dataclasses.replace(card, **made)
            save_classifier(self.out, unlearned, card)
        results.print(f"Written to {self.out}.")


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
