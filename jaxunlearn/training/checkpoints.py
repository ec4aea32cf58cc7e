"""Checkpoints of a training, whole or not there, and checked before they are read.

orbax writes the arrays, and would restore a flipped byte silently: hence
`checksums.json`, with the SHA-256 of every other file.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of this, or for a second one.

    In the middle of its work orbax's threads would print tracebacks of their own.
    """
    handler, waiting = signal.getsignal(signal.SIGINT), []
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(handler):
        yield
        return

    def wait(*given):
        if waiting:
            handler(*given)
        waiting.append(given)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            handler(*waiting[0])


class Checkpoint(NamedTuple):
    """A whole checkpoint on the disk."""

    step: int  # after how many it was saved
    facts: dict[str, Any]  # what was saved with its arrays, JSON-compatible
    folder: Path

    @_uninterrupted()
    def arrays(self, like: PyTree) -> PyTree:
        """The saved tree, given one of its structure, shapes and dtypes.

        Refuses one that holds NaN or infinite values: no training saves such.
        """
        import orbax.checkpoint as ocp

        wanted = ocp.args.StandardRestore(_with_elements(like))
        with _checkpointer() as reader:
            tree = reader.restore(self.folder / _ARRAYS, args=wanted)
        tree = jax.tree.map(lambda old, new: old if new is None else new, like, tree)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            number = jnp.issubdtype(leaf.dtype, jnp.inexact)
            if number and not jnp.isfinite(leaf).all():
                msg = (
                    f"The checkpoint {self.folder} holds NaN or infinite values at "
                    f"{path_name(path)}: remove it, to go on from the one before it."
                )
                raise ValueError(msg)
        return tree


class Checkpoints:
    """The newest `keep` checkpoints in a folder, each in a folder named by its step.

    The folder is made with the first. One process at a time may use it.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3):
        # orbax takes absolute paths alone.
        self.folder, self.keep = Path(folder).absolute(), check_count("keep", keep)
        places = (self.folder, *self.folder.parents)
        there = next(path for path in places if os.path.lexists(path))
        if not there.is_dir():
            what = "a link to nothing" if there.is_symlink() else "a file"
            msg = f"{there} is {what}: checkpoints need a folder."
            raise ValueError(msg)
        if not os.access(there, os.W_OK | os.X_OK):
            msg = (
                f"{there} cannot be written to: choose another folder for checkpoints."  # noqa: E501
            )
            raise ValueError(msg)

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, damaged or not, in order."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    @_uninterrupted()
    def save(self, step: int, tree: PyTree, facts: dict[str, Any]) -> None:
        """Write a checkpoint; then remove those that are no longer kept.

        Training waits: else a kill could cost it more than the steps since the last.
        """
        place = self.folder / f".{step}-unfinished"
        try:
            for left in self.folder.glob(".*-unfinished"):
                shutil.rmtree(left)
            with _checkpointer() as writer:
                place.mkdir(parents=True)
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
        except (OSError, ValueError) as error:  # tensorstore raises both
            first = str(error).strip().partition("\n")[0]
            reason = getattr(error, "strerror", None) or first.rpartition(": ")[2]
            reason = reason.partition(" [")[0]
            msg = (
                f"The checkpoint of step {step} cannot be written to {self.folder} "
                f"({reason}). Make room there, and go on with resume=True."
            )
            raise OSError(msg) from error
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint or None; a warning for each damaged newer one."""
        newest, damaged = None, {}
        for step in reversed(self.steps()):
            folder = self.folder / str(step)
            try:
                newest = Checkpoint(step, _checked_facts(folder), folder)
                break
            except (ValueError, OSError, RecursionError) as error:
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
    if not isinstance(folder, str | Path) or not str(folder):
        msg = f"checkpoint_dir must be the path of a folder; it is {folder!r}."
        raise TypeError(msg)
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


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """orbax's; what goes wrong is raised, and not printed with tracebacks as well."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            yield checkpointer
    finally:
        logger.setLevel(level)


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
