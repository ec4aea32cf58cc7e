"""One step of the optimisation over images, on one device or many."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.inversion.prior import ImagePrior
from jaxunlearn.inversion.terms import SHARED, SINGLE, Terms, raw_terms, weighted

# One object, so that programs are shared. The rate is not part of it.
ADAM = optax.scale_by_adam()


class Carry(NamedTuple):
    """What a step changes. All of a group of batches, `[batches, n, ...]`.

    Attributes:
      images: in pixel space.
      optimizer: its state, for each batch.
      best: of each image the one with the smallest objective, or None if not asked for.
      best_loss: its objective.
      running: whether the objective has been finite so far; nothing moves once it has
        not.
    """

    images: Float[Array, "batches n h w c"]
    optimizer: PyTree
    best: Float[Array, "batches n h w c"] | None
    best_loss: Float[Array, "batches n"] | None
    running: Array


class Constants(NamedTuple):
    """What no step changes.

    Attributes:
      classifier: the one to invert.
      student: to compete with, or None.
      moments: to match, or None.
      labels: of the images.
      keys: of each batch, for its steps.
      low, high: bounds of the pixels.
      rows, columns: low-pass matrices, or None.
    """

    classifier: Classifier
    student: Classifier | None
    moments: PyTree
    labels: Int[Array, "batches n"]
    keys: Array
    low: Array
    high: Array
    rows: Float[Array, "h h"] | None
    columns: Float[Array, "w w"] | None


@dataclasses.dataclass(frozen=True)
class Step:
    """One step; equal steps share a compiled program.

    Attributes:
      optimizer: over images.
      prior: with numbers for all weights.
      jitter: rolls by up to so many pixels down and right.
      flip: whether to mirror at random.
      mesh: the devices that share the images, or None.
      transform: what runs on each of them.
      sync_statistics: whether statistics are those of the whole batch, or of each
        device's share.
    """

    optimizer: optax.GradientTransformation
    prior: ImagePrior
    jitter: tuple[int, int]
    flip: bool
    mesh: Mesh | None
    transform: parallel.Transform
    sync_statistics: bool

    @property
    def separate_shares(self) -> int:
        """How many parts of a batch have statistics of their own."""
        return 1 if self.mesh is None or self.sync_statistics else self.mesh.size

    def __call__(
        self, carry: Carry, constants: Constants, index: Array, rate: Array
    ) -> tuple[Carry, tuple[Terms, Array]]:
        """The next images; the terms before the step, and whether all is finite."""
        seen = low_passed(carry.images, constants)
        gradients, losses, terms = self._gradients(seen, constants, index)
        # By the chain rule.
        gradients = low_passed(gradients, constants, transpose=True)
        # Batches have nothing to do with each other, whatever the optimizer couples.
        updates, state = jax.vmap(self.optimizer.update)(
            gradients, carry.optimizer, carry.images
        )
        updates = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
        images = jnp.clip(
            optax.apply_updates(carry.images, updates), constants.low, constants.high
        )
        running = (
            carry.running & jnp.isfinite(terms.total).all() & jnp.isfinite(images).all()
        )
        best, best_loss = carry.best, carry.best_loss
        if best is not None:
            better = losses < best_loss
            best_loss = jnp.where(better, losses, best_loss)
            best = jnp.where(better[..., None, None, None], seen, best)
        after = Carry(images, state, best, best_loss, running)
        kept = jax.tree.map(
            functools.partial(jnp.where, running),
            after._replace(running=None),
            carry._replace(running=None),
        )
        return kept._replace(running=running), (jax.tree.map(jnp.mean, terms), running)

    def _gradients(self, images, constants, index):
        """Of the objective with respect to images; the objective of each; the terms."""
        rows = (images, constants.labels)
        shared = (
            constants._replace(labels=None, rows=None, columns=None),
            index,
        )
        if self.mesh is None:
            (gradients, losses), terms = self._local(rows, shared)
            return gradients, losses, terms
        run = parallel.on_shares(self._local, self.mesh, self.transform)
        (gradients, losses), terms = run(rows, shared)
        return gradients, losses, terms

    def _local(self, rows, shared):
        """On one device: its share of every batch."""
        (images, labels), (constants, index) = rows, shared
        one = functools.partial(self._batch, constants, index)
        if len(images) == 1:
            # A mapped axis of one would be a program of its own for nothing.
            found = one(images[0], labels[0], constants.keys[0])
            gradients, losses, terms = jax.tree.map(lambda x: x[None], found)
        else:
            gradients, losses, terms = jax.vmap(one)(images, labels, constants.keys)
        return (gradients, losses), terms

    def _batch(self, constants, index, images, labels, key):
        axis = None if self.mesh is None else parallel.axis_of(self.mesh)
        shares = 1 if self.mesh is None else self.mesh.size
        # The same draws on every device, which hold parts of one batch.
        vertical, horizontal, mirror = jax.random.split(
            jax.random.fold_in(key, index), 3
        )
        shift = jnp.stack(
            [
                jax.random.randint(k, (), -n, n + 1)
                for k, n in zip((vertical, horizontal), self.jitter, strict=True)
            ]
        )

        def objective(images):
            seen = images
            if any(self.jitter):
                seen = jnp.roll(seen, shift, axis=(1, 2))
            if self.flip:
                mirrored = seen[:, :, ::-1]
                seen = jnp.where(jax.random.bernoulli(mirror), mirrored, seen)
            parts, _ = raw_terms(
                constants.classifier,
                seen,
                labels,
                moments=constants.moments,
                student=constants.student,
                axis_name=axis if self.sync_statistics else None,
            )
            losses = weighted(parts, self.prior)
            # Devices add up: each brings its share of the mean over the batch.
            return losses.mean() / shares, (losses, parts)

        gradients, (losses, parts) = jax.grad(objective, has_aux=True)(images)
        means = {name: parts[name].mean() for name in (*SINGLE, *SHARED)}
        terms = Terms(total=losses.mean(), **means)
        if axis is not None:
            terms = lax.pmean(terms, axis)
        return gradients, losses, terms


def low_passed(
    images: Float[Array, "batches n h w c"],
    constants: Constants,
    *,
    transpose: bool = False,
) -> Float[Array, "batches n h w c"]:
    """Images at the resolution of the stage, on as many pixels as ever."""
    rows, columns = constants.rows, constants.columns
    if rows is None or columns is None:
        return images
    if transpose:
        rows, columns = rows.T, columns.T
    return jnp.einsum(
        "yh,bnhwc,xw->bnyxc", rows, images, columns, precision=lax.Precision.HIGHEST
    )
