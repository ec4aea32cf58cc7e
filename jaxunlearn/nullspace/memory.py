"""What second moments take of a device's memory: known from shapes, before the pass."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxunlearn import parallel
from jaxunlearn.capture.inputs import gram_shapes, sum_shapes
from jaxunlearn.capture.jaxprs import open_jaxpr
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.nullspace.batches import Images, first_images, is_stream

# A batch of more images is hardly faster.
_BATCH = 256
# Of what is free: the rest is for what an estimate leaves out, and for others.
SHARE = 0.5


def batch_that_fits(classifier: Classifier, sample: Any, devices: int) -> int:
    """How many images a compiled step takes, over so many devices of this process.

    256, halved until half of the memory that is free on each device holds a step.

    Args:
      classifier: a `Classifier`.
      sample: images; only their shape and type matter.
      devices: among which each batch is cut.
    """
    fixed, each = step_bytes(classifier, sample)
    limit = SHARE * parallel.free_memory(devices)
    batch = _BATCH
    while batch > devices and fixed + -(-batch // devices) * each > limit:
        batch //= 2
    return batch


def step_bytes(classifier: Classifier, sample: Any) -> tuple[int, int]:
    """Bytes that one step takes besides its arguments: once, and for each image.

    For each image all inputs of weights at once, three times the largest thing that is
    written out (a layer's patches, a value of the network); once, the sums twice. The
    compiled program takes less, as it holds few inputs at a time.

    Args:
      classifier: a `Classifier`.
      sample: images; only their shape and type matter.
    """
    image = jax.ShapeDtypeStruct((1, *jnp.shape(sample)[1:]), jnp.result_type(sample))
    program = _forward.trace(classifier, image).jaxpr
    found = sum_shapes(classifier, sample)
    layers = [layer for layer in found if layer is not None]
    parameters = {leaf.shape for leaf in jax.tree.leaves(classifier)}
    largest = max(
        *(layer.written for layer in layers),
        # What has a parameter's shape may be one, of which there is one for all images.
        *(math.prod(s) for s in _shapes(program) if s not in parameters),
    )
    inputs = sum(layer.inputs for layer in layers)
    width = max((leaf.dtype.itemsize for leaf in jax.tree.leaves(found)), default=4)
    return 2 * tree_bytes(found), width * (inputs + 3 * largest)


_forward = jax.jit(lambda classifier, images: classifier(images))


def check_moments(classifier: Classifier, sample: Any, count: int, devices: int):
    """Refuse moments of so many classes that a device cannot hold, saying what could.

    Raises:
      ValueError: more bytes than a device has.
    """
    needed = moment_bytes(classifier, sample, count)
    limit = parallel.memory_limit(devices)
    if needed <= limit:
        return
    each = moment_bytes(classifier, sample, 1)
    msg = (
        f"Moments of {count} classes take {needed:,} bytes on each of {devices} "
        f"devices, which hold {limit:,}. "
    )
    held = limit // each - 1
    if held < 1:
        raise ValueError(
            msg + f"Those of one class take {each:,}: freeze parts of the "
            "network, or use a device with more memory."
        )
    raise ValueError(
        msg + "Ask for fewer with classes=(...), whose last entry is all other classes "
        f"together: {-(-count // held)} passes of up to {held} classes would do. "
        "class_passes says which."
    )


def moment_bytes(classifier: Classifier, sample: Any, count: int) -> int:
    """Bytes of compensated sums of so many classes, or of those and what they become.

    Args:
      classifier: a `Classifier`.
      sample: images; only their shape and type matter.
      count: how many classes.
    """
    sums = tree_bytes(sum_shapes(classifier, sample))
    # Two of each while they are summed; then their value, and the grams made of it.
    return count * (sums + max(sums, tree_bytes(gram_shapes(classifier, sample))))


def class_passes(
    classifier: Classifier,
    images: Images,
    num_classes: int,
    *,
    mesh: Mesh | None = None,
    limit: int | None = None,
) -> list[tuple[int, ...]]:
    """In how many passes the moments of all classes fit into memory, and which in each.

    Nothing is computed. Each group is for `class_moments(..., classes=group)`, whose
    last entry is all other classes together.

    Args:
      classifier: a `Classifier`.
      images: as `class_moments` takes them; only their shape and type matter.
      num_classes: how many classes there are.
      mesh: as `class_moments` takes it.
      limit: bytes for the moments of one pass on each device; None for half of what is
        free now.

    Returns:
      Ids of classes, in order, as even as may be; a single group where all fit.

    Raises:
      ValueError: not even one class and all others fit.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images = jnp.ones((5, 2, 2, 1))
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> class_passes(classifier, images, 5)
    [(0, 1, 2, 3, 4)]
    >>> class_passes(classifier, images, 5, limit=600)
    [(0, 1, 2), (3, 4)]
    """
    if is_stream(images):
        images = first_images(classifier, images, labelled=True)
    own = parallel.own_mesh(parallel.mesh_for_rows(mesh))
    if limit is None:
        devices = 1 if own is None else own.size
        limit = int(SHARE * parallel.free_memory(devices))
    each = moment_bytes(classifier, images, 1)
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


def tree_bytes(tree: Any) -> int:
    """Of all leaves, which may be shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _shapes(program):
    """The shapes of all values of a program, and of the programs in it."""
    jaxpr, _ = open_jaxpr(program)
    for eqn in jaxpr.eqns:
        yield from (value.aval.shape for value in eqn.outvars)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(open_jaxpr(inner)[0], "eqns"):
                    yield from _shapes(inner)
