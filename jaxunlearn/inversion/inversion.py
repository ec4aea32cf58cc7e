"""Optimise images until a classifier takes them for given classes."""

import dataclasses
from collections.abc import Callable, MutableSequence, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import parallel
from jaxunlearn.checks import as_array, check_functions, check_type
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.loop import run_steps
from jaxunlearn.inversion.arguments import (
    bounds_of,
    check_image_optimizer,
    checked_arguments,
)
from jaxunlearn.inversion.objective import TERMS, ImagePrior, References
from jaxunlearn.inversion.step import ADAM, Carry, Constants, ImageAdam, Step
from jaxunlearn.progress import Progress, Report, reporting


class InversionError(FloatingPointError):
    """The objective, or an image, became infinite or not a number.

    Attributes:
      images: the last finite ones in pixel space, of finished batches and of the one
        that was being worked on.
      labels: the class of each.
      step: the first step that was not finite, counted over all batches.
    """

    def __init__(self, message: str, images: np.ndarray, labels: np.ndarray, step: int):
        super().__init__(message)
        self.images, self.labels, self.step = images, labels, step


def invert(
    classifier: Classifier,
    labels: ArrayLike | Sequence[int],
    *,
    image_shape: tuple[int, ...],
    key: Array,
    prior: ImagePrior = ImagePrior(),  # noqa: B008  (frozen)
    steps: int = 2000,
    optimizer: optax.GradientTransformation | ImageAdam | None = None,
    jitter: int = 2,
    bounds: tuple[float, float] | None = None,
    moments: PyTree = None,
    student: Classifier | None = None,
    start: Float[Array | np.ndarray, "n h w c"] | None = None,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    transform: parallel.Transform = "shard_map",
    finished: MutableSequence[Any] | None = None,
    progress: Progress = None,
    callback: Callable[[int, dict[str, float]], Any] | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """Find images that the classifier takes for these labels.

    Minimises over a batch of images `x` at once, in inference mode,

        CE(f(x), y) + sum_i w_i R_i(x)

    with the terms `R_i` and weights `w_i` of `ImagePrior`. What meets a BatchNorm
    layer's running mean in a subtraction is read off the program as that layer's input;
    without BatchNorm there is no such term, and second moments of any layers' inputs
    (`moments`) can take its place.

    The optimisation runs in compiled chunks of steps with the host in between; labels,
    number of steps, and rate and schedule of `ImageAdam` are not part of the program.

    Args:
      classifier: a `Classifier`.
      labels: Int[n], the class of each image.
      image_shape: (h, w, c).
      key: a `jax.random.key`.
      prior: weights of the terms.
      steps: per batch.
      optimizer: over the images of a batch. None is `ImageAdam()`: a rate of a tenth of
        the bounds' width, which falls to 0 along a cosine. An optax transformation
        brings its own rate.
      jitter: rolls each batch by up to so many pixels at every step, capped at
        `side // 16` (at 8 x 8 two pixels ruin the images).
      bounds: box for every pixel, infinite where it has no side. None: (0, 1) with a
        `Preprocess`, beyond which there are no pixels, else unbounded.
      moments: like params: what `second_moments` returned, None for layers that are to
        be left alone. Images are drawn towards them. A layer costs a product of `rows
        d^2` and `d^2` floats at every step: leave out those of large fan-in.
      student: another classifier of the same pixels and classes. Images are drawn to
        where it disagrees.
      start: images to begin from, in pixel space, one for each label; real ones, of
        whatever class, make better proxies at a small rate (`augmented_images` makes
        many out of few). None: uniform noise in the box, or standard normal noise where
        there is none.
      batch_size: images optimised together, over whose statistics `feature` and
        `moment` are taken, at most (on several devices rounded up to a multiple of
        them). All batches are of one size; the last one is filled up with further
        images, which are dropped.
      mesh: a one-axis mesh over whose devices each batch is cut. None: on a GPU or TPU
        all of this process's, on a CPU one. Batches are filled up to a multiple of the
        devices, so that another number of them may give other images. Under several
        processes all arguments are the same in each.
      transform: what runs the program on each of several devices, "shard_map" or
        "pmap".
      finished: images of the first batches, each as it was appended here by an earlier
        call with the same arguments. These are not made again, and each further batch
        is appended: whoever keeps them can go on after an interruption.
      progress: a `Progress`, told of the stage "inversion" in steps of all batches.
      callback: `(step, terms)`, called for every step in order, some steps late; steps
        are counted over all batches. `terms` are those of `inversion_terms`.

    Returns:
      Float32 images in pixel space (with a `Preprocess`: [0, 1]).

    Raises:
      TypeError: an argument is of the wrong type; the call is inside a transformation
        such as `jit`.
      ValueError: labels out of range or none, images that the network cannot take,
        bounds upside down or beyond the pixels, counts out of range, a weight with
        nothing to compare with.
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
    check_functions(callback=callback)
    check_type("finished", finished, MutableSequence, optional=True)
    parallel.check_transform(transform, mesh)
    low, high = bounds_of(classifier, bounds)
    start = None if start is None else as_array("start", start)
    references = References(moments, student)
    labels, prior = checked_arguments(
        classifier,
        labels,
        image_shape,
        key=key,
        prior=prior,
        references=references,
        start=start,
        jitter=jitter,
        steps=steps,
        batch_size=batch_size,
    )
    if optimizer is None:
        optimizer = ImageAdam()
    if isinstance(optimizer, ImageAdam):
        width = float(high - low) if np.isfinite(high - low) else 2.0
        optimizer, rates = ADAM, -width * optimizer.rates(steps)
    else:
        check_image_optimizer(optimizer, image_shape)
        rates = np.ones(steps)
    mesh = parallel.mesh_for_rows(mesh)
    rolls = tuple(min(jitter, side // 16) for side in image_shape[:2])
    inversion = _Inversion(
        step=Step(optimizer, prior, rolls, mesh, transform),
        rates=rates,
        rows=batch_rows(len(labels), batch_size, mesh),
        labels=labels,
        image_shape=tuple(image_shape),
        key=key,
        bounds=(low, high),
        start=start,
        compared=parallel.place_whole((classifier, references), mesh),
        callback=callback,
    )
    with reporting(progress) as report:
        return inversion.run([] if finished is None else finished, report)


def batch_rows(
    count: int, batch_size: int, mesh: Mesh | None = None
) -> Int[np.ndarray, "batches size"]:
    """Which images are optimised together: as many in each batch, at most `batch_size`.

    Devices share a batch evenly; the last one is filled up with the first images.
    """
    size = -(-count // -(-count // batch_size))
    if mesh is not None:
        size = -(-size // mesh.size) * mesh.size
    batches = -(-count // size)
    return (np.arange(batches * size) % count).reshape(batches, size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inversion:
    """Checked arguments, in the form in which the steps take them."""

    step: Step
    rates: Float[np.ndarray, " steps"]
    rows: Int[np.ndarray, "batches size"]
    labels: Int[np.ndarray, " n"]
    image_shape: tuple[int, ...]
    key: Array
    bounds: tuple[np.float32, np.float32]
    start: Any
    compared: tuple[Classifier, References]
    callback: Callable[[int, dict[str, float]], Any] | None

    def run(
        self, finished: MutableSequence[Any], report: Report
    ) -> Float[np.ndarray, "n h w c"]:
        """All batches that are not among the finished ones, one after the other."""
        shape = self.rows.shape[1], *self.image_shape
        if any(np.shape(images) != shape for images in finished):
            msg = (
                f"finished must hold batches of shape {shape}; they are "
                f"{list(map(np.shape, finished))}. They are those of another "
                "inversion, or of another number of devices."
            )
            raise ValueError(msg)
        for number in range(len(finished), len(self.rows)):
            finished.append(self._run_batch(number, finished, report))
        return np.concatenate(list(finished))[: len(self.labels)]

    def _run_batch(self, number, finished, report):
        steps, count = len(self.rates), len(self.rows)
        rates = self.rates.astype(np.float32)

        def on_chunk(stop, carry, outputs):
            terms, running = outputs
            done = number * steps + stop
            first = done - len(running)
            if not running.all():
                images = [*finished, parallel.fetch(carry.images, self.step.mesh)]
                raise self._failure(terms, int(running.argmin()), first, images)
            report("inversion", done, count * steps)
            if self.callback is not None:
                for index in range(len(running)):
                    self.callback(first + index, _at(terms, index))

        carry, _ = run_steps(
            self.step,
            self._begin(number),
            self._constants(number),
            steps=steps,
            # In a loop, what lies behind the last step is not used.
            feed=lambda first, stop: rates[np.arange(first, stop).clip(max=steps - 1)],
            on_chunk=on_chunk,
        )
        return parallel.fetch(carry.images, self.step.mesh)

    def _begin(self, number) -> Carry:
        rows, mesh, (low, high) = self.rows[number], self.step.mesh, self.bounds
        key, shape = self._key(number, 0), (len(rows), *self.image_shape)
        if self.start is not None:
            images = jnp.asarray(self.start, jnp.float32)[rows]
        elif np.isfinite(high - low):
            images = low + jax.random.uniform(key, shape, jnp.float32) * (high - low)
        else:
            images = jax.random.normal(key, shape, jnp.float32)
        # Noise too: half a box has a normal start, and a box its rounding.
        images = jnp.clip(images, low, high)
        carry = Carry(images, self.step.optimizer.init(images), jnp.array(True))

        def put(leaf):
            cut = jnp.shape(leaf)[:1] == (len(rows),)
            place = parallel.place_cut if cut else parallel.place_whole
            return place(leaf, mesh)

        return jax.tree.map(put, carry)

    def _constants(self, number) -> Constants:
        mesh = self.step.mesh
        labels = parallel.place_cut(self.labels[self.rows[number]], mesh)
        numbers = parallel.place_whole((self._key(number, 1), *self.bounds), mesh)
        constants = Constants(*self.compared, labels, *numbers)
        # Once: what is on the host would travel again with every step.
        return jax.device_put(constants) if mesh is None else constants

    def _key(self, number, use):
        """Of a batch's start (0), and of its steps (1)."""
        return jax.random.fold_in(self.key, 2 * number + use)

    def _failure(self, terms, place, first, images) -> InversionError:
        """Why the step at a place of the chunk that begins at `first` went wrong."""
        values, step = _at(terms, place), first + place
        weights = self.step.prior.weights
        bad = [n for n, x in values.items() if weights.get(n) and not np.isfinite(x)]
        message = f"The inversion's objective is not finite at step {step}: {values}"
        if np.isfinite(values["total"]):
            message = f"The inversion's images are not finite after step {step}"
        elif bad:
            message += f", because of {' and '.join(bad)}"
        message += (
            ". Try a smaller learning rate, or bounds. The last finite images are in "
            "this error's attribute `images`."
        )
        images = np.concatenate(images)[: len(self.labels)]
        return InversionError(message, images, self.labels[: len(images)], step)


def _at(terms, index) -> dict[str, float]:
    # In the order of the table, which a compiled program does not keep.
    names = [name for name in ("total", *TERMS) if name in terms]
    return {name: float(terms[name][index]) for name in names}
