"""An inversion from its start, or from a snapshot, to its images."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.jaxprs import open_jaxpr
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.loop import run_steps
from jaxunlearn.inversion.groups import Groups, noise
from jaxunlearn.inversion.progress import InversionError, failure, tell
from jaxunlearn.inversion.schedule import low_pass, stages
from jaxunlearn.inversion.snapshots import Place, Snapshots
from jaxunlearn.inversion.step import Carry, Constants, Step, low_passed
from jaxunlearn.serialization import to_plain
from jaxunlearn.training.fingerprint import digest, tree_digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """All that decides about the images, in the form in which steps take it.

    Attributes:
      step: one step.
      rates: factor of each step's update.
      coarse: factors of the earlier stages.
      groups: of labels.
      labels: the class of each image.
      image_shape: (h, w, c).
      key: of all that is drawn.
      low, high: bounds.
      start: images to begin from, or None.
      keep_best: whether to return the best and not the last.
      given: classifier, student or None, moments or None.
      callback, log: as for `invert`.
    """

    step: Step
    rates: Float[np.ndarray, " steps"]
    coarse: tuple[int, ...]
    groups: Groups
    labels: Int[np.ndarray, " n"]
    image_shape: tuple[int, ...]
    key: Array
    low: np.float32
    high: np.float32
    start: Any
    keep_best: bool
    given: tuple[Classifier, Classifier | None, PyTree]
    callback: Callable[[int, float], Any] | None
    log: Callable[[dict[str, Any]], Any] | None

    def identity(self) -> dict[str, Any]:
        """What decides about the images, as plain values under speaking names."""
        classifier, student, moments = self.given
        optimizer = self.step.optimizer
        image = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        state = jax.eval_shape(optimizer.init, image)
        found = {
            "network": _network_digest(classifier, image),
            "student's network": student and _network_digest(student, image),
            "optimizer": _program_digest(optimizer.update, image, state, image),
            "classifier": tree_digest((classifier.params, classifier.state)),
            "preprocess": classifier.preprocess,
            "labels": digest(self.labels),
            "key": np.asarray(jax.random.key_data(self.key)),
            "steps": len(self.rates),
            "learning rates": digest(self.rates),
            "coarse": self.coarse,
            "jitter": self.step.jitter,
            "flip": self.step.flip,
            "bounds": f"{self.low} to {self.high}",
            "keep_best": self.keep_best,
            "batches": self.groups.rows.shape,
            "shares with statistics of their own": self.step.separate_shares,
            "moments": tree_digest(moments),
            "student": tree_digest(student),
            "student's preprocess": student and student.preprocess,
            "start": tree_digest(self.start),
        }
        weights = dataclasses.asdict(self.step.prior)
        found |= {f"prior.{name}": weight for name, weight in weights.items()}
        return to_plain(found)

    def run(self, snapshots: Snapshots) -> Float[np.ndarray, "n h w c"]:
        """Optimise group after group.

        Raises:
          InversionError: the objective or an image is not finite.
        """
        steps, count = len(self.rates), len(self.groups.rows)
        place = snapshots.newest(lambda: self._begin(0), self.groups.size)
        while place.group < count:
            carry = self._run_group(place, snapshots)
            images = carry.best if self.keep_best else carry.images
            images = self._fetched(images)
            place = Place(place.group + 1, 0, None, [*place.found, images])
            done, finished = place.group * steps, place.group == count
            snapshots.save(place._replace(carry=carry), done, finished=finished)
        return np.concatenate(place.found)[: self.groups.count]

    def _run_group(self, place: Place, snapshots: Snapshots) -> Carry:
        carry = place.carry if place.step else self._begin(place.group)
        carry, before = self._placed(carry), None
        for first, stop, factor in stages(len(self.rates), self.coarse):
            constants = self._constants(place.group, factor)
            if first >= place.step:
                carry = _entered(carry, before)
            begin, before = max(first, place.step), constants
            if begin >= stop:
                continue

            def on_chunk(reached, carry, outputs, constants=constants):
                self._report(place, reached, carry, constants, outputs)
                here = place._replace(step=reached, carry=carry)
                done = place.group * len(self.rates) + reached
                if reached < len(self.rates):
                    snapshots.save(here, done)

            carry, _ = run_steps(
                self.step,
                carry,
                constants,
                steps=stop - begin,
                start=begin,
                feed=self._rates,
                on_chunk=on_chunk,
            )
        return carry

    def _begin(self, group: int) -> Carry:
        rows = self.groups.rows[group]
        keys, _ = self.groups.keys(self.key, group)
        if self.start is None:
            shape = (rows.shape[1], *self.image_shape)
            images = noise(keys, shape, self.low, self.high)
        else:
            images = jnp.asarray(self.start, jnp.float32)[rows]
        # Noise too: half a box has a normal start, and a box its rounding.
        images = jnp.clip(images, self.low, self.high)
        best = (
            (images, jnp.full(rows.shape, jnp.inf)) if self.keep_best else (None,) * 2
        )
        state = jax.vmap(self.step.optimizer.init)(images)
        return Carry(images, state, *best, running=jnp.array(True))

    def _placed(self, carry: Carry) -> Carry:
        """On the devices: what has a row for each image is cut."""
        shape = carry.images.shape[:2]

        def put(leaf):
            cut = jnp.shape(leaf)[:2] == shape
            place = parallel.place_columns if cut else parallel.place_whole
            return place(leaf, self.step.mesh)

        return jax.tree.map(put, carry)

    def _fetched(self, images: Array) -> Float[np.ndarray, "n h w c"]:
        found = parallel.fetch(images, self.step.mesh)
        return found.reshape(-1, *self.image_shape)

    def _constants(self, group: int, factor: int) -> Constants:
        mesh = self.step.mesh
        classifier, student, moments = self.given
        rows = columns = None
        if self.coarse:
            rows, columns = (low_pass(n, factor) for n in self.image_shape[:2])
        _, keys = self.groups.keys(self.key, group)
        labels = self.labels[self.groups.rows[group]]
        whole = (keys, self.low, self.high, rows, columns)
        constants = Constants(
            classifier,
            student,
            moments,
            parallel.place_columns(labels, mesh),
            *parallel.place_whole(whole, mesh),
        )
        # Once: what is on the host would travel again with every step.
        return jax.device_put(constants) if mesh is None else constants

    def _rates(self, first: int, stop: int) -> Float[np.ndarray, " rows"]:
        rates = self.rates[first:stop]
        return np.pad(rates, (0, stop - first - len(rates))).astype(np.float32)

    def _report(self, place, reached, carry, constants, outputs) -> None:
        terms, running = outputs
        steps = len(self.rates)
        before = place.group * steps
        done = before + reached
        broken = failure(terms, running, done - len(running), self.step.prior)
        if broken is None:
            total = len(self.groups.rows) * steps
            tell(terms, done, total, self.callback, self.log)
            return
        message, step = broken
        seen = jnp.clip(low_passed(carry.images, constants), self.low, self.high)
        images = np.concatenate([*place.found, self._fetched(seen)])
        images = images[: self.groups.count]
        raise InversionError(message, images, self.labels[: len(images)], step)


def _network_digest(classifier: Classifier, image: Any) -> str:
    """Of its program alone: parameters and preprocess have digests of their own."""
    leaves = classifier.params, classifier.state
    return _program_digest(classifier.network.apply, *leaves, image)


def _program_digest(function: Callable[..., Any], *arguments: Any) -> str:
    """Of a function's program on such arguments, with all arrays that it holds."""
    jaxpr, held = open_jaxpr(jax.make_jaxpr(function)(*arguments))
    # Addresses of functions differ from process to process.
    text = re.sub(r" at 0x[0-9a-f]+", "", str(jaxpr))
    return digest(text.encode(), tree_digest(held).encode())


def _entered(carry: Carry, before: Constants | None) -> Carry:
    """A carry at the beginning of a stage, given what held in the one before."""
    if before is not None:
        images = low_passed(carry.images, before)
        # Convex weights of floats may add up to more than 1.
        carry = carry._replace(images=jnp.clip(images, before.low, before.high))
    if carry.best is None:
        return carry
    # Where it lies, so that the first chunk is no program of its own.
    fresh = jnp.full_like(carry.best_loss, jnp.inf, device=carry.best_loss.sharding)
    return carry._replace(best_loss=fresh)
