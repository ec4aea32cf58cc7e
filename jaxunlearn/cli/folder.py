"""A run's folder: built under another name, there complete or not at all."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.images import load_images, save_images
from jaxunlearn.cli.plots import plot_accuracies, plot_images
from jaxunlearn.cli.settings import Run
from jaxunlearn.datasets.splits import SPLITS
from jaxunlearn.models.files import (
    Card,
    load_classifier,
    save_with_card,
)
from jaxunlearn.serialization import read_json, write_json
from jaxunlearn.tasks import Data

_PROXIES = "proxies.npz"


class RunFolder:
    """`NAME.partial` while a run works, `NAME` once it has finished.

    The partial folder holds the run's settings in `request.json`, and in `pieces/` a
    record of each classifier that is done, so that a killed run can be taken up again.

    Attributes:
      final: where the run will be.
      partial: where it is until then.
      resumed: whether there was an unfinished run of the same settings.

    Raises:
      ValueError: `NAME` is there and not to be overwritten, or `NAME.partial` is of a
        run with other settings, or is something else.
      OSError: the folder cannot be made.
    """

    def __init__(self, run: Run):
        self.final = run.place
        self._check_final(run.overwrite)
        self.partial = partial_of(self.final)
        request = run.plain()
        self.resumed = self.partial.exists() and self._take_up(request, run.overwrite)
        if not self.resumed:
            self._make(request)

    def _check_final(self, overwrite):
        if not self.final.exists():
            return
        # A training has a config.json too, and metrics.jsonl besides.
        training = (self.final / "metrics.jsonl").exists()
        if training or not (self.final / "config.json").is_file():
            msg = f"{self.final} is there and is no run: choose another folder with --out."  # noqa: E501
            raise ValueError(msg)
        if not overwrite:
            msg = (
                f"{self.final} already holds a run: choose another folder with --out, "
                "or replace it with --overwrite."
            )
            raise ValueError(msg)

    def _take_up(self, request, overwrite) -> bool:
        """Whether to go on from what is in the partial folder, which else is gone."""
        if not (self.partial / "request.json").is_file():
            if self.partial.is_dir() and all(map(_unborn, self.partial.iterdir())):
                shutil.rmtree(self.partial)
                return False
            msg = (
                f"{self.partial} is there and is no unfinished run (it holds no "
                "request.json): remove it, or choose another folder with --out."
            )
            raise ValueError(msg)
        refusal = self._compare(request)
        if refusal is not None and not overwrite:
            raise ValueError(refusal)
        if refusal is not None:
            shutil.rmtree(self.partial)
            return False
        for path in self.partial.rglob(".*"):
            if path.is_file():  # half written when the run was killed
                path.unlink()
        (self.partial / "pieces").mkdir(exist_ok=True)
        return True

    def _compare(self, request) -> str | None:
        """Why the unfinished run is not the one that is asked for, or None."""
        try:
            stored = read_json(self.partial / "request.json")
        except ValueError as error:
            return (
                f"{error} The unfinished run there cannot be taken up: start anew with "
                "--overwrite, or choose another folder with --out."
            )
        missing = object()
        names = [
            name
            for name in {**request, **stored}
            if request.get(name, missing) != stored.get(name, missing)
        ]
        if not names:
            return None
        return (
            f"{self.partial} holds an unfinished run with other settings (of "
            f"{', '.join(names)}): take that one up with its own flags, start anew "
            "with --overwrite, or choose another folder with --out."
        )

    def _make(self, request):
        try:
            self.partial.mkdir(parents=True)
            self.write_json("request.json", request)
            (self.partial / "pieces").mkdir()
        except OSError as error:
            msg = (
                f"The folder {self.partial} cannot be made "
                f"({error.strerror or error}): choose another place with --out."
            )
            raise OSError(msg) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a record, all or nothing."""
        write_json(self.partial / name, value)

    def load(self, name: str) -> tuple[dict[str, Any], Classifier] | None:
        """The record and the classifier of a piece, or None if it is not done."""
        record = self.load_record(name)
        if record is None:
            return None
        classifier, _ = load_classifier(self.partial / f"{name}.safetensors")
        return record, classifier

    def load_record(self, name: str) -> dict[str, Any] | None:
        """The record of a piece, or None if it is not done."""
        path = self.partial / "pieces" / f"{name}.json"
        return read_json(path) if path.is_file() else None

    def save_record(self, name: str, record: dict[str, Any]) -> None:
        """Finish a piece."""
        self.write_json(f"pieces/{name}.json", record)

    def save(
        self,
        name: str,
        classifier: Classifier,
        card: Card,
        record: dict[str, Any],
    ) -> None:
        """Finish a piece: the record is written last and stands for all of it."""
        accuracies = {split: record[split] for split in SPLITS}
        path = self.partial / f"{name}.safetensors"
        save_with_card(path, classifier, card, {"accuracies": accuracies})
        self.save_record(name, record)

    def save_proxies(self, proxies: Data, seed: int) -> None:
        """Write images, and a picture of them."""
        plot_images(self.partial / "proxies.png", proxies.images, proxies.labels)
        save_images(self.partial / _PROXIES, proxies, seed)

    def load_proxies(self) -> Data:
        """The images that `save_proxies` wrote."""
        return load_images(self.partial / _PROXIES)

    def save_accuracies(
        self, records: Mapping[str, Any], forget: Sequence[int]
    ) -> None:
        """Draw the accuracies on test data of each classifier's record."""
        per_class = {name: r["test"]["per_class"] for name, r in records.items()}
        plot_accuracies(self.partial / "accuracies.png", per_class, forget)

    def finish(self) -> Path:
        """Give the folder its name; a run that it replaces goes only then."""
        old = self.final.with_name(f".{self.final.name}.replaced")
        if self.final.exists():
            # One that is left over from a kill further down.
            shutil.rmtree(old, ignore_errors=True)
            self.final.rename(old)
        self.partial.rename(self.final)
        shutil.rmtree(self.final / "pieces")
        (self.final / "request.json").unlink()
        shutil.rmtree(old, ignore_errors=True)
        return self.final


def partial_of(final: Path) -> Path:
    """Where a run is until it has finished."""
    return final.with_name(f"{final.name}.partial")


def _unborn(path: Path) -> bool:
    """What a run leaves that is killed before its settings are written."""
    return path.name.startswith(".request-")
