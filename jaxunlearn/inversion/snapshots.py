"""An inversion that was interrupted goes on to the same images."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxunlearn.checks import check_count
from jaxunlearn.inversion.step import Carry
from jaxunlearn.training.checkpoints import Checkpoints
from jaxunlearn.training.fingerprint import differences

_log = logging.getLogger("jaxunlearn.inversion")

# Seconds between two snapshots, where nobody says how many steps.
_SECONDS = 60.0

# What an inversion runs, in JAX's own words, which another version may choose anew.
_PROGRAMS = ("network", "student's network", "optimizer")


class Place(NamedTuple):
    """How far an inversion has come.

    Attributes:
      group: which group of batches is being worked on; all are done behind the last.
      step: how many of its steps are done.
      carry: where these have led, or None at step 0.
      found: images of the groups before.
    """

    group: int
    step: int
    carry: Carry | None
    found: list[Float[np.ndarray, "n h w c"]]


class Snapshots:
    """Writes one now and then, and finds the newest.

    Args:
      folder: for snapshots; None writes none.
      every: steps between two of them; None is a minute.
      resume: whether to go on from the newest.
      identity: what decides about the images, as plain values.
      machine: what their last bits depend on.

    Raises:
      ValueError: the folder holds snapshots and `resume` is not set, or those of
        another inversion; `every` or `resume` without a folder.
    """

    def __init__(
        self,
        folder: str | Path | None,
        every: int | None,
        resume: bool,
        identity: Callable[[], dict[str, Any]],
        machine: dict[str, Any],
    ):
        if folder is None and (resume or every is not None):
            name = "resume" if resume else "checkpoint_every"
            msg = f"{name} has no effect without checkpoint_dir: name a folder."
            raise ValueError(msg)
        self._every = every
        if every is not None:
            check_count("checkpoint_every", every)
        self._checkpoints, self._last, self._since = None, 0, time.monotonic()
        if folder is None:
            return
        self._checkpoints = Checkpoints(folder, keep=2)
        self._facts = {"inversion": identity(), "made_with": machine}
        steps = self._checkpoints.steps()
        if steps and not resume:
            msg = (
                f"{self._checkpoints.folder} holds checkpoints (the newest is "
                f"{steps[-1]}): go on from there with resume=True, or choose an empty "
                "folder."
            )
            raise ValueError(msg)

    def newest(self, like: Callable[[], Carry], size: int) -> Place:
        """Where to go on: the newest snapshot, or the beginning.

        Args:
          like: a carry of the same structure, shapes and types.
          size: images in a group.

        Raises:
          ValueError: the snapshot is one of another inversion.
        """
        start = Place(0, 0, None, [])
        found = self._checkpoints and self._checkpoints.newest()
        if not found:
            return start
        # A training's checkpoint has none of these facts.
        there, made_with = (found.facts.get(n, {}) for n in ("inversion", "made_with"))
        here, version = self._facts["inversion"], "version of jax"
        if made_with.get(version) != self._facts["made_with"][version]:
            there, here = (
                {name: x for name, x in facts.items() if name not in _PROGRAMS}
                for facts in (there, here)
            )
        others = differences(there, here)
        if others:
            msg = (
                f"{found.folder} is a checkpoint of another inversion, which differs "
                f"in {'; '.join(others)}: give the settings of that one, or choose "
                "another folder."
            )
            raise ValueError(msg)
        changes = differences(made_with, self._facts["made_with"])
        if changes:
            _log.warning(
                "%s was made with other means, which differ in %s: the images will "
                "not agree to the last bit.",
                found.folder,
                "; ".join(changes),
            )
        self._last = found.step
        group, step = found.facts["group"], found.facts["step"]
        carry = like()
        empty = np.zeros((group * size, *carry.images.shape[2:]), np.float32)
        tree = found.arrays(_tree(carry, empty))
        _log.info("resuming after %d steps", found.step)
        restored = carry._replace(**{n: tree[n] for n in carry._fields if n in tree})
        return Place(group, step, restored, [np.asarray(tree["found"])])

    def save(self, place: Place, done: int, *, finished: bool = False) -> None:
        """Write a snapshot after `done` steps, if it is time to."""
        if self._checkpoints is None:
            return
        if self._every is None:
            due = time.monotonic() - self._since >= _SECONDS
        else:
            due = done - self._last >= self._every
        if not (due or finished):
            return
        self._last, self._since = done, time.monotonic()
        shape = place.carry.images.shape[2:]
        found = np.concatenate([np.zeros((0, *shape), np.float32), *place.found])
        facts = self._facts | {"group": place.group, "step": place.step}
        self._checkpoints.save(done, _tree(place.carry, found), facts)


def _tree(carry, found):
    """What is written, under speaking names; None is not."""
    arrays = {name: x for name, x in carry._asdict().items() if x is not None}
    return arrays | {"found": found}
