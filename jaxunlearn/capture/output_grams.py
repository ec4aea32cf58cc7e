"""Second moments of the gradients at every weight's outputs, of one batch.

To every product that gives a weight its input zeros are added, and the log-likelihood
of a label is differentiated with respect to them: that is the gradient at the product's
output, whatever the layer is made of.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxunlearn.capture.contractions import flatten_scans, for_slices
from jaxunlearn.capture.grams import Moment, rows_of
from jaxunlearn.capture.layers import layers
from jaxunlearn.capture.walk import Capture, walk_of

# In place of a label: one is to be drawn.
DRAWN = -1


@jax.disable_jit(False)
def output_gradients(
    classifier, images: Float[Array, "n h w c"], objective: Callable, *rows: Array
) -> tuple[Capture, dict[str, tuple[Array, Array]]]:
    """`(gradient, weight)` of each use by its key, the image axis, then scans leading.

    `objective(logits, *row)` is a number for one image and its entries of `rows`. The
    weight is 0 where a branch was not taken, as the gradient is.
    """
    per_image = walk_of(classifier, images[0])
    walk = Capture()
    jax.eval_shape(lambda image: per_image(walk, image), images[0])
    shapes = {key: use.output for key, use in walk.uses.items()}

    def gradients(image, *row):
        def value(added):
            walk.added = added
            logits, operands = per_image(walk, image)
            weights = {key: operands[key][1] for key in shapes}
            return objective(logits, *row), weights

        # Of the image, so that inside `shard_map` they vary over devices as it does.
        zero = image.reshape(-1)[0] * 0
        added = {
            key: jnp.broadcast_to(zero.astype(shape.dtype), shape.shape)
            for key, shape in shapes.items()
        }
        found, weights = jax.grad(value, has_aux=True)(added)
        return {key: (found[key], weights[key]) for key in shapes}

    found = jax.vmap(gradients)(images, *rows)
    walk.added = {}
    return walk, found


def output_grams(
    subject: tuple[Any, Array, Array],
    samples: tuple[Array, Array, Array],
    mask: Float[Array, " n"],
) -> list[Moment | None]:
    """Of each leaf, `sum(g gT)` with `g` the gradient of log p(label) at its output.

    `subject` is the classifier, a key's data, and which logits are hidden `[k]`;
    `samples` are images, their indices, and labels. A label that is `DRAWN` is drawn
    from the model with the key folded with the index. `mask` is 1 for an image that
    counts and 0 for padding. None where a leaf has no input, or where its uses have no
    output space in common.
    """
    classifier, words, hidden = subject
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    images, indices, labels = samples

    def log_likelihood(logits, index, label):
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        logits = jnp.where(hidden, -jnp.inf, logits)
        own = jax.random.fold_in(key, index)
        drawn = jax.random.categorical(own, lax.stop_gradient(logits))
        return jax.nn.log_softmax(logits)[jnp.where(label == DRAWN, drawn, label)]

    with jax.default_matmul_precision("highest"):
        prepared = classifier.prepare(images)
        walk, found = output_gradients(
            classifier, prepared, log_likelihood, indices, labels
        )
    count = len(jax.tree.leaves(classifier.params))
    return [
        None if isinstance(layer, str) else _moment(layer, found, mask)
        for layer in layers(walk, count)
    ]


def _moment(layer, found, mask) -> Moment | None:
    ours, grams, counts = layer.layout.swapped(), [], []
    for key, use, _ in layer.uses:
        renumber = ours.renumber(use.product.layout(use.view).swapped())
        if renumber is None:
            return None
        gradient, weight = found[key]
        keep = mask.reshape(-1, *(1,) * (gradient.ndim - 1)) > 0
        gradient = jnp.where(keep, gradient, jnp.zeros((), gradient.dtype))
        slices = flatten_scans(gradient, use.scans)
        rows = renumber(for_slices(use.product.outputs, slices), 2)
        highest = lax.Precision.HIGHEST
        grams.append(jnp.einsum("gno,gnp->gop", rows, rows, precision=highest))
        counts.append(rows_of(use, weight, mask))
    return Moment(sum(grams), sum(counts), layer.layout, side="outputs")
