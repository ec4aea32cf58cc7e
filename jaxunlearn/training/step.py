"""One step of training: augmentation, gradient, momentum."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import parallel
from jaxunlearn.augmentation import augment
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.cpu_convolution import in_pieces
from jaxunlearn.training.recipe import Recipe

# What a step takes from the recipe as numbers: another value compiles nothing.
_TRACED = ("momentum", "weight_decay", "label_smoothing")


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """`carry, loss = step(carry, constants, index, batch)`, for `steps.run_steps`.

        v <- momentum v + g,   w <- w - rate (g + momentum v  or  v)

    with `g` the gradient of the mean cross-entropy plus the weight decay. The fields
    are what a program is compiled for. With a mesh, rows of the minibatch lie on
    several devices: batch statistics and gradients are those of the whole minibatch.

    Attributes:
      nesterov: `g + momentum v` rather than `v`.
      crop_padding: see `Recipe`.
      flip: see `Recipe`.
      half: whether gradients are taken in bfloat16.
      mesh: the devices, or None.
    """

    nesterov: bool
    crop_padding: int
    flip: bool
    half: bool
    mesh: Mesh | None = None

    @classmethod
    def of(cls, recipe: Recipe, mesh: Mesh | None) -> "TrainingStep":
        """The step of a recipe."""
        half = recipe.precision == "bfloat16"
        return cls(recipe.nesterov, recipe.crop_padding, recipe.flip, half, mesh)

    def start(self, classifier: Classifier) -> tuple[Classifier, PyTree]:
        """The carry of a fresh classifier: with no momentum yet."""
        none = dict.fromkeys(_TRACED, 0.0)
        return classifier, self._sgd(none).init(classifier.params)

    def __call__(
        self,
        carry: tuple[Classifier, PyTree],
        constants: tuple[Array, dict[str, Any]],
        index: Int[Array, ""],
        batch: tuple[Array, Array, Array],
    ) -> tuple[tuple[Classifier, PyTree], Float[Array, ""]]:
        """The carry after one minibatch, and the loss before.

        Args:
          carry: classifier and momentum.
          constants: a key, and the recipe's `numbers`.
          index: of the step, by which the key is told apart.
          batch: images, labels and the learning rate.
        """
        classifier, momentum = carry
        key, numbers = constants
        images, labels, rate = batch
        augment_key, network_key = jax.random.split(jax.random.fold_in(key, index))
        images = augment(
            augment_key, images, crop_padding=self.crop_padding, flip=self.flip
        )

        # The compiler does not cut a loop over pieces among devices.
        network = classifier.network.apply_train
        network = in_pieces(network) if self.mesh is None else network

        def loss_function(params):
            inputs = self._cast((params, classifier.prepare(images)))
            outputs, state = network(
                inputs[0], classifier.state, inputs[1], network_key
            )
            outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
            targets = jax.nn.one_hot(labels, outputs.shape[1], dtype=jnp.float32)
            targets = optax.smooth_labels(targets, numbers["label_smoothing"])
            return optax.softmax_cross_entropy(outputs, targets).mean(), state

        gradient = jax.value_and_grad(loss_function, has_aux=True)
        (loss, state), gradients = gradient(classifier.params)
        updates, momentum = self._sgd(numbers).update(
            gradients, momentum, classifier.params
        )
        updates = jax.tree.map(lambda u: -rate * u, updates)
        params = optax.apply_updates(classifier.params, updates)
        state = jax.tree.map(_in_type_of, state, classifier.state)
        carry = (classifier.replace(params=params, state=state), momentum)
        return parallel.keep_whole(carry, self.mesh), loss.astype(jnp.float32)

    def _sgd(self, numbers):
        """All but the learning rate."""
        return optax.chain(
            optax.add_decayed_weights(
                numbers["weight_decay"],
                mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
            ),
            optax.trace(numbers["momentum"], nesterov=self.nesterov),
        )

    def _cast(self, tree):
        if not self.half:
            return tree
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if _is_float(x) else x, tree
        )


def numbers(recipe: Recipe) -> dict[str, float]:
    """What a step takes from the recipe as numbers."""
    return {name: float(getattr(recipe, name)) for name in _TRACED}


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def _in_type_of(new, old):
    """Batch statistics of half precision, kept in full."""
    return new.astype(old.dtype) if _is_float(old) else new
