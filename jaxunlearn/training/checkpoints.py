"""Checkpoints of a training, whole or not there, and checked before they are read.

orbax writes them, each under a temporary name until all of it is there. It restores a
flipped byte silently, hence `checksums.json` with the SHA-256 of every other file. That
is written last: without it a checkpoint counts as damaged.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.serialization import read_json, to_dict, to_json
from jaxunlearn.tasks import Data
from jaxunlearn.training.recipe import Recipe

_log = logging.getLogger(__name__)

_SUMS = "checksums.json"


class Checkpoint(NamedTuple):
    """A whole checkpoint on the disk."""

    step: int  # after how many it was saved
    facts: dict[str, Any]  # what was saved with its arrays, JSON-compatible
    folder: Path

    def arrays(self, like: PyTree) -> PyTree:
        """The saved tree, given one of its structure, shapes and dtypes."""
        import orbax.checkpoint as ocp

        items = {"arrays": ocp.args.StandardRestore(_with_elements(like))}
        with _manager(self.folder.parent) as manager:
            tree = manager.restore(self.step, args=ocp.args.Composite(**items)).arrays
        return jax.tree.map(lambda old, new: old if new is None else new, like, tree)


class Checkpoints:
    """The newest `keep` checkpoints in a folder, each in a folder named by its step.

    The folder is made with the first. One process at a time may use it.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3):
        if keep < 1:
            msg = f"keep must be at least 1 checkpoint; it is {keep}."
            raise ValueError(msg)
        # orbax takes absolute paths alone.
        self.folder, self.keep = Path(folder).absolute(), keep
        if self.folder.exists() and not self.folder.is_dir():
            msg = f"{self.folder} is a file: checkpoints need a folder."
            raise ValueError(msg)

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, damaged or not, in order."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, tree: PyTree, facts: dict[str, Any]) -> None:
        """Write a checkpoint; then remove those that are no longer kept.

        Training waits: else a kill could cost it more than the steps since the last.
        """
        import orbax.checkpoint as ocp

        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(_with_elements(tree)),
            facts=ocp.args.JsonSave(to_dict(facts)),
        )
        with _manager(self.folder, cleanup_tmp_directories=True) as manager:
            # Training has come here from an earlier one: later ones are damaged.
            for later in self.steps():
                if later >= step:
                    manager.delete(later)
            manager.save(step, args=items)
            place = self.folder / str(step)
            (place / _SUMS).write_text(to_json(_checksums(place)), encoding="utf-8")
            for old in self.steps()[: -self.keep]:
                manager.delete(old)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint or None; a warning for each damaged newer one."""
        newest, damaged = None, {}
        for step in reversed(self.steps()):
            folder = self.folder / str(step)
            try:
                newest = Checkpoint(step, _checked_facts(folder), folder)
                break
            except (ValueError, OSError) as error:
                damaged[folder] = str(error).rstrip(".")
        instead = "there is no other, so that training starts anew"
        if newest is not None:
            instead = f"going on from {newest.folder}"
        for folder, why in damaged.items():
            _log.warning("The checkpoint %s is broken (%s): %s.", folder, why, instead)
        return newest


def _manager(folder, **options):
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **options)
    return ocp.CheckpointManager(folder, options=options)


def _with_elements(tree):
    """None in place of arrays without elements, which orbax refuses."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)


def _checked_facts(folder):
    """The facts in a checkpoint's folder, if all of it is what was written."""
    import orbax.checkpoint as ocp

    written, present = read_json(folder / _SUMS), _checksums(folder)
    for name in {**written, **present}:
        if written.get(name) != present.get(name):
            what = "not what was written" if name in present else "missing"
            msg = f"{name} is {what}"
            raise ValueError(msg)
    with _manager(folder.parent) as manager:
        items = ocp.args.Composite(facts=ocp.args.JsonRestore())
        return manager.restore(int(folder.name), args=items).facts


def _checksums(folder):
    """SHA-256 of every file in a folder, by its name, but that of the checksums."""
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != _SUMS:
            with path.open("rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def fingerprint(
    network: str,
    classifier: Classifier,
    train: Data,
    validation: Data | None,
    recipe: Recipe,
    key: Array,
) -> dict[str, Any]:
    """All that decides about the result of a training, as a JSON-compatible dict.

    `network` describes it in words; of the leaves of `classifier`, paths, shapes and
    dtypes count.
    """
    leaves = jax.tree_util.tree_leaves_with_path((classifier.params, classifier.state))
    shapes = [f"{path_name(path)} {leaf.dtype}{leaf.shape}" for path, leaf in leaves]
    # Addresses of functions differ from process to process.
    network = re.sub(r" at 0x[0-9a-f]+", "", network)
    decisive = {f"recipe.{name}": value for name, value in to_dict(recipe).items()}
    decisive |= {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "network": _digest(network, *shapes),
        "preprocess": to_dict(classifier.preprocess),
        "number of samples": len(train),
        "samples": _digest(train.images, train.labels),
    }
    if recipe.patience is not None:
        decisive["validation samples"] = _digest(validation.images, validation.labels)
    return decisive


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Names of what differs, with both values where they are short."""
    different = []
    for name in {**here, **there}:
        one, other = (values.get(name, "nothing") for values in (there, here))
        if one != other:
            short = max(len(str(one)), len(str(other))) < 40
            both = f" ({one} there, {other} here)" if short else ""
            different.append(f"{name}{both}")
    return different


def _digest(*parts):
    """SHA-256 of arrays and strings, with the dtype and shape of each."""
    total = hashlib.sha256()
    for part in parts:
        array = np.asarray(part)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return total.hexdigest()
