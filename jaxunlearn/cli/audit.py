"""`jaxunlearn audit`: a saved unlearned model beside retrained ones."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

from jaxunlearn.cli.classes import forget_numbers
from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.indices import digest, read_indices
from jaxunlearn.cli.saved import SavedClassifier, check_same
from jaxunlearn.cli.settings import File, check_seed, keys
from jaxunlearn.cli.unlearn import OnSaved
from jaxunlearn.metrics.audits import AUDITS
from jaxunlearn.metrics.verdict import audit
from jaxunlearn.models.files import read_card
from jaxunlearn.serialization import to_dict, write_json
from jaxunlearn.tasks import split_by_index


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
      forget_indices: or the forgotten samples of the training split, as run takes them;
        by default those that the file names.
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
    forget_indices: File | None = None
    which: tuple[Literal[tuple(AUDITS)], ...] | None = None
    seed: int = 0
    out: File | None = None
    json: bool = False

    def run(self) -> None:
        """Audit, print the verdict and the rows, and write them."""
        check_seed(self.seed)
        if self.forget is not None and self.forget_indices is not None:
            msg = "Say in one way what was forgotten, by --forget or --forget-indices."
            raise ValueError(msg)
        model, original, *retrained = map(self.read, self._files())
        for other in (original, *retrained):
            _check_alike(other, model)
        classes = self._classes(model)
        train, test = self.load(model.card, "train", "test")
        samples = self._samples(model, len(train), classes)
        for other in retrained:
            self._check_retrained(other, classes, samples)
        forget = split_by_index(train, samples)[0] if samples else None
        result = audit(
            model.classifier,
            original=original.classifier,
            retrained=[other.classifier for other in retrained],
            train=train,
            test=test,
            forget_classes=classes,
            forget=forget,
            key=keys(self.seed)[1],
            which=self.which,
        )
        files = {"unlearned": model.path, "original": original.path}
        files["retrained"] = [other.path for other in retrained]
        asked = dataclasses.replace(self, out=None)
        record = to_dict(result) | to_dict({"files": files, "settings": asked})
        if self.out is not None:
            write_json(self.out, record)
        if self.json:
            print(json.dumps(record))
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

    def _classes(self, model: SavedClassifier) -> tuple[int, ...]:
        names = self.class_names(model.card)
        if self.forget is not None:
            return forget_numbers(self.forget, names, model.card.num_classes)
        if self.forget_indices is not None:
            return ()
        if not model.card.forgotten and not model.card.forgotten_samples:
            msg = (
                f"{model.path} says that it has forgotten no class and no samples, and "
                "an audit asks what is left of the forgotten ones: name them with "
                "--forget or --forget-indices."
            )
            raise ValueError(msg)
        return model.card.forgotten

    def _samples(self, model: SavedClassifier, count: int, classes) -> list[int]:
        """Indices of the forgotten samples; none where the classes say it all."""
        if self.forget_indices is not None:
            return read_indices(self.forget_indices, count).tolist()
        stored = [] if classes else list(model.card.forgotten_samples)
        if stored and (stored[-1] >= count or digest(stored) != _sha256(model)):
            msg = (
                f"{model.path} names forgotten samples up to {stored[-1]} with the "
                f"SHA-256 {_sha256(model)}, which do not fit the {count} training "
                "samples or each other: give --forget-indices."
            )
            raise ValueError(msg)
        return stored

    def _check_retrained(self, other: SavedClassifier, classes, samples) -> None:
        """Refuse a model whose own card says that it was trained with them."""
        if read_card(other.path) is None:
            return
        seen = sorted({*classes} - {*other.card.forgotten})
        met = sorted({*samples} - {*other.card.forgotten_samples})
        # Samples of classes that were left out are among those.
        if seen or (met and not other.card.forgotten):
            what = f"class {seen[0]}" if seen else f"sample {met[0]}"
            kind = "classes" if seen else "samples"
            msg = (
                f"{other.path} was trained with {what}, which {self.checkpoint} has "
                f"forgotten: --retrained takes models that never saw the forgotten "
                f"{kind}."
            )
            raise ValueError(msg)


def _sha256(model: SavedClassifier) -> str | None:
    return model.card.samples_sha256


def _check_alike(other: SavedClassifier, model: SavedClassifier) -> None:
    compared = {
        "number of classes": (other.card.num_classes, model.card.num_classes),
        "image shape": tuple(list(s.card.image_shape) for s in (other, model)),
    }
    advice = "all must be models of the same data."
    check_same(compared, str(other.path), f"{model.path} has", advice)
