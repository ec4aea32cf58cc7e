"""Optimise images until a classifier takes them for given classes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxunlearn import parallel
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.inversion.groups import Groups
from jaxunlearn.inversion.loop import Loop
from jaxunlearn.inversion.preconditions import bounds_of, check_arguments
from jaxunlearn.inversion.prior import ImagePrior
from jaxunlearn.inversion.schedule import Schedule, learning_rates, stages
from jaxunlearn.inversion.snapshots import Snapshots
from jaxunlearn.inversion.step import ADAM, Step


def invert(
    classifier: Classifier,
    labels: ArrayLike | Sequence[int],
    *,
    image_shape: tuple[int, ...],
    key: Array,
    prior: ImagePrior = ImagePrior(),  # noqa: B008  (frozen)
    steps: int = 2000,
    optimizer: optax.GradientTransformation | None = None,
    learning_rate: float = 0.1,
    schedule: Schedule = "cosine",
    coarse: Sequence[int] = (),
    jitter: int = 2,
    flip: bool = False,
    bounds: tuple[float, float] | None = None,
    moments: PyTree = None,
    student: Classifier | None = None,
    start: Float[Array | np.ndarray, "n h w c"] | None = None,
    keep_best: bool = False,
    batch_size: int = 256,
    batches_at_once: int = 1,
    mesh: Mesh | None = None,
    transform: parallel.Transform = "shard_map",
    sync_statistics: bool = True,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    callback: Callable[[int, float], Any] | None = None,
    log: Callable[[dict[str, Any]], Any] | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """Find images that the classifier takes for these labels.

    Minimises over a batch of images `x` at once, in inference mode,

        CE(f(x), y) + sum_i w_i R_i(x)

    with the terms `R_i` and weights `w_i` of `ImagePrior`. What meets a BatchNorm
    layer's running mean in a subtraction is read off the program as that layer's input;
    without BatchNorm there is no such term, and second moments of any layers' inputs
    (`moments`) can take its place.

    The optimisation runs in compiled chunks of steps with the host in between; labels,
    number of steps, learning rate and schedule are not part of the program.

    Args:
      classifier: a `Classifier`.
      labels: Int[n], the class of each image.
      image_shape: (h, w, c).
      key: a `jax.random.key`.
      prior: weights of the terms.
      steps: per batch.
      optimizer: over the images of a batch; None is Adam at `learning_rate`. Another
        one brings its own rate, and `learning_rate` and `schedule` have no effect.
      learning_rate: in units of the bounds' width (of 2 without bounds).
      schedule: "cosine" falls to 0 at the end, "multi-step" to a tenth after one half
        and to a hundredth after three quarters of the steps, "constant" not at all; or
        a function from the step to a factor.
      coarse: factors, such as (4, 2), by which images are coarser in earlier stages;
        all stages take equally many steps, the last is at full resolution.
      jitter: rolls each batch by up to so many pixels at every step, capped at
        `side // 16` (at 8 x 8 two pixels ruin the images).
      flip: mirrors the batch left to right at every other step, at random.
      bounds: box for every pixel. None: (0, 1) with a `Preprocess`, else unbounded.
      moments: like params: what `second_moments` returned, None for layers that are to
        be left alone. Images are drawn towards them. A layer costs a product of `rows
        d^2` and `d^2` floats at every step: leave out those of large fan-in.
      student: another classifier of the same pixels and classes. Images are drawn to
        where it disagrees.
      start: images to begin from, in pixel space. None: uniform noise in the box, or
        standard normal noise where there is none.
      keep_best: return of each image not the last, but the one with the smallest
        objective among those from which the last stage's steps began.
      batch_size: images optimised together, over whose statistics `feature` and
        `moment` are taken, at most (on several devices rounded up to a multiple of
        them). All batches are of one size; the last one is filled up with further
        images, which are dropped.
      batches_at_once: batches that run side by side in one program, by `vmap`.
      mesh: a one-axis mesh over whose devices each batch is cut. None: on a GPU or TPU
        all of this process's, on a CPU one. Batches are filled up to a multiple of the
        devices, so that another number of them may give other images. Under several
        processes all arguments are the same in each, and `checkpoint_dir` is None.
      transform: what runs the program on each of several devices, "shard_map" or
        "pmap".
      sync_statistics: whether statistics are reduced over devices, so that they are
        those of the whole batch; else each device's share is a batch of its own.
      checkpoint_dir: for snapshots to go on from.
      checkpoint_every: steps between two of them, at least; by default a minute.
      resume: go on from the newest snapshot in `checkpoint_dir`, to the same images,
        given the same versions and devices to the last bit (on a GPU as far as XLA
        chooses the same kernels); start anew with none there.
      callback: `(step, loss)` after each chunk of steps, counted over all batches.
      log: takes a dictionary for every step: step, steps (in all) and the terms.

    Returns:
      Float32 images in pixel space (with a `Preprocess`: [0, 1]).

    Raises:
      ValueError: labels out of range or none, images that the network cannot take,
        bounds upside down, counts below one, a weight with nothing to compare
        with, snapshots under several processes.
      InversionError: a `FloatingPointError` with the last finite images: the objective
        is not finite.

    Source: CovarNav (arXiv 2311.12999), Algorithm 1, step 1; DeepInversion (arXiv
    1912.08795).

    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    >>> classifier = ju.freeze(model, variables)
    >>> labels, key = [0, 1, 2], jax.random.key(1)
    >>> images = invert(classifier, labels, image_shape=(4, 4, 1), key=key, steps=50)
    >>> classifier(images).argmax(axis=1).tolist()
    [0, 1, 2]
    """
    parallel.check_transform(transform, mesh)
    if checkpoint_dir is not None and mesh is not None and mesh.is_multi_process:
        msg = (
            "checkpoint_dir is for one process, and mesh holds devices of several: "
            "invert without snapshots there."
        )
        raise ValueError(msg)
    low, high = bounds_of(classifier, bounds)
    labels, prior = check_arguments(
        classifier,
        labels,
        image_shape,
        key=key,
        prior=prior,
        moments=moments,
        student=student,
        start=start,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        batches_at_once=batches_at_once,
        jitter=jitter,
    )
    coarse = tuple(coarse)
    stages(steps, coarse)
    mesh = parallel.mesh_for_rows(mesh)
    width = float(high - low) if np.isfinite(high - low) else 2.0
    rates = -width * learning_rates(learning_rate, schedule, steps)
    step = Step(
        ADAM if optimizer is None else optimizer,
        prior,
        tuple(min(jitter, side // 16) for side in image_shape[:2]),
        flip,
        mesh,
        transform,
        sync_statistics,
    )
    loop = Loop(
        step=step,
        rates=rates if optimizer is None else np.ones(steps),
        coarse=coarse,
        groups=Groups.of(len(labels), batch_size, batches_at_once, mesh),
        labels=labels,
        image_shape=tuple(image_shape),
        key=key,
        low=low,
        high=high,
        start=start,
        keep_best=keep_best,
        given=parallel.place_whole((classifier, student, moments), mesh),
        callback=callback,
        log=log,
    )
    machine = parallel.machine(mesh)
    return loop.run(
        Snapshots(checkpoint_dir, checkpoint_every, resume, loop.identity, machine)
    )
