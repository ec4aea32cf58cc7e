"""One step of training: augmentation, gradient, momentum."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxunlearn import parallel
from jaxunlearn.augmentation import augment
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.network import main_output
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.descent.step import update_params
from jaxunlearn.training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """`carry, loss = step(carry, constants, index, row)`, for `run_steps`.

        v <- momentum v + g,   w <- w - rate (g + momentum v  or  v)

    with `g` the gradient of the mean cross-entropy plus the weight decay. The fields
    are what a program is compiled for; numbers of the recipe are arguments. With a
    mesh, batch statistics and gradients are those of the whole minibatch.
    """

    nesterov: bool
    crop_padding: int
    flip: bool
    half: bool  # whether gradients are taken in bfloat16
    mesh: Mesh | None = None

    def __call__(self, carry, constants, index, row):
        """Classifier and momentum after one minibatch, and the loss before it.

        A row is images and labels, and the learning rate; the key is told apart by the
        index of the step.
        """
        classifier, state = carry
        key, momentum, weight_decay, label_smoothing = constants
        (images, labels), rate = row
        augment_key, network_key = jax.random.split(jax.random.fold_in(key, index))
        images = augment(
            augment_key, images, crop_padding=self.crop_padding, flip=self.flip
        )

        def loss(params):
            given = params, classifier.prepare(images)
            params, inputs = _cast(given, jnp.bfloat16) if self.half else given
            outputs, state = classifier.network.apply_train(
                params, classifier.state, inputs, network_key
            )
            logits = main_output(outputs)
            targets = jax.nn.one_hot(labels, logits.shape[1], dtype=jnp.float32)
            targets = optax.smooth_labels(targets, label_smoothing)
            return cross_entropy(logits, targets).mean(), state

        def update(gradients, state, params, *_, **__):
            sgd = _sgd(rate, momentum, weight_decay, self.nesterov)
            return sgd.update(gradients, state, params)

        (params, state), value, statistics = update_params(
            loss, classifier.params, state, update, mesh=self.mesh
        )
        # Batch statistics of half precision are kept in full.
        kept = jax.tree.map(
            lambda new, old: _cast(new, old.dtype), statistics, classifier.state
        )
        carry = classifier.replace(params=params, state=kept), state
        return parallel.keep_whole(carry, self.mesh), value.astype(jnp.float32)


def _cast(tree, dtype):
    """The floats of a tree in another precision."""

    def cast(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def begin(
    recipe: Recipe, classifier: Classifier, key: Array, mesh: Mesh | None
) -> tuple[TrainingStep, PyTree, PyTree]:
    """The step of a recipe, its first carry, and its constants."""
    half = recipe.precision == "bfloat16"
    step = TrainingStep(recipe.nesterov, recipe.crop_padding, recipe.flip, half, mesh)
    numbers = recipe.momentum, recipe.weight_decay, recipe.label_smoothing
    momentum = _sgd(0.0, 0.0, 0.0, recipe.nesterov).init(classifier.params)
    return step, (classifier, momentum), (key, *map(float, numbers))


def _sgd(rate, momentum, weight_decay, nesterov):
    def has_decay(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    decay = optax.add_decayed_weights(weight_decay, mask=has_decay)
    return optax.chain(decay, optax.sgd(rate, momentum, nesterov=nesterov))
