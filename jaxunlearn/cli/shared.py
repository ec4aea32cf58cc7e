"""A run's folder that process 0 has and all processes of the run use."""

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.cli.distributed import decided
from jaxunlearn.cli.folder import RunFolder, partial_of
from jaxunlearn.cli.settings import Run
from jaxunlearn.models.files import Card, load_classifier
from jaxunlearn.tasks import Data


class SharedFolder:
    """`RunFolder`, of which only process 0 touches the disk.

    Every process calls the same methods in the same order. What process 0 reads, the
    others receive: they need not see its disk. What goes wrong there ends them all.
    With one process it is the `RunFolder`.

    Attributes:
      final: where the run will be.
      partial: where it is until then.
      resumed: whether there was an unfinished run of the same settings.

    Raises:
      ValueError: as of `RunFolder`.
      OSError: likewise.
      Followed: in the other processes.
    """

    def __init__(self, run: Run):
        self._opened: RunFolder | None = None
        self.resumed = decided(functools.partial(self._open, run))
        self.final = run.place
        self.partial = partial_of(run.place)

    def _open(self, run: Run) -> bool:
        self._opened = RunFolder(run)
        return self._opened.resumed

    @property
    def _folder(self) -> RunFolder:
        assert self._opened is not None, "only process 0 has a folder"
        return self._opened

    def load(self, name: str) -> tuple[dict[str, Any], Classifier] | None:
        """The record and the classifier of a piece, or None if it is not done."""
        record = self.load_record(name)
        if record is None:
            return None
        path = self.partial / f"{name}.safetensors"
        stored = decided(path.read_bytes)
        # The file says how to rebuild its network.
        with tempfile.TemporaryDirectory(prefix="jaxunlearn-") as place:
            copy = Path(place) / path.name
            copy.write_bytes(stored)
            return record, load_classifier(copy)[0]

    def load_record(self, name: str) -> dict[str, Any] | None:
        """The record of a piece, or None if it is not done."""
        return decided(lambda: self._folder.load_record(name))

    def load_proxies(self) -> Data:
        """The images that stood in for the retained data."""
        return decided(lambda: self._folder.load_proxies())

    def save(
        self,
        name: str,
        classifier: Classifier,
        card: Card,
        record: dict[str, Any],
    ) -> None:
        """Finish a piece."""
        decided(lambda: self._folder.save(name, classifier, card, record))

    def save_record(self, name: str, record: dict[str, Any]) -> None:
        """Finish a piece that has no classifier."""
        decided(lambda: self._folder.save_record(name, record))

    def save_proxies(self, proxies: Data, seed: int) -> None:
        """Write images, and a picture of them."""
        decided(lambda: self._folder.save_proxies(proxies, seed))

    def save_accuracies(
        self, records: Mapping[str, Any], forget: Sequence[int]
    ) -> None:
        """Draw the accuracies on test data of each classifier's record."""
        decided(lambda: self._folder.save_accuracies(records, forget))

    def write_json(self, name: str, value: Any) -> None:
        """Write a record, all or nothing."""
        decided(lambda: self._folder.write_json(name, value))

    def finish(self) -> Path:
        """Give the folder its name."""
        return decided(lambda: self._folder.finish())
