"""Descend on a forget set's new targets: the loop under every unlearning method."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.layout import path_name
from jaxunlearn.checks import check_count, check_key, check_optimizer, check_targets
from jaxunlearn.classifier.classifier import Classifier, check_images
from jaxunlearn.classifier.independence import check_finite
from jaxunlearn.descent.cpu_convolution import in_pieces
from jaxunlearn.descent.loop import CHUNK, minibatches, run_steps
from jaxunlearn.descent.losses import (
    Augment,
    Loss,
    cross_entropy,
    trace_augment,
    trace_loss,
)
from jaxunlearn.descent.optimizers import Update, prepare
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.traced import Opaque, Program

_BATCH_SIZE = 256
_CHUNK_BYTES = 2**28


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """What happened during a run. Methods fill in what they know.

    Attributes:
      losses: mean loss of each step's minibatch, before its update.
      ranks: by the leaf's path, the rank of the protected subspace of each group.
      surviving_gradient: by path, the share of the forget gradient's squared norm that
        the projection leaves.
      proxies: images that stood in for the retained data, as `Data`, or None.
      seconds: wall time by stage: "compile", "statistics", "inversion", "steps".
      samples_read: how many samples of "forget" and "retain" were read, repeats
        included.
    """

    losses: Float[np.ndarray, " steps"] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.float32)
    )
    ranks: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    surviving_gradient: Mapping[str, float] = dataclasses.field(default_factory=dict)
    proxies: Any = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    samples_read: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """An unlearned classifier and how it came about."""

    classifier: Classifier
    trace: Trace = dataclasses.field(default_factory=Trace)


def unlearn(
    classifier: Classifier,
    images: Array | np.ndarray,
    targets: Array | np.ndarray,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    key: Array,
    batch_size: int | None = None,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    callback: Callable[[int, float], Any] | None = None,
    mesh: Mesh | None = None,
    transform: parallel.Transform = "shard_map",
) -> Result:
    """Minimise the mean loss on `images` by `steps` updates of the parameters.

        params <- params + update(grad mean_i loss(logits(x_i; params), t_i))

    The network stays in inference mode: gradients go through its logits as they are in
    use, and its state does not change. Every epoch is a permutation of the images drawn
    from `key` (see `minibatches`). Each step is one compiled program; requests share it
    where the network, the shapes and what optimizer, loss and augment compute are the
    same, whatever is in the optimizer's state. A number written into an optimizer is
    part of what it computes: for a sweep over learning rates
    `optax.inject_hyperparams` keeps it in the state.

    Args:
      classifier: is not modified.
      images: `[n, h, w, c]`, usually the forget set. Placed on the device as they are.
      targets: Int[n] labels or Float[n k] probabilities.
      optimizer: any optax transformation. A projection comes last in its chain. Those
        that take them get `value`, `grad` and `value_fn`.
      steps: how many updates, at least 1.
      key: a `jax.random.key`, for the order of the images and for `augment`.
      batch_size: images in every minibatch; at most n. None means all images up to 256.
      loss: `(logits, targets) -> Float[n]`.
      augment: `(key, images) -> images`, applied to every minibatch in pixel space:
        where there is a `Preprocess` it takes and returns floats in [0, 1].
      callback: `(step, loss)`, called for every step in order, some steps late. What
        it raises ends the run.
      mesh: a one-axis mesh whose devices share each minibatch, evenly or not. None: on
        a GPU or TPU all of this process's devices, on a CPU one. Where there are
        several, images stay on the host and each device is sent its share. Under
        several processes all arguments are the same in each.
      transform: what runs the network on each of several devices, "shard_map" or
        "pmap".

    Returns:
      The classifier with new parameters, and a trace with losses, seconds (compile,
      steps) and samples read.

    Raises:
      TypeError: an argument is of the wrong type, among them images without a
        `Preprocess` that are not floats.
      ValueError: sets are empty or of different lengths, pixels not finite, labels not
        classes, rows no probabilities, steps or batch_size less than 1, a mesh of
        several axes, an unknown transform.
      FloatingPointError: the loss, or a parameter at the end, is not finite.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images, labels = jnp.ones((4, 2, 2, 1)), jnp.full(4, 2)
    >>> variables = model.init(jax.random.key(0), images)
    >>> classifier = ju.freeze(model, variables)
    >>> adam, key = optax.adam(0.1), jax.random.key(1)
    >>> result = unlearn(classifier, images, labels, adam, steps=50, key=key)
    >>> result.classifier(images).argmax(axis=1).tolist()
    [2, 2, 2, 2]
    """
    steps = check_count("steps", steps)
    parallel.check_transform(transform, mesh)
    mesh = parallel.mesh_for_rows(mesh)
    check_optimizer(optimizer)
    check_key(key)
    images = _checked_images(images, classifier)
    n = len(images)
    size = _BATCH_SIZE if batch_size is None else check_count("batch_size", batch_size)
    size = min(n, size)
    order_key, augment_key = jax.random.split(key)
    watch = Stopwatch()
    with watch.stage("steps"):
        images = jax.device_put(images) if mesh is None else np.asarray(images)
        batch = jax.ShapeDtypeStruct((size, *images.shape[1:]), _pixel_dtype(images))
        augmented = trace_augment(augment, augment_key, batch)
        logits = _logits.eval_shape(classifier, augmented.shapes)
        check_targets(targets, n, logits.shape[1])
        targets = np.asarray(targets)
        if targets.ndim == 1:
            targets = targets.astype(np.int32)
        if mesh is None:
            targets = jax.device_put(targets)
        wanted = jax.ShapeDtypeStruct((size, *targets.shape[1:]), targets.dtype)
        losses = trace_loss(loss, logits, wanted)
        update, consts, state = prepare(
            optimizer, classifier.params, losses.shapes.dtype
        )
        order = minibatches(order_key, n, size)
        constants = (
            classifier.replace(params=None),
            augment_key,
            (augmented.consts, losses.consts, consts),
        )
        (params, _), history = run_steps(
            UnlearningStep(
                augmented.program, losses.program, update, size, mesh, transform
            ),
            parallel.place_whole((classifier.params, state), mesh),
            parallel.place_whole(constants, mesh),
            steps=steps,
            feed=functools.partial(_feed, (images, targets), order, mesh),
            chunk=_chunk(batch),
            on_chunk=functools.partial(_report, callback),
        )
        params = parallel.from_mesh(params, mesh)
        _check_parameters(params)
    counts = {"forget": steps * size, "retain": 0}
    record = Trace(losses=history, seconds=watch.seconds, samples_read=counts)
    return Result(classifier.replace(params=params), record)


@dataclasses.dataclass(frozen=True)
class UnlearningStep:
    """One update: static, and equal to any other step that computes the same.

    Attributes:
      augment, loss, update: what it does with a minibatch.
      size: images in a minibatch; further rows fill up the devices' shares.
      mesh: the devices that share it, or None.
      transform: what runs the network on each of them.
    """

    augment: Program | Opaque
    loss: Program | Opaque
    update: Update
    size: int
    mesh: Mesh | None = None
    transform: parallel.Transform = "shard_map"

    def __call__(self, carry, constants, index, row):
        """`(params, optimizer state)` after one minibatch, and the loss before it."""
        params, state = carry
        images, targets = (x[: self.size] for x in row)
        classifier, key, (augment_consts, loss_consts, update_consts) = constants
        images = _pixels(images)
        images = self.augment(augment_consts, jax.random.fold_in(key, index), images)

        def mean_loss(logits_of, params):
            logits = logits_of(classifier.replace(params=params), images)
            return jnp.mean(self.loss(loss_consts, logits, targets))

        logits_of = in_pieces(_logits) if self.mesh is None else self._logits
        loss = functools.partial(mean_loss, logits_of)
        value, grads = jax.value_and_grad(loss)(params)
        # Optimizers get the loss as it stands, to differentiate it as they like.
        plain = functools.partial(mean_loss, self._logits)
        given = (grads, state, params, value, plain)
        updates, state = self.update(update_consts, *given)
        carry = (optax.apply_updates(params, updates), state)
        return parallel.keep_whole(carry, self.mesh), value

    def _logits(self, classifier, images):
        """Each device's share by itself: gradients are then added up over them."""
        if self.mesh is None:
            return _logits(classifier, images)
        missing = -self.size % self.mesh.size
        # Copies of a real image: nothing can go wrong in them alone.
        images = jnp.pad(images, [(0, missing)] + [(0, 0)] * 3, mode="edge")
        shares = parallel.on_shares(_share_logits, self.mesh, self.transform)
        return shares(images[None], classifier)[0][0, : self.size]


