"""`jaxunlearn difficulty`: hard and easy classes, and forget sets of such samples."""

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool
from rich.table import Table

from jaxunlearn.cli.classes import parted_numbers
from jaxunlearn.cli.console import consoles, table
from jaxunlearn.cli.indices import (
    Indices,
    checked,
    digest,
    parse_amount,
    write_indices,
)
from jaxunlearn.cli.places import Lock, check_reachable
from jaxunlearn.cli.saved import SavedClassifier, SavedSettings, check_same
from jaxunlearn.cli.settings import Classes, File
from jaxunlearn.cli.unlearn import OnSaved
from jaxunlearn.metrics.confusion import ClassDifficulty, class_difficulties
from jaxunlearn.metrics.difficulty import Difficulty, sample_difficulty
from jaxunlearn.metrics.evaluation import class_label
from jaxunlearn.metrics.forget_sets import ORDERS, by_confusion, by_margin
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data
from jaxunlearn.tasks.hashes import image_digest

_LEGEND = """\
From the least confused class to the most. mass: mean probability, in %, that
its samples have of the class beside it; others: of all other classes. right:
accuracy in %. margin: median of the true class's logit minus the largest other."""

Amount = Annotated[str | None, "N|SHARE"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DifficultyCommand(SavedSettings):
    """Order classes by how hard they are, and choose the hardest or easiest samples.

    Difficulty is that of the training split, whose samples may be forgotten.

    Attributes:
      checkpoint: .safetensors files of a training or a run, or PyTorch's weights of a
        --model; over several, such as other training seeds of one split, means are
        taken.
      hardest: choose so many samples of the smallest margins: a number, such as 100, or
        a share, such as 0.1 or 10%.
      easiest: or so many of the largest.
      confused_with: go by the probability of this class, of which the hardest samples
        have most, in place of the margin; its own samples are left out.
      classes: show and choose from these classes alone.
      out: write the indices there, one a line, as --forget-indices takes them.
      overwrite: replace a file that is there.
      json: print JSON instead of a table.
    """

    examples = (
        "jaxunlearn difficulty a.safetensors b.safetensors",
        "jaxunlearn difficulty a.safetensors --hardest 100 --out hardest.txt",
    )
    first = (
        *("checkpoint", "hardest", "easiest", "confused_with", "classes", "out"),
        *("overwrite", "json", "dataset", "data_dir"),
    )
    positional = "checkpoint"

    checkpoint: Annotated[tuple[Path, ...], "FILE"]
    hardest: Amount = None
    easiest: Amount = None
    confused_with: Annotated[str | None, "CLASS"] = None
    classes: Classes = ()
    out: File | None = None
    overwrite: bool = False
    json: bool = False

    @property
    def _asked(self) -> tuple[str, str] | None:
        """Which end of the order to choose, and how many of it."""
        given = ((name, getattr(self, name)) for name in ORDERS)
        return next(((name, word) for name, word in given if word is not None), None)

    def check(self) -> None:
        """Refuse what cannot be chosen, and a file that cannot be written."""
        super().check()
        if not self.checkpoint:
            msg = "--checkpoint names no file: give at least one."
            raise ValueError(msg)
        if self.hardest is not None and self.easiest is not None:
            msg = "--hardest and --easiest are two choices: give one of them."
            raise ValueError(msg)
        for name in ("confused_with", "out") if self._asked is None else ():
            if getattr(self, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                msg = f"{flag} is for chosen samples: give --hardest or --easiest too."
                raise ValueError(msg)
        if self._asked is not None:
            name, word = self._asked
            parse_amount(word, f"--{name}")
        if self.out is not None:
            _check_out(self.out, overwrite=self.overwrite)

    def run(self) -> None:
        """Print the classes; choose, and write the indices."""
        self.check()
        models = [self._read(path) for path in self.checkpoint]
        for other in models[1:]:
            self._check_alike(other, models[0])
        names = [self._on(m.path).class_names(m.card) for m in models][0]
        train = self._train(models)
        count = models[0].card.num_classes
        shown = tuple(range(count))
        if self.classes:
            shown = parted_numbers(self.classes, names, count, "--classes")
        found = sample_difficulty([m.classifier for m in models], train)
        rows = [row for row in class_difficulties(found) if row.number in shown]
        chosen = self._choose(found, shown, names)
        if chosen is not None and self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with Lock(self.out).held():
                write_indices(self.out, chosen)
        seed = models[0].card.split_seed
        if self.json:
            record = {
                "files": self.checkpoint,
                "split_seed": seed,
                "samples": len(train),
                "classes": rows,
                "chosen": None if chosen is None else _record(chosen, found),
            }
            print(json.dumps(to_dict(record)))
            return
        results, _ = consoles()
        several = f", mean over {len(models)} networks" * (len(models) > 1)
        split = f"{len(train)} training samples, split seed {seed}"
        results.print(_table(rows, names, split + several))
        results.print(_LEGEND)
        if chosen is not None:
            for sentence in self._said(chosen, found, names, seed):
                results.print(textwrap.fill(sentence, 80, break_long_words=False))

    def _on(self, path: Path) -> OnSaved:
        """One of the files, and how to read its data."""
        fields = dataclasses.fields(SavedSettings)
        given = {field.name: getattr(self, field.name) for field in fields}
        return OnSaved(checkpoint=path, **given)

    def _read(self, path: Path) -> SavedClassifier:
        """A classifier that has forgotten nothing."""
        model = self.read(path)
        card = model.card
        if card.forgotten or card.forgotten_samples:
            what = f"{len(card.forgotten_samples)} samples"
            if card.forgotten:
                what = f"class {card.forgotten[0]}"
            msg = (
                f"{path} has forgotten {what}, or never saw them, and what it does not "
                "know seems hard: give a model of the whole training split, such as "
                "the original.safetensors of a run."
            )
            raise ValueError(msg)
        return model

    def _check_alike(self, other: SavedClassifier, first: SavedClassifier) -> None:
        cards = other.card, first.card
        compared = {
            "the data set": tuple(self.dataset or card.dataset for card in cards),
            "number of classes": tuple(card.num_classes for card in cards),
            "image shape": tuple(list(card.image_shape) for card in cards),
        }
        advice = "all must be models of the same data."
        check_same(compared, str(other.path), f"{first.path} has", advice)

    def _train(self, models: Sequence[SavedClassifier]) -> Data:
        """The training split, which must be that of every model."""
        first, *others = models
        (train,) = self._on(first.path).load(first.card, "train")
        seeds = {first.card.split_seed}
        for other in others:
            if (seed := other.card.split_seed) in seeds:
                continue
            seeds.add(seed)
            (same,) = self._on(other.path).load(other.card, "train")
            if image_digest(same) != image_digest(train):
                msg = (
                    f"{other.path} was trained on the split of --split-seed {seed}, "
                    f"and {first.path} on that of {first.card.split_seed}, so that an "
                    "index means another sample in each: give models of one split."
                )
                raise ValueError(msg)
        return train

    def _choose(
        self, found: Difficulty, classes: Sequence[int], names: Any
    ) -> Indices | None:
        """The samples that are asked for, if any are."""
        if self._asked is None:
            return None
        order, word = self._asked
        flag = f"--{order}"
        among, k = np.isin(found.labels, classes), found.probabilities.shape[1]
        if self.confused_with is None:
            count = _number(word, among, flag)
            chosen = by_margin(found.margins, count, order=order, among=among)
        else:
            asked = [self.confused_with]
            (other, *more) = parted_numbers(asked, names, k, "--confused-with")
            if more:
                msg = f"--confused-with takes one class; it is {self.confused_with!r}."
                raise ValueError(msg)
            count = _number(word, among & (found.labels != other), flag)
            judged = found.probabilities, found.labels, other
            chosen = by_confusion(*judged, count, order=order, among=among)
        return checked(chosen, len(found.labels), f"{flag} {word}")

    def _said(
        self, chosen: Indices, found: Difficulty, names: Any, seed: int
    ) -> Iterator[str]:
        """What was chosen, and where it is."""
        record = _record(chosen, found)
        low, high = record["margins"]
        each = sorted(record["per_class"].items(), key=lambda item: -item[1])
        shown = [f"{class_label(c, names)} ({n})" for c, n in each]
        rest = f" and {len(shown) - 10} more" * (len(shown) > 10)
        yield (
            f"Chosen: {len(chosen)} of {len(found.labels)} samples, with margins of "
            f"{low:.3g} to {high:.3g}, {record['accuracy']:.1f} % right; of classes "
            f"{', '.join(shown[:10])}{rest}."
        )
        yield f"SHA-256 of the samples: {record['sha256']}."
        if self.out is None:
            yield "--out FILE keeps their indices."
        else:
            yield (
                f"Written to {self.out}: indices of the training split of --split-seed "
                f"{seed}, for --forget-indices."
            )


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, or read back."""
    if out.suffix.lower() in (".json", ".npy"):
        msg = f"--out is a text of one index a line; {out} says that it is another: end it in .txt."  # noqa: E501
        raise ValueError(msg)
    if out.is_dir() or (out.exists() and not overwrite):
        msg = f"{out} is there: choose another file, or replace it with --overwrite."
        raise ValueError(msg)
    check_reachable(out)


def _number(word: str, among: Bool[np.ndarray, " n"], flag: str) -> int:
    """How many samples are meant, of those to choose from."""
    candidates = int(among.sum())
    kind, value = parse_amount(word, flag)
    number = round(value * candidates) if kind == "share" else int(value)
    if not 1 <= number <= candidates:
        msg = (
            f"{flag} {word} asks for {number} of the {candidates} samples to choose "
            "from: ask for 1 at least and all at most."
        )
        raise ValueError(msg)
    return number


def _record(chosen: Indices, found: Difficulty) -> dict[str, Any]:
    """What tells of chosen samples."""
    margins = found.margins[chosen]
    numbers, counts = np.unique(found.labels[chosen], return_counts=True)
    return {
        "count": len(chosen),
        "sha256": digest(chosen),
        "margins": [float(margins.min()), float(margins.max())],
        "accuracy": float(100 * found.right[chosen].mean()),
        "per_class": dict(zip(numbers.tolist(), counts.tolist(), strict=True)),
    }


def _table(rows: Sequence[ClassDifficulty], names: Any, title: str) -> Table:
    numbers = ("mass", "others", "right", "margin", "samples")
    shown = table(title, ["class", "most confused with"], numbers)
    for row in rows:
        shown.add_row(
            *(class_label(c, names) for c in (row.number, row.confused_with)),
            *(f"{100 * x:.3g}" for x in (row.mass, row.confusion)),
            *(f"{row.accuracy:.1f}", f"{row.median_margin:.2f}", str(row.samples)),
        )
    return shown
