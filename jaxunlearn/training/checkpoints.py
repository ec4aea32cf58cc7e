"""Checkpoints of a training, whole or not there, and checked before they are read.

orbax writes the arrays, and would restore a flipped byte silently: hence
`checksums.json`, with the SHA-256 of every other file.
"""

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.checks import check_count
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.serialization import (
    checksum,
    read_json,
    sync_folder,
    to_dict,
    write_json,
)
from jaxunlearn.tasks import Data
from jaxunlearn.training.recipe import Recipe

_log = logging.getLogger(__name__)

_ARRAYS, _FACTS, _SUMS = "arrays", "facts.json", "checksums.json"


class Checkpoint(NamedTuple):
    """A whole checkpoint on the disk."""

    step: int  # after how many it was saved
    facts: dict[str, Any]  # what was saved with its arrays, JSON-compatible
    folder: Path

    def arrays(self, like: PyTree) -> PyTree:
        """The saved tree, given one of its structure, shapes and dtypes."""
        import orbax.checkpoint as ocp

        wanted = ocp.args.StandardRestore(_with_elements(like))
        with _checkpointer() as reader:
            tree = reader.restore(self.folder / _ARRAYS, args=wanted)
        return jax.tree.map(lambda old, new: old if new is None else new, like, tree)


class Checkpoints:
    """The newest `keep` checkpoints in a folder, each in a folder named by its step.

    The folder is made with the first. One process at a time may use it.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3):
        # orbax takes absolute paths alone.
        self.folder, self.keep = Path(folder).absolute(), check_count("keep", keep)
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
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*-unfinished"):
            shutil.rmtree(left)
        place = self.folder / f".{step}-unfinished"
        with _checkpointer() as writer:
            writer.save(place / _ARRAYS, _with_elements(tree))
        write_json(place / _FACTS, facts)
        write_json(place / _SUMS, _checksums(place))
        # Training has come here from an earlier one: later ones are damaged.
        for later in self.steps():
            if later >= step:
                shutil.rmtree(self.folder / str(later))
        place.rename(self.folder / str(step))
        sync_folder(self.folder)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / str(old))

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


def open_checkpoints(
    folder: str | Path | None, every: int | None, resume: bool, keep: int
) -> Checkpoints | None:
    """Those of a folder in which a training may begin or go on, as `fit` is told."""
    if folder is None and (resume or every is not None):
        name = "resume" if resume else "checkpoint_every"
        msg = f"{name} has no effect without checkpoint_dir: name a folder."
        raise ValueError(msg)
    if folder is None:
        return None
    if every is not None:
        check_count("checkpoint_every", every)
    checkpoints = Checkpoints(folder, keep=keep)
    steps = checkpoints.steps()
    if steps and not resume:
        msg = (
            f"{checkpoints.folder} holds checkpoints (the newest is {steps[-1]}): go "
            "on from there with resume=True, or choose an empty folder."
        )
        raise ValueError(msg)
    return checkpoints


def newest_of(
    checkpoints: Checkpoints, *, training: dict[str, Any], made_with: dict[str, Any]
) -> Checkpoint | None:
    """The newest whole one, which must be of this training; None where there is none.

    A warning says where other means have made it.
    """
    newest = checkpoints.newest()
    if newest is None:
        return None
    others = differences(newest.facts.get("training", {}), training)
    if others:
        msg = (
            f"{newest.folder} is a checkpoint of another training, which differs in "
            f"{'; '.join(others)}: give the settings of that one, or choose another "
            "folder."
        )
        raise ValueError(msg)
    changes = differences(newest.facts.get("made_with", {}), made_with)
    if changes and not newest.facts["numbers"][-1]:  # whether it was finished
        _log.warning(
            "%s was made with other means, which differ in %s: the result will not "
            "agree to the last bit.",
            newest.folder,
            "; ".join(changes),
        )
    return newest


def _checkpointer():
    import orbax.checkpoint as ocp

    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _with_elements(tree):
    """None in place of arrays without elements, which orbax refuses."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)


def _checked_facts(folder):
    """The facts in a checkpoint's folder, if all of it is what was written."""
    written, present = read_json(folder / _SUMS), _checksums(folder)
    for name in {**written, **present}:
        if written.get(name) != present.get(name):
            what = "not what was written" if name in present else "missing"
            msg = f"{name} is {what}"
            raise ValueError(msg)
    return read_json(folder / _FACTS)


def _checksums(folder):
    """SHA-256 of every file in a folder, by its name, but that of the checksums."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): checksum(path) for path in files}
    return {name: value for name, value in sums.items() if name != _SUMS}


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
