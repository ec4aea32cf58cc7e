"""Second moments of layer inputs: one streaming pass, memory that does not grow."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.grams import Moment, layer_sums, moments_of, sum_shapes
from jaxunlearn.checks import (
    check_count,
    check_labels,
    is_traced,
    short,
)
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.classifier.independence import num_classes as logits_count
from jaxunlearn.nullspace.memory import check_moments
from jaxunlearn.nullspace.streaming import (
    Images,
    first_images,
    is_stream,
    stream_grams,
)
from jaxunlearn.nullspace.trees import map_leaves
from jaxunlearn.parallel import Transform
from jaxunlearn.tasks.classes import as_integers, elements

OTHERS = "others"

# Larger batches are hardly faster.
_BATCH_SIZE = 256


def second_moments(
    classifier: Classifier,
    images: Images,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    transform: Transform = "shard_map",
) -> PyTree:
    """`C = sum(x xT)` over the input rows `x` of every weight, in one pass.

    Sums run at precision HIGHEST, compensated, in float32 (float64 for a network that
    computes in it); they depend neither on the batch size nor on the devices.

    Args:
      classifier: a `Classifier`.
      images: `[n, h, w, c]`, or a re-iterable of such batches for data larger than
        memory. With a mesh over several processes: this process's share, at least
        one image; shares may be of different lengths.
      batch_size: images per compiled step, over all devices of this process; None for
        256.
      mesh: a one-axis mesh over whose devices each batch is cut, of several processes
        too, all of which must call. None: on a GPU or TPU all devices of this process,
        on a CPU one.
      transform: what runs a step on every device, `jax.shard_map` or `jax.pmap`.

    Returns:
      A tree like `classifier.params` of `Moment`, None where a leaf has no input; the
      same in every process.

    Raises:
      ValueError: what `layer_inputs` refuses.
      TypeError: a stream that can be read only once.

    Source: UNSC (arXiv 2404.13588) and CovarNav (arXiv 2311.12999) take the subspaces
    of these matrices.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images = jnp.ones((5, 2, 2, 1))
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> float(ju.second_moments(classifier, images)["layers_1"]["kernel"].gram[0, 0, 0])
    5.0
    """
    sample = first_images(classifier, images, labelled=False)
    _check_room(classifier, sample, 1, mesh)
    given = classifier, images, sample
    return _moments(*given, None, None, batch_size, mesh, transform)


def class_moments(
    classifier: Classifier,
    images: Images,
    labels: ArrayLike | Any,
    *,
    num_classes: int,
    classes: Sequence[int] | Any = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    transform: Transform = "shard_map",
) -> PyTree:
    """`second_moments` for each class apart, in the same single pass.

    Batches are sorted by class before they reach the network, so that a class costs no
    more than its own images; a class without images has a zero gram and zero rows.

    Args:
      classifier: a `Classifier`.
      images: as in `second_moments`; a stream yields `(images, labels)` pairs.
      labels: Int[n], in any order; None for a stream.
      num_classes: how many classes there are.
      classes: only these apart, then all others together as a last entry, where a
        moment for every class would not fit.
      batch_size: as in `second_moments`.
      mesh: as in `second_moments`; processes may have different classes.
      transform: as in `second_moments`.

    Returns:
      A tree like `classifier.params` of `Moment` with a leading class axis.

    Raises:
      ValueError: labels out of range, classes unknown or twice, moments larger than
        memory, and what `second_moments` refuses.
      TypeError: labels that are not integers.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images, labels = jnp.ones((5, 2, 2, 1)), jnp.array([0, 2, 0, 0, 2])
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> moments = ju.class_moments(classifier, images, labels, num_classes=3)
    >>> moments["layers_1"]["kernel"].rows.tolist()
    [3.0, 0.0, 2.0]
    """
    if is_stream(images) != (labels is None):
        wrong = "labels are missing" if labels is None else "labels are given twice"
        msg = (
            f"{wrong}: a stream yields (images, labels) pairs and takes labels=None, "
            "an array of images takes an array of labels."
        )
        raise ValueError(msg)
    sample = first_images(classifier, images, labelled=labels is None)
    count = check_count("num_classes", num_classes)
    ids = None if classes is None else _class_ids(classes)
    count = count if ids is None else len(ids) + 1
    _check_room(classifier, sample, count, mesh)
    held = _held_classes(num_classes, ids, logits_count(classifier, sample))
    table = np.full(num_classes, len(held) - 1)
    named = [c for c in held if c != OTHERS]
    table[named] = np.arange(len(named))

    def slot_of(labels, count):
        labels = check_labels("labels", labels, count, num_classes)
        return jnp.asarray(table)[labels] if is_traced(labels) else table[labels]

    slots = slot_of if labels is None else slot_of(labels, len(sample))
    given = classifier, images, sample
    return _moments(*given, slots, held, batch_size, mesh, transform)


def sum_classes(
    moments: PyTree, classes: Iterable[int | str] | Any, *, equal_weight: bool = False
) -> PyTree:
    """Add the moments of some classes, for instance of the retained ones.

    Args:
      moments: what `class_moments` returned.
      classes: ids that its class axis holds (and "others" where it has that entry).
      equal_weight: divide each class's gram by its trace first, so that a class with
        many images does not own the subspace.

    Returns:
      A tree of `Moment` without a class axis.

    Raises:
      ValueError: a class that the axis does not hold, one named twice, or no class.
      TypeError: moments without a class axis.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images, labels = jnp.ones((5, 2, 2, 1)), jnp.array([0, 2, 0, 0, 2])
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> moments = ju.class_moments(classifier, images, labels, num_classes=3)
    >>> float(ju.sum_classes(moments, [1, 2])["layers_1"]["kernel"].rows)
    2.0
    """
    wanted = _class_ids(classes, (OTHERS,))

    def add(name: str, moment: Moment) -> Moment:
        if moment.classes is None:
            msg = "sum_classes needs moments with a class axis, as class_moments returns them."  # noqa: E501
            raise TypeError(msg)
        missing = [c for c in wanted if c not in moment.classes]
        if missing or not wanted or len(set(wanted)) != len(wanted):
            msg = (
                f"classes must be distinct entries of {short(moment.classes)}, at least"
                f" one; they are {short(wanted)}"
                + (f", of which {short(missing)} are not held." if missing else ".")
            )
            raise ValueError(msg)
        index = np.array([moment.classes.index(c) for c in wanted])
        gram = moment.gram[index]
        if equal_weight:
            trace = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]
            gram = jnp.where(trace > 0, gram / jnp.where(trace > 0, trace, 1), 0)
        return Moment(gram.sum(0), moment.rows[index].sum(0), moment.layout)

    return map_leaves(add, Moment, "moments", moments)


def _class_ids(classes, names=()) -> list[int | str]:
    """Integers, and what else may stand for a class."""
    return [
        c if isinstance(c, str) and c in names else as_integers([c], "classes")[0]
        for c in elements(classes, "classes")
    ]


def _held_classes(num_classes, ids, logits) -> tuple[int | str, ...]:
    if num_classes != logits:
        msg = f"num_classes is {num_classes}, and the network has {logits} logits: they must be the same."  # noqa: E501
        raise ValueError(msg)
    if ids is None:
        return tuple(range(num_classes))
    if len(set(ids)) != len(ids) or any(not 0 <= c < num_classes for c in ids):
        msg = f"classes must be distinct ids in 0..{num_classes - 1}; they are {short(ids)}."  # noqa: E501
        raise ValueError(msg)
    return (*ids, OTHERS)


def _check_room(classifier, sample, count, mesh) -> None:
    if not is_traced((classifier, sample)):
        check_moments(classifier, sample, count, parallel.mesh_for_rows(mesh))


def _moments(
    classifier, images, sample, slots, classes, batch_size, mesh, transform
) -> PyTree:
    """With an axis of these classes, or without one; `slots` as of `stream_grams`."""
    batch_size = _BATCH_SIZE if batch_size is None else batch_size
    check_count("batch_size", batch_size)
    parallel.check_transform(transform, mesh)
    count = 1 if classes is None else len(classes)
    images = images if is_stream(images) else sample
    if is_traced((classifier, sample)):
        moments = _traced(classifier, sample, slots, count, mesh)
    else:
        mesh = parallel.mesh_for_rows(mesh)
        given = classifier, images, slots, count, batch_size, mesh, transform
        moments = stream_grams(*given, shapes=sum_shapes(classifier, sample))
    if classes is None:
        moments = jax.tree.map(lambda x: x[0], moments)
    moments = [m and dataclasses.replace(m, classes=classes) for m in moments]
    return jax.tree.unflatten(jax.tree.structure(classifier.params), moments)


def _traced(classifier, images, slots, count, mesh):
    """Inside a transformation: one batch, no streaming; classes are masks."""
    if mesh is not None:
        msg = (
            "mesh cannot be used inside a transformation: call second_moments on each "
            "shard and add the results with lax.psum."
        )
        raise ValueError(msg)
    masks = jnp.ones((1, images.shape[0]))
    if slots is not None:
        masks = (slots[None] == jnp.arange(count)[:, None]).astype(jnp.float32)
    return jax.vmap(lambda mask: moments_of(layer_sums(classifier, images, mask)))(
        masks
    )
