"""Second moments of what reaches the outputs of every weight from the logits."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.output_grams import DRAWN, output_grams
from jaxunlearn.checks import check_count, check_key, check_labels, is_traced
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.independence import num_classes
from jaxunlearn.nullspace.memory import tree_bytes
from jaxunlearn.nullspace.streaming import (
    Images,
    Measure,
    first_images,
    is_stream,
    stream_grams,
)
from jaxunlearn.parallel import Transform
from jaxunlearn.tasks.classes import check_classes

_OUTPUTS = Measure(output_grams, list)


def output_moments(
    classifier: Classifier,
    images: Images,
    *,
    key: Array,
    labels: ArrayLike | Any = None,
    exclude: Iterable[int] | Any = (),
    batch_size: int = 256,
    mesh: Mesh | None = None,
    transform: Transform = "shard_map",
) -> PyTree:
    """`B = sum(g gT)`, `g` the gradient of `log p(label)` at the outputs of a weight.

    Rows are counted as `second_moments` counts them: one for each row that the weight
    meets, so that of a convolution every position of every image has its own, and uses
    of a shared weight are added. With labels drawn from the model, `B` and the moment
    `C` of the inputs make the Kronecker-factored Fisher information of the weight,
    `C x B / rows` (Martens and Grosse, arXiv 1503.05671; of convolutions Grosse and
    Martens, arXiv 1602.01407): how much the log-likelihood depends on which change.

    One streaming pass, compensated, at precision HIGHEST; neither the batch size nor
    the number of devices changes a label or, beyond rounding, a sum.

    Args:
      classifier: a `Classifier`.
      images: as `second_moments` takes them; with a stream, labels are drawn.
      key: a `jax.random.key`. The label of an image is drawn with the key folded with
        the image's index; each of several processes folds in its own number before.
      labels: Int[n], to be used instead of labels that are drawn.
      exclude: classes whose logits are masked out before the softmax, such as the
        forgotten ones. No label is one of them.
      batch_size: images per compiled step, over all devices of this process.
      mesh: as in `second_moments`.
      transform: as in `second_moments`.

    Returns:
      A tree like `classifier.params` of `Moment` whose gram is `[g, o, o]` and whose
      `side` is "outputs", None where a leaf has no input. The layout is the weight's.

    Raises:
      ValueError: what `second_moments` refuses, labels or classes that do not exist,
        labels that are excluded, a network that has no gradients, moments larger than
        memory.
      TypeError: no key, labels that are not integers, labels beside a stream.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images, labels = jnp.ones((4, 2, 2, 1)), [0, 1, 2, 2]
    >>> variables = {"params": {"layers_1": {"kernel": jnp.zeros((4, 3))}}}
    >>> variables["params"]["layers_1"]["bias"] = jnp.zeros(3)
    >>> classifier = ju.freeze(model, variables)
    >>> given = {"key": jax.random.key(0), "labels": labels}
    >>> moment = ju.output_moments(classifier, images, **given)["layers_1"]["kernel"]
    >>> moment.gram.round(2)  # rows are onehot - 1/3
    Array([[[ 0.78, -0.22, -0.56],
            [-0.22,  0.78, -0.56],
            [-0.56, -0.56,  1.11]]], dtype=float32)
    """
    check_key(key)
    sample = first_images(classifier, images, labelled=False)
    count = num_classes(classifier, sample)
    hidden = np.zeros(count, bool)
    hidden[list(check_classes(exclude, count, name="exclude"))] = True
    own = _own_labels(labels, images, sample, hidden)
    check_count("batch_size", batch_size)
    parallel.check_transform(transform, mesh)
    # Of one generator: another's draws may depend on how many are drawn together.
    words = jax.random.key_data(key).ravel()[:2]
    traced = is_traced((classifier, sample, key, labels))
    if mesh is not None and mesh.is_multi_process and not traced:
        whole = jax.random.wrap_key_data(words, impl="threefry2x32")
        words = jax.random.key_data(jax.random.fold_in(whole, parallel.process_index()))
    given = words, jnp.asarray(hidden)
    shapes = _shapes(classifier, sample, given)
    if traced:
        moments = _traced(classifier, sample, own, given, mesh)
    else:
        mesh = parallel.mesh_for_rows(mesh)
        _check_room(shapes, mesh)
        images = images if is_stream(images) else sample

        def beside(first: int, stop: int) -> tuple[Any, Any]:
            index = np.arange(first, stop, dtype=np.int32)
            if own is None:
                return index, np.full(stop - first, DRAWN, np.int32)
            return index, own[np.minimum(index, len(own) - 1)]

        moments = stream_grams(
            *(classifier, images, None, 1, batch_size, mesh, transform),
            shapes=shapes,
            measure=_OUTPUTS,
            given=given,
            beside=beside,
        )
        moments = jax.tree.map(lambda x: x[0], moments)
    return jax.tree.unflatten(jax.tree.structure(classifier.params), moments)


def _own_labels(labels, images, sample, hidden) -> Any:
    """The labels that are given, checked, or None."""
    if labels is None:
        return None
    if is_stream(images):
        msg = (
            "labels are given beside a stream of images, with which they are drawn: "
            "give one array of images, or labels=None."
        )
        raise TypeError(msg)
    labels = check_labels("labels", labels, len(sample), len(hidden))
    if is_traced(labels):
        return labels.astype(jnp.int32)
    wrong = hidden[labels]
    if wrong.any():
        msg = (
            f"labels must be none of exclude, whose probability is zero; the first of "
            f"them, {labels[wrong.argmax()]}, stands at index {wrong.argmax()}. Leave "
            "those images out, or draw the labels with labels=None."
        )
        raise ValueError(msg)
    return labels.astype(np.int32)


def _shapes(classifier, sample, given) -> list[Any]:
    """Of the sums; the program is traced once for each network and image shape."""
    one = jnp.zeros(1, jnp.int32)
    image = jax.ShapeDtypeStruct((1, *jnp.shape(sample)[1:]), jnp.result_type(sample))
    try:
        return _sums.eval_shape((classifier, *given), (image, one, one), jnp.ones(1))
    except ValueError as error:
        if "Reverse-mode differentiation" not in str(error):
            raise
        msg = (
            "The logits have no gradient with respect to some output, as a while loop "
            "or a custom rule stands behind it: write the loop as a scan, or as a "
            f"fori_loop of a fixed number of iterations. {error}"
        )
        raise ValueError(msg) from error


def _check_room(shapes, mesh) -> None:
    own = parallel.own_mesh(mesh)
    devices = 1 if own is None else own.size
    # Their sums and what compensates them, the next ones, and the value.
    needed, free = 4 * tree_bytes(shapes), parallel.free_memory(devices)
    if needed > free:
        largest = max(math.prod(m.gram.shape) for m in shapes if m is not None)
        msg = (
            f"Moments of the outputs take {needed:,} bytes on each of {devices} "
            f"devices, which have {free:,} free; the largest gram has {largest:,} "
            "entries. Freeze parts of the network, or use a device with more memory."
        )
        raise ValueError(msg)


def _traced(classifier, images, labels, given, mesh):
    """Inside a transformation: one batch, no streaming."""
    if mesh is not None:
        msg = (
            "mesh cannot be used inside a transformation: call output_moments on each "
            "shard, with a key of its own, and add the results with lax.psum."
        )
        raise ValueError(msg)
    n = images.shape[0]
    labels = jnp.full(n, DRAWN, jnp.int32) if labels is None else jnp.asarray(labels)
    samples = jnp.asarray(images), jnp.arange(n, dtype=jnp.int32), labels
    return output_grams((classifier, *given), samples, jnp.ones(n))


_sums = jax.jit(output_grams)
