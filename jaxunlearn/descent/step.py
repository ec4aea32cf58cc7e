"""The one update under every descent: gradient, optimizer, parameters."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.cpu_convolution import in_pieces
from jaxunlearn.descent.losses import Augment, Loss
from jaxunlearn.descent.optimizers import start_optimizer
from jaxunlearn.descent.programs import as_program


def update_params(
    loss: Callable[[PyTree], tuple[Array, Any]],
    params: PyTree,
    optimizer: PyTree,
    update: Callable[..., tuple[PyTree, PyTree]],
    *,
    mesh: Mesh | None = None,
) -> tuple[tuple[PyTree, PyTree], Float[Array, ""], Any]:
    """`params + update(grad loss(params))` and the optimizer's state, loss and aux.

    `update` is `(gradients, state, params, value, value_fn=) -> (updates, state)`. With
    a mesh convolutions stay whole: the compiler does not cut a loop over pieces.
    """
    function = in_pieces(loss) if mesh is None else loss
    (value, aux), gradients = jax.value_and_grad(function, has_aux=True)(params)
    updates, optimizer = update(
        gradients, optimizer, params, value, value_fn=lambda params: loss(params)[0]
    )
    return (optax.apply_updates(params, updates), optimizer), value, aux


@dataclasses.dataclass(frozen=True)
class DescentStep:
    """One update on a minibatch of images and targets, in inference mode.

    Static, and equal to any other step that computes the same.
    """

    augment: Callable[..., Array]
    loss: Callable[..., Array]
    update: Callable[..., tuple[PyTree, PyTree]]
    size: int  # of a minibatch; further rows fill up the devices' shares
    mesh: Mesh | None = None
    transform: parallel.Transform = "shard_map"

    def __call__(self, carry, constants, index, row):
        """`(params, optimizer state)` after one minibatch, and the loss before it.

        A row is images, targets, and weights if not all samples weigh the same.
        """
        params, state = carry
        images, targets, *weights = (x[: self.size] for x in row)
        classifier, key, (augment_consts, loss_consts, update_consts) = constants
        images = to_pixels(images)
        images = self.augment(augment_consts, jax.random.fold_in(key, index), images)

        def loss(params):
            logits = self._logits(classifier.replace(params=params), images)
            losses = self.loss(loss_consts, logits, targets)
            value = jnp.sum(weights[0] * losses) if weights else jnp.mean(losses)
            return value, None

        update = functools.partial(self.update, update_consts)
        carry, value, _ = update_params(loss, params, state, update, mesh=self.mesh)
        return parallel.keep_whole(carry, self.mesh), value

    def _logits(self, classifier, images):
        """Each device's share by itself: gradients are then added up over them."""
        if self.mesh is None:
            return _logits(classifier, images)
        missing = -self.size % self.mesh.size
        # Copies of a real image: nothing can go wrong in them alone.
        images = jnp.pad(images, [(0, missing)] + [(0, 0)] * 3, mode="edge")
        shares = parallel.map_shards(_logits, self.mesh, (None, 0), 0, self.transform)
        return shares(classifier, images)[: self.size]


def begin(
    classifier: Classifier,
    images: jax.ShapeDtypeStruct,
    targets: jax.ShapeDtypeStruct,
    optimizer: optax.GradientTransformation,
    *,
    key: Array,
    loss: Loss,
    augment: Augment | None = None,
    mesh: Mesh | None = None,
    transform: parallel.Transform = "shard_map",
) -> tuple[DescentStep, PyTree, PyTree]:
    """A step for minibatches like these, its first carry, and its constants.

    Refuses an augmentation that does not return images as it is given them, and a loss
    that is not one float for each sample.
    """
    batch, n = jax.eval_shape(to_pixels, images), images.shape[0]
    with _naming("augment", f"images {_in_words(batch)}"):
        augmented = as_program(augment or (lambda _, images: images), key, batch)
    if not _fits(augmented.shapes, (n, None, None, None), batch.dtype):
        msg = (
            "augment must return images as it is given them, "
            f"{_in_words(batch)}; it returned {_in_words(augmented.shapes)}."
        )
        raise ValueError(msg)
    outputs = logits_shape(classifier, images)
    given = f"logits {_in_words(outputs)} and targets {_in_words(targets)}"
    with _naming("loss", given):
        losses = as_program(loss, outputs, targets)
    if not _fits(losses.shapes, (n,), jnp.floating):
        msg = (
            f"loss must return one float for each of the {n} samples of a minibatch, "
            f"not their mean; it returned {_in_words(losses.shapes)}."
        )
        raise ValueError(msg)
    params = classifier.params
    with _naming("optimizer", "the classifier's parameters"):
        update, state = start_optimizer(optimizer, params, losses.shapes.dtype)
    programs = (augmented, losses, update)
    step = DescentStep(*(p.run for p in programs), n, mesh, transform)
    closed_over = tuple(p.consts for p in programs)
    return step, (params, state), (classifier.replace(params=None), key, closed_over)


@contextlib.contextmanager
def _naming(argument: str, given: str) -> Iterator[None]:
    """Say which of the caller's functions fails, before any compute, and on what."""
    try:
        yield
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        reason = f"{type(error).__name__}: {str(error).strip()}"[:600]
        msg = f"{argument} fails on {given}. {reason}"
        raise kind(msg) from error


def _fits(got, shape, dtype) -> bool:
    """Whether it is one array of this shape, None for any side, and dtype."""
    return (
        isinstance(got, jax.ShapeDtypeStruct)
        and len(got.shape) == len(shape)
        and all(n in (None, m) for n, m in zip(shape, got.shape, strict=True))
        and jnp.issubdtype(got.dtype, dtype)
    )


def _in_words(shapes) -> str:
    return str(jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", shapes))


def logits_shape(
    classifier: Classifier, images: jax.ShapeDtypeStruct
) -> jax.ShapeDtypeStruct:
    """Of the logits for such images; the network is traced as the step will find it."""
    return _logits.eval_shape(classifier, jax.eval_shape(to_pixels, images))


# Compiled by itself, so that the network is traced once for the checks and the steps.
@jax.jit
def _logits(classifier, images):
    return classifier(images)


def to_pixels(images: Array) -> Array:
    """Floats, of which bytes are 255ths."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def check_losses(
    losses: Float[np.ndarray, " steps"], first: int, advice: str, *, of: str = ""
) -> None:
    """Refuse losses of the steps from `first` on of which one is not finite.

    `advice` is a sentence, and `of` what they are of, such as "forgetting [3]".
    """
    bad = ~np.isfinite(losses)
    if bad.any():
        place = int(bad.argmax())
        what = f"The loss of {of}" if of else "The loss"
        msg = (
            f"{what} is {losses[place]} at step {first + place}, the first where it is "
            f"not finite. {advice}"
        )
        raise FloatingPointError(msg)


def check_parameters(
    params: PyTree, advice: str = "Lower the learning rate.", *, of: str = ""
) -> None:
    """Refuse parameters that are not finite: the last update has no loss after it."""
    for path, finite in jax.tree_util.tree_leaves_with_path(_finite(params)):
        if not finite:
            when = f"After the last step of {of}" if of else "After the last step"
            msg = (
                f"{when} {path_name(path)} holds NaN or infinite values, though the "
                f"loss was finite before it. {advice}"
            )
            raise FloatingPointError(msg)


@jax.jit
def _finite(tree):
    def fine(x):  # Integers and keys are.
        return jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.inexact) else True

    return jax.tree.map(fine, tree)
