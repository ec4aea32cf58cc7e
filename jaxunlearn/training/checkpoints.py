"""Checkpoints that are there whole or not at all, and are checked before they are read.

A folder named by its step holds `arrays/` (written by orbax), `facts.json`, and
`checksums.json` with the SHA-256 of every other file: orbax restores a flipped byte
without a word.
"""

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.serialization import read_json, to_json

_log = logging.getLogger(__name__)

_ARRAYS, _FACTS, _SUMS = "arrays", "facts.json", "checksums.json"
# What a kill leaves of a folder that was being written or replaced.
_LEFTOVER = re.compile(r"\.\d+-(written|replaced)")


class Checkpoint(NamedTuple):
    """A whole checkpoint on the disk.

    Attributes:
      step: after how many steps it was saved.
      facts: what was saved with it, as plain values.
      folder: where it lies.
    """

    step: int
    facts: dict[str, Any]
    folder: Path

    def arrays(self, like: PyTree) -> PyTree:
        """The saved tree, given one of its structure, shapes and types.

        Raises:
          ValueError: it was another tree that was saved.
        """
        import orbax.checkpoint as ocp

        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        leaves, structure = jax.tree_util.tree_flatten_with_path(like)
        wanted = {path_name(path): _plain_array(leaf) for path, leaf in leaves}
        present = {name: leaf for name, leaf in wanted.items() if leaf.size}
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.restore(
                self.folder / _ARRAYS, restore_args=dict.fromkeys(present, as_numpy)
            )
        for name, leaf in present.items():
            if (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype):
                msg = (
                    f"{name} in {self.folder} is {found[name].dtype}"
                    f"{list(found[name].shape)}; {leaf.dtype}{list(leaf.shape)} is "
                    "expected."
                )
                raise ValueError(msg)
        # Arrays without elements were not saved: those of `like` are the same.
        restored = [
            _typed_array(found.get(path_name(path), _plain_array(leaf)), leaf)
            for path, leaf in leaves
        ]
        return jax.tree.unflatten(structure, restored)


class Checkpoints:
    """The checkpoints in a folder.

    Each is built under a hidden name and renamed once all of it is on the disk; older
    ones go only then. One process at a time may use the folder.

    Attributes:
      folder: where they are; made with the first one.
      keep: how many of the newest stay.

    Raises:
      ValueError: `keep` is not positive, or `folder` is a file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder)
    ...     checkpoints.save(7, {"w": jnp.ones(2)}, {"by": "hand"})
    ...     found = checkpoints.newest()
    ...     print(found.step, found.facts, found.arrays({"w": jnp.zeros(2)})["w"])
    7 {'by': 'hand'} [1. 1.]
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
        """The steps that there are checkpoints of, whole or not, in ascending order."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, tree: PyTree, facts: dict[str, Any]) -> None:
        """Write a checkpoint, and remove those that are no longer kept.

        Training waits: else a kill could cost it more than the steps since the last.

        Raises:
          OSError: the disk is full, or the like; those before are still there.
        """
        import orbax.checkpoint as ocp

        leaves = jax.tree_util.tree_leaves_with_path(tree)
        arrays = {path_name(path): _plain_array(leaf) for path, leaf in leaves}
        # orbax refuses arrays without elements.
        arrays = {name: leaf for name, leaf in arrays.items() if leaf.size}
        hidden, final = self.folder / f".{step}-written", self.folder / str(step)
        shutil.rmtree(hidden, ignore_errors=True)
        try:
            hidden.mkdir(parents=True)
            with ocp.PyTreeCheckpointer() as checkpointer:
                checkpointer.save(hidden / _ARRAYS, jax.device_get(arrays))
            (hidden / _FACTS).write_text(to_json(facts), encoding="utf-8")
            sums = {name: _checksum(hidden / name) for name in _files(hidden)}
            (hidden / _SUMS).write_text(to_json(sums), encoding="utf-8")
            for path in (hidden, *hidden.rglob("*")):
                _sync(path)
            if final.exists():  # a broken one
                self._remove(step)
            hidden.rename(final)
            _sync(self.folder)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        # Those of later steps were broken when training began.
        kept = [s for s in self.steps() if s <= step][-self.keep :]
        for other in set(self.steps()) - set(kept):
            self._remove(other)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None; a warning for each broken newer one."""
        self.clear_leftovers()
        found, broken = None, {}
        for step in reversed(self.steps()):
            place = self.folder / str(step)
            try:
                found = Checkpoint(step, _checked_facts(place), place)
                break
            except _BrokenError as error:
                broken[place] = str(error)
        for place, why in broken.items():
            instead = (
                "there is no other, so that training starts anew"
                if found is None
                else f"going on from {found.folder}"
            )
            _log.warning("The checkpoint %s is broken (%s): %s.", place, why, instead)
        return found

    def clear_leftovers(self) -> None:
        """Remove what a kill left half written."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if _LEFTOVER.fullmatch(path.name):
                    shutil.rmtree(path)

    def _remove(self, step):
        # Renamed first: a kill in between leaves nothing that looks like a checkpoint.
        old = self.folder / f".{step}-replaced"
        shutil.rmtree(old, ignore_errors=True)
        (self.folder / str(step)).rename(old)
        shutil.rmtree(old, ignore_errors=True)


class _BrokenError(Exception):
    """Why a checkpoint cannot be used."""


def _checked_facts(place):
    """The facts in a checkpoint's folder, if all of it is what was written."""
    try:
        sums, present = read_json(place / _SUMS), _files(place)
        for name in sorted({*sums, *present}):
            if name not in present:
                why = f"{name} is missing"
            elif name not in sums:
                why = f"{name} does not belong to it"
            elif _checksum(place / name) != sums[name]:
                why = f"{name} is not what was written"
            else:
                continue
            raise _BrokenError(why)
        return read_json(place / _FACTS)
    except (ValueError, OSError) as error:
        raise _BrokenError(str(error).rstrip(".")) from error


def _files(folder):
    """Names of all files in a folder but its checksums."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if name != _SUMS)


def _checksum(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path):
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain_array(leaf):
    """A leaf as files can hold it: keys as their words."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def _typed_array(plain, like):
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(plain, impl=jax.random.key_impl(like))
    return jnp.asarray(plain)
