"""Descend on a forget set's new targets: the loop under every unlearning method."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxunlearn import parallel
from jaxunlearn.checks import (
    check_count,
    check_eager,
    check_finite,
    check_functions,
    check_key,
    check_targets,
    check_type,
)
from jaxunlearn.classifier.classifier import (
    Classifier,
    check_classifier,
    check_images,
)
from jaxunlearn.classifier.independence import check_independence
from jaxunlearn.descent.budget import Budget, BudgetedStep
from jaxunlearn.descent.leaks import FirstUpdate
from jaxunlearn.descent.loop import (
    chunk_length,
    gather_minibatches,
    minibatches,
    run_steps,
)
from jaxunlearn.descent.losses import Augment, Loss, cross_entropy
from jaxunlearn.descent.optimizers import as_transformation
from jaxunlearn.descent.step import begin, check_losses, check_parameters, logits_shape
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.progress import Progress, reporting

_BATCH_SIZE = 256
_ADVICE = (
    "Lower the learning rate, or put optax.clip_by_global_norm(1.0) first in the "
    "chain. The classifier that was passed in is unchanged."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """What happened during a run. Methods fill in what they know.

    Attributes:
      losses: mean loss of each step's minibatch, before its update.
      ranks: by the leaf's path, the rank of the protected subspace of each group.
      surviving_gradient: by path, the share of the forget gradient's squared norm that
        the projection leaves.
      tuned: the value of the field that can be chosen on validation data, by its name.
      trials: what each value of the grid led to there, if there was a grid.
      at_edge: whether it was chosen at an end of all values that were tried.
      caution: what to know before the result is used, in a sentence; usually "".
      proxies: images that stood in for the retained data, as `Data`, or None.
      seconds: wall time by stage: "compile", "labels", "statistics", "inversion",
        "rates" (the grid), "steps".
      samples_read: how many samples of "forget" and "retain" were read, repeats
        included.
      multiply_adds: by stage, of the weights, where the method counts them.
      drift: by path, where there was a drift budget, how much of it was used.
      ended: why steps ended before the last, in a sentence; empty if they did not.
    """

    losses: Float[np.ndarray, " steps"] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.float32)
    )
    ranks: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    surviving_gradient: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tuned: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trials: tuple[Any, ...] = ()
    at_edge: bool = False
    caution: str = ""
    proxies: Any = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    samples_read: Mapping[str, int] = dataclasses.field(default_factory=dict)
    multiply_adds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    drift: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ended: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """An unlearned classifier and how it came about."""

    classifier: Classifier
    trace: Trace = dataclasses.field(default_factory=Trace)


def unlearn(
    classifier: Classifier,
    images: Array | np.ndarray,
    targets: Array | np.ndarray,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    steps: int,
    key: Array,
    batch_size: int | None = None,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    callback: Callable[[int, float], Any] | None = None,
    progress: Progress = None,
    mesh: Mesh | None = None,
    transform: parallel.Transform = "shard_map",
    drift_budget: tuple[PyTree, float] | Any = None,
    check: bool = True,
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
      optimizer: any optax transformation but `contrib.sam`, or `MultiSteps`. A
        projection comes last in its chain. Those that take them get `value`, `grad` and
        `value_fn`.
      steps: how many updates, at least 1.
      key: a `jax.random.key`, for the order of the images and for `augment`.
      batch_size: images in every minibatch; at most n. None means all images up to 256.
      loss: `(logits, targets) -> Float[n]`.
      augment: `(key, images) -> images`, applied to every minibatch in pixel space:
        where there is a `Preprocess` it takes and returns floats in [0, 1].
      callback: `(step, loss)`, called for every step in order, some steps late. What
        it raises ends the run.
      progress: None, "bar", or a function `(stage, done, total)`; the stage is "steps".
      mesh: a one-axis mesh whose devices share each minibatch, evenly or not. None: on
        a GPU or TPU all of this process's devices, on a CPU one. Where there are
        several, images stay on the host and each device is sent its share. Under
        several processes all arguments are the same in each.
      transform: what runs the network on each of several devices, "shard_map" or
        "pmap".
      drift_budget: `(moments, eps)`: steps end before the `drift` of any weight, from
        the parameters as they are given and on the inputs behind its moment, exceeds
        `eps`. The classifier that is returned is within it. Leaves without a moment are
        not covered: where one moves, a `descent.CertificateWarning` says so.
      check: warn, with a `descent.LeakageWarning`, where the first update that is not
        zero lies in the subspace that a `project_to_null_space` in the optimizer
        protects: what comes after it in the chain leaks.

    Returns:
      The classifier with new parameters, and a trace with losses, seconds (compile,
      steps) and samples read; with a budget also the drift of every weight, and why
      steps ended early, if so. A step that was refused has no loss in the trace, and
      its samples count as read.

    Raises:
      TypeError: an argument is of the wrong type, among them images without a
        `Preprocess` that are not floats.
      ValueError: sets are empty or of different lengths, pixels not finite, labels not
        classes, rows no probabilities, steps or batch_size less than 1, a mesh of
        several axes, an unknown transform, a drift budget that is not positive, or
        smaller than its moments resolve.
      FloatingPointError: the loss, or a parameter at the end, is not finite.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images, labels = np.ones((4, 2, 2, 1), np.float32), np.full(4, 2)
    >>> variables = model.init(jax.random.key(0), images)
    >>> classifier = ju.freeze(model, variables)
    >>> adam, key = optax.adam(0.1), jax.random.key(1)
    >>> result = unlearn(classifier, images, labels, adam, steps=50, key=key)
    >>> result.classifier(images).argmax(axis=1).tolist()
    [2, 2, 2, 2]
    """
    check_eager("unlearn", classifier, images, targets)
    check_classifier(classifier)
    check_type("loss", loss, Callable)
    check_functions(augment=augment, callback=callback)
    steps = check_count("steps", steps)
    parallel.check_transform(transform, mesh)
    mesh = parallel.mesh_for_rows(mesh)
    optimizer = as_transformation(optimizer)
    check_key(key)
    images = check_images(images, classifier.preprocess)
    check_finite(images)
    n = len(images)
    if n == 0:
        msg = "images are empty: there is nothing to unlearn. Pass at least one image."
        raise ValueError(msg)
    size = _BATCH_SIZE if batch_size is None else check_count("batch_size", batch_size)
    size = min(n, size)
    budget = None if drift_budget is None else Budget(drift_budget, classifier.params)
    order_key, augment_key = jax.random.split(key)
    watch = Stopwatch()
    with watch.stage("steps"):
        # NumPy's float64 is float32 to JAX, unless x64 is on.
        kind = jnp.result_type(images)
        batch = jax.ShapeDtypeStruct((size, *images.shape[1:]), kind)
        count = logits_shape(classifier, batch).shape[1]
        targets = np.asarray(check_targets(targets, n, count))
        check_independence(classifier, images)
        if targets.ndim == 1:
            targets = targets.astype(np.int32)
        # Several devices are each sent their share of every minibatch.
        put = jax.device_put if mesh is None else np.asarray
        arrays = put(images), put(targets)
        kind = jnp.result_type(targets)
        wanted = jax.ShapeDtypeStruct((size, *targets.shape[1:]), kind)
        step, carry, constants = begin(
            *(classifier, batch, wanted, optimizer),
            key=augment_key,
            loss=loss,
            augment=augment,
            mesh=mesh,
            transform=transform,
        )
        if budget is not None:
            step, carry = BudgetedStep(step), budget.start(carry)
            constants = constants, budget.constants
        carry, constants = (parallel.place_whole(x, mesh) for x in (carry, constants))
        started = carry if budget is None else carry[0]
        first_update = FirstUpdate(*started) if check else None
        order = minibatches(order_key, n, size)
        with reporting(progress) as report:

            def on_chunk(stop, carry, losses):
                first, made = stop - len(losses), stop
                if budget is not None:
                    carry, standing = carry
                    made = int(standing.taken)
                _tell(callback, first, losses[: made - first + 1], made - first)
                if first_update is not None:
                    first_update(carry[0])
                report("steps", stop if made == stop else steps, steps)
                return made < stop

            carry, history = run_steps(
                *(step, carry, constants),
                steps=steps,
                feed=functools.partial(gather_minibatches, arrays, order, mesh),
                chunk=chunk_length(size * images[:1].size * 4),
                first_alone=first_update is not None and not first_update.found,
                on_chunk=on_chunk,
            )
        if budget is not None:
            carry, standing = carry
            standing = parallel.from_mesh(standing, mesh)
        params = parallel.from_mesh(carry[0], mesh)
        check_parameters(params)
        noted, read = {}, steps
        if budget is not None:
            made = int(standing.taken)
            history, read = history[:made], min(made + 1, steps)
            params, drifts = budget.settled(params)
            noted = {"drift": drifts, "ended": budget.why(standing)}
    counts = {"forget": read * size, "retain": 0}
    given = {"losses": history, "seconds": watch.seconds, "samples_read": counts}
    return Result(classifier.replace(params=params), Trace(**given, **noted))


def _tell(callback, first, losses, made):
    """Check the losses from step `first` on, and tell of so many that were made."""
    if callback is not None:
        finite = itertools.takewhile(math.isfinite, losses[:made].tolist())
        for step, value in enumerate(finite, start=first):
            callback(step, value)
    check_losses(losses, first, _ADVICE)
