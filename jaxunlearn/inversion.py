"""Images of given classes, drawn out of a classifier by optimising over its inputs."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import parallel
from jaxunlearn.checks import check_count, check_key
from jaxunlearn.classifier import Classifier
from jaxunlearn.preconditions import check_program
from jaxunlearn.program import Capture, capture
from jaxunlearn.steps import run_steps


@dataclasses.dataclass(frozen=True)
class ImagePrior:
    """Weights of what is added to the cross-entropy (whose weight is 1).

    Attributes:
      total_variation: of `mean|dx| + mean|dy|` over neighbouring pixels.
      l2: of the mean over pixels of the norm over channels.
      feature: of `sum_l |mean_l - running mean_l| + |var_l - running var_l|`, Euclidean
        norms over BatchNorm layers `l`, mean and (biased) variance of the layer's input
        over the batch.

    Source: DeepInversion (arXiv 1912.08795) for the terms; the weights are Brainwash's
    (arXiv 2311.11995), which shares authors with CovarNav.
    """

    total_variation: float = 1e-3
    l2: float = 1e-1
    feature: float = 1e-1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (np.isfinite(value) and value >= 0):
                msg = f"ImagePrior.{field.name} must be finite and not negative; it is {value}."  # noqa: E501
                raise ValueError(msg)


class Terms(NamedTuple):
    """The unweighted terms of the objective, and its weighted total."""

    total: Array
    cross_entropy: Array
    total_variation: Array
    l2: Array
    feature: Array


def invert(
    classifier: Classifier,
    labels: ArrayLike | Sequence[int],
    *,
    image_shape: tuple[int, ...],
    key: Array,
    prior: ImagePrior = ImagePrior(),  # noqa: B008  (frozen)
    steps: int = 2000,
    optimizer: optax.GradientTransformation | None = None,
    jitter: int = 2,
    flip: bool = False,
    bounds: tuple[float, float] | None = None,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """Find images that the classifier takes for these labels.

    Minimises `CE(f(x), y) + a R_tv(x) + b R_l2(x) + c R_feature(x)` over a batch of
    images at once, in inference mode. What meets a BatchNorm layer's running mean in a
    subtraction is read off the program as that layer's input; a network without
    BatchNorm has no feature term.

    Args:
      classifier: a `Classifier`.
      labels: Int[n], the class of each image.
      image_shape: (h, w, c).
      key: a `jax.random.key`.
      prior: weights of the terms.
      steps: per batch.
      optimizer: over images; None is Adam at 0.05 of the bounds' width, decayed to zero
        by a cosine.
      jitter: rolls each batch by up to so many pixels at every step, capped at
        `side // 16` (at 8 x 8 two pixels ruin the images).
      flip: mirrors the batch left to right at every other step, at random.
      bounds: box for every pixel. None: (0, 1) with a `Preprocess`, else unbounded.
      batch_size: images optimised together, over whose statistics the feature term is
        taken. The last batch is filled up with further images, which are dropped.
      mesh: a one-axis mesh over whose devices a batch is cut.
      callback: `(step, loss)` after each chunk of steps, counted over all batches.

    Returns:
      Float32 images in pixel space (with a `Preprocess`: [0, 1]).

    Raises:
      ValueError: labels out of range or none, bounds upside down, counts below one.
      FloatingPointError: the objective is not finite.

    Source: CovarNav (arXiv 2311.12999), Algorithm 1, step 1.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    >>> classifier = ju.freeze(model, variables)
    >>> labels, key = [0, 1, 2], jax.random.key(1)
    >>> images = invert(classifier, labels, image_shape=(4, 4, 1), key=key, steps=50)
    >>> classifier(images).argmax(axis=1).tolist()
    [0, 1, 2]
    """
    check_key(key)
    low, high = _bounds(classifier, bounds)
    _check(classifier, labels, image_shape, steps, batch_size, jitter)
    labels = np.asarray(labels, np.int32)
    batches = -(-len(labels) // batch_size)
    size = -(-len(labels) // batches)
    if mesh is not None:
        mesh = parallel.automatic(mesh)
        size = -(-size // mesh.size) * mesh.size
        batches = -(-len(labels) // size)
    bounded = bool(np.isfinite(high - low))
    width = float(high - low) if bounded else 2.0
    step = _Step(
        optimizer or _adam(0.05 * width, steps),
        prior,
        tuple(min(jitter, side // 16) for side in image_shape[:2]),
        flip,
    )
    found = []
    for number in range(batches):
        wanted = np.resize(labels[number * size :], size)
        start_key = jax.random.fold_in(key, 2 * number)
        images = _start(start_key, (size, *image_shape), bounded, low, high)
        images, wanted = parallel.place_rows((images, wanted), mesh)
        carry = images, step.optimizer.init(images)
        constants = parallel.place_whole(
            (classifier, jax.random.fold_in(key, 2 * number + 1), low, high), mesh
        )

        def on_chunk(stop, carry, terms, done=number * steps):
            _check_terms(terms, stop)
            if callback is not None:
                callback(done + stop, float(terms.total[-1]))

        (images, _), _ = run_steps(
            step, carry, (*constants, wanted), steps=steps, on_chunk=on_chunk
        )
        found.append(np.asarray(images)[: len(labels) - number * size])
    return np.concatenate(found)


def inversion_terms(
    classifier: Classifier,
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    prior: ImagePrior = ImagePrior(),  # noqa: B008  (frozen)
) -> Terms:
    """The objective of `invert` for images in pixel space.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> class Flat(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(3)(x.reshape(x.shape[0], -1))
    >>> images = jnp.ones((2, 4, 4, 1))
    >>> classifier = ju.freeze(Flat(), Flat().init(jax.random.key(0), images))
    >>> float(inversion_terms(classifier, images, jnp.array([0, 1])).l2)
    1.0
    """
    captured = capture(classifier, classifier.prepare(images))
    logits = _at_least_float32(captured.logits)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    variation = sum(jnp.abs(jnp.diff(images, axis=axis)).mean() for axis in (1, 2))
    norms = jnp.sqrt(jnp.square(images).sum(-1) + 1e-12).mean()
    feature = feature_distance(classifier.state, captured)
    cross_entropy = cross_entropy.mean()
    total = (
        cross_entropy
        + prior.total_variation * variation
        + prior.l2 * norms
        + prior.feature * feature
    )
    return Terms(total, cross_entropy, variation, norms, feature)


def feature_distance(state: PyTree, captured: Capture) -> Float[Array, ""]:
    """`sum_l |mean_l - running mean_l| + |var_l - running var_l|` over BatchNorms.

    Batch statistics are those of the layers' inputs; zero without BatchNorm.
    """
    leaves = jax.tree.leaves(state)
    distance = jnp.zeros(())
    for key, layer in captured.normalisations.items():
        inputs = _at_least_float32(captured.operands[key][0])
        # Axes of the statistics: slices of a scan, then those of the layer itself.
        slices = [i + 1 for i, kind in enumerate(layer.scans) if kind == "groups"]
        kept = (*slices, *(a + 1 + len(layer.scans) for a in layer.axes))
        over = tuple(a for a in range(inputs.ndim) if a not in kept)
        for batch, index in (
            (inputs.mean(over), layer.mean),
            (inputs.var(over), layer.variance),
        ):
            running = _at_least_float32(leaves[index])
            gap = (batch.reshape(running.shape) - running) ** 2
            norms = gap.reshape(*gap.shape[: len(slices)], -1).sum(-1)
            distance += jnp.sqrt(norms + 1e-12).sum()
    return distance


def _at_least_float32(array):
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step of the optimisation; equal steps share a compiled program."""

    optimizer: optax.GradientTransformation
    prior: ImagePrior
    jitter: tuple[int, int]
    flip: bool

    def __call__(self, carry, constants, index):
        images, state = carry
        classifier, key, low, high, labels = constants
        rows, columns, mirror = jax.random.split(jax.random.fold_in(key, index), 3)
        shift = [
            jax.random.randint(k, (), -n, n + 1)
            for k, n in zip((rows, columns), self.jitter, strict=True)
        ]

        def objective(images):
            seen = images
            if any(self.jitter):
                seen = jnp.roll(seen, shift, axis=(1, 2))
            if self.flip:
                mirrored = seen[:, :, ::-1]
                seen = jnp.where(jax.random.bernoulli(mirror), mirrored, seen)
            terms = inversion_terms(classifier, seen, labels, self.prior)
            return terms.total, terms

        grads, terms = jax.grad(objective, has_aux=True)(images)
        updates, state = self.optimizer.update(grads, state, images)
        images = jnp.clip(optax.apply_updates(images, updates), low, high)
        return (images, state), terms


@functools.lru_cache(maxsize=64)
def _adam(rate: float, steps: int) -> optax.GradientTransformation:
    """The default optimizer, one object per setting so that programs are shared."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _start(key, shape, bounded, low, high):
    """Uniform in the box; standard normal where there is none."""
    if bounded:
        return low + jax.random.uniform(key, shape, jnp.float32) * (high - low)
    return jax.random.normal(key, shape, jnp.float32)


def _bounds(classifier, bounds) -> tuple[np.float32, np.float32]:
    if bounds is None:
        whole = (0.0, 1.0) if classifier.preprocess is not None else (-np.inf, np.inf)
        bounds = whole
    low, high = bounds
    if not low < high:
        msg = f"bounds must be (low, high) with low < high; they are {bounds}."
        raise ValueError(msg)
    return np.float32(low), np.float32(high)


def _check(classifier, labels, image_shape, steps, batch_size, jitter) -> None:
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    if jitter < 0:
        msg = f"jitter must be 0 or more pixels; it is {jitter}."
        raise ValueError(msg)
    if len(image_shape) != 3:
        msg = f"image_shape must be (h, w, c); it is {image_shape}."
        raise ValueError(msg)
    sample = np.full((1, *image_shape), 0.5, np.float32)
    logits = jax.eval_shape(classifier, sample)
    values = np.asarray(labels)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iu":
        msg = f"labels must be one integer an image; they are {values.dtype} of shape {values.shape}."  # noqa: E501
        raise ValueError(msg)
    if values.min() < 0 or values.max() >= logits.shape[1]:
        msg = f"labels must lie in 0..{logits.shape[1] - 1}; they range from {values.min()} to {values.max()}."  # noqa: E501
        raise ValueError(msg)
    check_program(classifier, sample)


def _check_terms(terms: Terms, stop: int) -> None:
    if not np.isfinite(terms.total).all():
        place = int(np.argmin(np.isfinite(terms.total)))
        first = stop - len(terms.total) + place
        values = {name: float(value[place]) for name, value in terms._asdict().items()}
        msg = (
            f"The inversion's objective is not finite at step {first}: {values}. Try a "
            "smaller learning rate, or bounds."
        )
        raise FloatingPointError(msg)
