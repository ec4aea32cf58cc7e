"""A run's folder: built under another name, there complete or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

from jaxunlearn.cli.settings import Run, to_json
from jaxunlearn.saving import load_classifier, save_classifier, written_whole

# What may differ between a killed run and the one that takes it up.
_ELSEWHERE = ("out", "overwrite", "config")


class RunFolder:
    """`NAME.partial` while a run works, `NAME` once it has finished.

    Raises:
      ValueError: `NAME` is there and not to be overwritten, or `NAME.partial` is of a
        run with another configuration.
      OSError: the folder cannot be written.
    """

    def __init__(self, run: Run):
        self.final = Path(run.out)
        self.partial = self.final.with_name(self.final.name + ".partial")
        self._check_final(run)
        wanted = {k: v for k, v in to_json(run).items() if k not in _ELSEWHERE}
        if self.partial.exists() and run.overwrite:
            shutil.rmtree(self.partial)
        self.resumed = self.partial.exists()
        if self.resumed:
            self._check_partial(wanted)
            return
        try:
            self.partial.mkdir(parents=True)
        except OSError as error:
            msg = f"The folder {self.partial} cannot be made ({error.strerror}): choose another with --out."  # noqa: E501
            raise OSError(msg) from error
        self.write_json("request.json", wanted)

    def _check_final(self, run):
        if not self.final.exists():
            return
        if not self.final.is_dir() or not (self.final / "config.json").is_file():
            msg = f"{self.final} is there and is no run: choose another folder with --out."  # noqa: E501
            raise ValueError(msg)
        if not run.overwrite:
            msg = (
                f"{self.final} already holds a run: choose another folder with --out, "
                "or replace it with --overwrite."
            )
            raise ValueError(msg)

    def _check_partial(self, wanted):
        stored = self.read_json("request.json")
        if stored is None or stored == wanted:
            if stored is None:
                self.write_json("request.json", wanted)
            return
        names = [k for k in wanted if stored.get(k) != wanted[k]]
        msg = (
            f"{self.partial} holds an unfinished run with another configuration (it "
            f"differs in {', '.join(names) or 'names that are gone'}): take that one "
            "up with its own flags, or start anew with --overwrite."
        )
        raise ValueError(msg)

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote under this name, or None."""
        path = self.partial / name
        return json.loads(path.read_text()) if path.is_file() else None

    def write_json(self, name: str, value: Any) -> None:
        """Write plain values, all or nothing."""
        with written_whole(self.partial / name) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n")

    def load(self, name: str) -> Any:
        """The classifier saved under this name, or None."""
        path = self.partial / f"{name}.safetensors"
        return load_classifier(path)[0] if path.is_file() else None

    def save(self, name: str, classifier: Any, card: dict[str, Any]) -> None:
        """Save a classifier under this name."""
        save_classifier(self.partial / f"{name}.safetensors", classifier, card)

    def finish(self) -> Path:
        """Give the folder its name; a run that it replaces goes first."""
        (self.partial / "request.json").unlink(missing_ok=True)
        if self.final.exists():
            old = self.final.with_name(self.final.name + ".replaced")
            if old.exists():
                shutil.rmtree(old)
            self.final.rename(old)
            self.partial.rename(self.final)
            shutil.rmtree(old)
        else:
            self.partial.rename(self.final)
        return self.final
