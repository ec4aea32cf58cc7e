"""`jaxunlearn audit`: a saved unlearned model beside retrained ones."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.saved import SavedClassifier, check_same
from jaxunlearn.cli.settings import File, check_seed, forget_numbers, keys
from jaxunlearn.cli.unlearn import OnSaved
from jaxunlearn.metrics.audits import AUDITS
from jaxunlearn.metrics.verdict import audit
from jaxunlearn.models.files import read_card
from jaxunlearn.serialization import to_dict, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit(OnSaved):
    """Judge a saved unlearned classifier by retrained ones.

    Attributes:
      original: the file that it was made from; by default original.safetensors beside
        it, as a run leaves it.
      retrained: files of models trained without the forgotten classes; two or more,
        of different seeds, give the noise that a gap must exceed. By default those
        beside it.
      forget: the forgotten classes; by default those that the file names.
      which: audits to make; by default those that need no long training.
      seed: random seed.
      out: also write the rows there, as JSON.
      json: print JSON instead of a table.
    """

    examples = (
        "jaxunlearn audit --checkpoint runs/digits-forget-3-seed-0/unsc.safetensors",
        "jaxunlearn audit --checkpoint a.safetensors --which accuracy probe relearn",
    )
    first = ("checkpoint", "original", "retrained", "which", "dataset", "data_dir")

    original: File | None = None
    retrained: Annotated[tuple[Path, ...], "FILE"] = ()
    forget: Annotated[tuple[int | str, ...] | None, "CLASS"] = None
    which: tuple[Literal[tuple(AUDITS)], ...] | None = None
    seed: int = 0
    out: File | None = None
    json: bool = False

    def run(self) -> None:
        """Audit, print the verdict and the rows, and write them."""
        check_seed(self.seed)
        model, original, *retrained = map(self.read, self._files())
        forgotten = self._forgotten(model)
        for other in (original, *retrained):
            _check_alike(other, model)
        for other in retrained:
            self._check_retrained(other, forgotten)
        train, test = self.load(model.card, "train", "test")
        result = audit(
            model.classifier,
            original=original.classifier,
            retrained=[other.classifier for other in retrained],
            train=train,
            test=test,
            forget_classes=forgotten,
            key=keys(self.seed)[1],
            which=self.which,
        )
        if self.out is not None:
            write_json(self.out, to_dict(result))
        if self.json:
            print(json.dumps(to_dict(result)))
        else:
            consoles()[0].print(result.table(), markup=False, highlight=False)

    def _files(self) -> list[Path]:
        """Of the audited model, the original and the retrained ones."""
        folder = self.checkpoint.parent
        beside = sorted(folder.glob("retrained*.safetensors"))
        retrained = self.retrained or beside
        if not retrained:
            msg = (
                f"There is no retrained*.safetensors beside {self.checkpoint}: "
                "--retrained names models trained without the forgotten classes."
            )
            raise ValueError(msg)
        original = self.original or folder / "original.safetensors"
        return [self.checkpoint, original, *retrained]

    def _forgotten(self, model: SavedClassifier) -> tuple[int, ...]:
        names = self.class_names(model.card)
        if self.forget is not None:
            return forget_numbers(self.forget, names, model.card.num_classes)
        if not model.card.forgotten:
            msg = (
                f"{model.path} says that it has forgotten no class, and an audit asks "
                "what is left of the forgotten ones: name them with --forget."
            )
            raise ValueError(msg)
        return model.card.forgotten

    def _check_retrained(self, other: SavedClassifier, forgotten) -> None:
        """Refuse a model whose own card says that it was trained with the classes."""
        seen = sorted({*forgotten} - {*other.card.forgotten})
        if seen and read_card(other.path) is not None:
            msg = (
                f"{other.path} was trained with class {seen[0]}, which "
                f"{self.checkpoint} has forgotten: --retrained takes models that never "
                "saw the forgotten classes."
            )
            raise ValueError(msg)


def _check_alike(other: SavedClassifier, model: SavedClassifier) -> None:
    compared = {
        "number of classes": (other.card.num_classes, model.card.num_classes),
        "image shape": tuple(list(s.card.image_shape) for s in (other, model)),
    }
    advice = "all must be models of the same data."
    check_same(compared, str(other.path), f"{model.path} has", advice)
