"""One step of several requests: all at once, in a loop, or one on each device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from jaxunlearn import parallel
from jaxunlearn.descent.cpu_convolution import in_pieces
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.descent.optimizers import Update
from jaxunlearn.descent.traced import Opaque, Program

WAYS = ("vmap", "map", "one by one")


@dataclasses.dataclass(frozen=True)
class StackedStep:
    """One update of some requests: static, equal to any that computes the same.

    Attributes:
      augment: what is done to a minibatch.
      update: the optimizer's.
      how: "vmap" runs all requests of a device at once, "map" one after another in a
        loop on the device; "one by one" is given one request a device.
      mesh: the devices over which requests are cut, or None.
    """

    augment: Program | Opaque
    update: Update
    how: str
    mesh: Mesh | None

    def __call__(self, carry, constants, index, row):
        """`carry`, `row` and the losses have a leading request axis."""

        def local(stacked, shared):
            if self.how == "vmap":
                return jax.vmap(lambda one: self._single(one, shared))(stacked)
            if self.how == "map":
                return lax.map(lambda one: self._single(one, shared), stacked)
            one = self._single(jax.tree.map(lambda x: x[0], stacked), shared)
            return jax.tree.map(lambda x: x[None], one)

        rows, shared = (carry, row), (constants, index)
        if self.mesh is None:
            return local(rows, shared)
        return parallel.on_leading_shares(local, self.mesh)(rows, shared)

    def _single(self, one, shared):
        (params, state), (images, targets, weights) = one
        (classifier, key, (augment_consts, update_consts)), index = shared
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        images = self.augment(augment_consts, jax.random.fold_in(key, index), images)

        def mean_loss(logits_of, params):
            logits = logits_of(classifier.replace(params=params), images)
            return jnp.sum(weights * cross_entropy(logits, targets))

        logits_of = in_pieces(_logits)
        loss = functools.partial(mean_loss, logits_of)
        value, grads = jax.value_and_grad(loss)(params)
        given = (grads, state, params, value, functools.partial(mean_loss, _logits))
        updates, state = self.update(update_consts, *given)
        return (optax.apply_updates(params, updates), state), value


def _logits(classifier, images):
    return classifier(images)