# Compiled by itself, so that the network is traced once for the checks and the steps.
@jax.jit
def _logits(classifier, images):
    return classifier(images)


def _share_logits(images, classifier):
    return _logits(classifier, images[0])[None], None


def _feed(arrays, order, mesh, first, stop):
    """The minibatches of these steps, on the device or cut over several."""
    rows = order(first, stop)
    if mesh is None:
        return _gather(arrays, rows)
    rows = np.pad(rows, [(0, 0), (0, -rows.shape[1] % mesh.size)], mode="edge")
    return parallel.place_gathered(arrays, rows, mesh)


# Apart from the step, whose program would otherwise depend on the number of images.
@jax.jit
def _gather(arrays, rows):
    return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), arrays)


def _chunk(batch) -> int:
    """Steps at a time: so many minibatches lie on the device next to the images."""
    bytes_each = batch.size * batch.dtype.itemsize
    return max(1, min(CHUNK, _CHUNK_BYTES // bytes_each))


def _pixel_dtype(images):
    return jnp.float32 if images.dtype == jnp.uint8 else images.dtype


def _pixels(images):
    """Floats, of which bytes are 255ths: what every augmentation works on."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def _report(callback, stop, carry, losses):
    del carry
    finite = np.isfinite(losses)
    first = stop - len(losses)
    good = len(losses) if finite.all() else int(finite.argmin())
    if callback is not None:
        for step, value in enumerate(losses[:good].tolist(), start=first):
            callback(step, value)
    if good < len(losses):
        msg = (
            f"The loss is {losses[good]} at step {first + good}, the first where it is "
            "not finite. Lower the learning rate, or put "
            "optax.clip_by_global_norm(1.0) first in the chain. The classifier that "
            "was passed in is unchanged."
        )
        raise FloatingPointError(msg)


@jax.jit
def _finite(params):
    return jax.tree.map(lambda p: jnp.isfinite(p).all(), params)


def _check_parameters(params: PyTree) -> None:
    """The last update has no loss after it that would tell."""
    for path, finite in jax.tree_util.tree_leaves_with_path(_finite(params)):
        if not finite:
            msg = (
                f"After the last step {path_name(path)} holds NaN or infinite values, "
                "though the loss was finite before it. Lower the learning rate."
            )
            raise FloatingPointError(msg)


def _checked_images(images, classifier) -> Array | np.ndarray:
    images = images if isinstance(images, Array) else np.asarray(images)
    check_images(images, classifier.preprocess)
    if len(images) == 0:
        msg = "images are empty: there is nothing to unlearn. Pass at least one image."
        raise ValueError(msg)
    check_finite(images)
    return images
