"""Bytes that second moments take of a device's memory, known before the pass."""

from typing import Any

import jax
from jax.sharding import Mesh

from jaxunlearn import parallel
from jaxunlearn.capture.grams import gram_shapes, sum_shapes
from jaxunlearn.checks import check_count
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.nullspace.streaming import (
    Images,
    check_inputs,
    first_images,
    is_stream,
)

# Of what is free: the rest is for what an estimate leaves out, and for others.
SHARE = 0.5


def check_moments(
    classifier: Classifier, sample: Any, count: int, mesh: Mesh | None
) -> None:
    """Refuse more classes than a device can hold moments of, saying what it could."""
    each, devices = moment_bytes(classifier, sample), _own_devices(mesh)
    limit = parallel.free_memory(devices)
    if count * each <= limit:
        return
    held = limit // each - 1
    advice = (
        f"Those of one class take {each:,}: freeze parts of the network, or use a "
        "device with more memory."
        if held < 1
        else "Ask for fewer with classes=(...), whose last entry is all other classes "
        f"together: {-(-count // held)} passes of up to {held} classes would do. "
        "jaxunlearn.nullspace.class_passes says which."
    )
    msg = (
        f"Moments of {count} classes take {count * each:,} bytes on each of {devices} "
        f"devices, which have {limit:,} free. {advice}"
    )
    raise ValueError(msg)


def moment_bytes(classifier: Classifier, sample: Any) -> int:
    """The most bytes that the moments of one class take while they are made."""
    sums = tree_bytes(sum_shapes(classifier, sample))
    # Two of each while they are summed; then their value, and the grams made of it.
    return sums + max(sums, tree_bytes(gram_shapes(classifier, sample)))


def class_passes(
    classifier: Classifier,
    images: Images,
    num_classes: int,
    *,
    mesh: Mesh | None = None,
    limit: int | None = None,
) -> list[tuple[int, ...]]:
    """In how many passes the moments of all classes fit into memory, and which in each.

    Nothing is computed. Each group of class ids is for `class_moments(..., classes=
    group)`, whose last entry is all other classes together; one group where all fit.

    Args:
      classifier: a `Classifier`.
      images: as `class_moments` takes them; only their shape and type matter.
      num_classes: how many classes there are.
      mesh: as `class_moments` takes it.
      limit: bytes for one pass on each device; None for half of what is free now.

    Raises:
      ValueError: not even one class and all others fit.

    >>> import jaxunlearn as ju
    >>> apply = lambda params, state, images: images.reshape(-1, 4) @ params
    >>> classifier = ju.freeze(ju.Function(apply, jax.numpy.ones((4, 3))))
    >>> class_passes(classifier, jax.numpy.ones((5, 2, 2, 1)), 5, limit=600)
    [(0, 1, 2), (3, 4)]
    """
    check_count("num_classes", num_classes)
    check_classifier(classifier)
    if is_stream(images):
        images = first_images(classifier, images, labelled=True)
    check_inputs(classifier, images)
    if limit is None:
        devices = _own_devices(parallel.mesh_for_rows(mesh))
        limit = int(SHARE * parallel.free_memory(devices))
    each = moment_bytes(classifier, images)
    held = limit // each - 1
    if held < 1:
        msg = (
            f"Moments of one class and of all others take {2 * each:,} bytes, and "
            f"{limit:,} are there for them: free memory on the device, or set limit."
        )
        raise ValueError(msg)
    passes = -(-num_classes // held)
    small, larger = divmod(num_classes, passes)
    stops = [number * small + min(number, larger) for number in range(passes + 1)]
    return [tuple(range(*pair)) for pair in zip(stops, stops[1:], strict=False)]


def _own_devices(mesh: Mesh | None) -> int:
    own = parallel.own_mesh(mesh)
    return 1 if own is None else own.size


def tree_bytes(tree: Any) -> int:
    """Of all leaves, which may be shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
