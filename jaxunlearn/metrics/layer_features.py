"""The features of a classifier: what meets its weights, one row an image."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxunlearn.capture.inputs import LayerInput, layer_inputs
from jaxunlearn.capture.layers import layers
from jaxunlearn.capture.layout import path_name
from jaxunlearn.capture.walk import capture
from jaxunlearn.checks import check_choice
from jaxunlearn.classifier.classifier import Classifier


def feature_layers(classifier: Classifier, images: Array | np.ndarray) -> list[str]:
    """Paths of the weights that have an input, in the order in which they are used.

    Args:
      classifier: a `Classifier`.
      images: `[n, h, w, c]`; only their shape and type matter.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([nn.Conv(4, (3, 3)), lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> images = jnp.ones((1, 5, 5, 1))
    >>> feature_layers(ju.freeze(model, model.init(jax.random.key(0), images)), images)
    ['layers_0/kernel', 'layers_2/kernel']
    """  # noqa: E501
    return [path for path, _ in _ordered(classifier, images)]


def features(
    classifier: Classifier,
    images: Array | np.ndarray,
    layer: str | None = None,
    *,
    batch_size: int = 256,
) -> Float[np.ndarray, "n d"]:
    """The input of the last weight, or of the named one, for each image.

    Of a weight that is used at several positions (a convolution, tokens) the mean over
    them; groups stand side by side.

    Args:
      classifier: in inference mode.
      images: `[n, h, w, c]`, any number.
      layer: a path of `feature_layers`; None is the last weight, the head.
      batch_size: images at a time.

    Raises:
      ValueError: there is no such layer, or no weight has an input.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images = np.ones((5, 2, 2, 1), np.float32)
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> features(classifier, images).shape
    (5, 4)
    """
    names = feature_layers(classifier, images)
    if not names:
        msg = "No weight of this network has an input, so that it has no features."
        raise ValueError(msg)
    name = names[-1] if layer is None else layer
    return all_features(classifier, images, [name], batch_size=batch_size)[name]


def all_features(
    classifier: Classifier,
    images: Array | np.ndarray,
    names: Sequence[str] | None = None,
    *,
    batch_size: int = 256,
) -> dict[str, Float[np.ndarray, "n d"]]:
    """`features` of several layers after one pass over the images, by path.

    Args:
      classifier: in inference mode.
      images: `[n, h, w, c]`, any number.
      names: paths of `feature_layers`; None is all of them.
      batch_size: images at a time.

    Raises:
      ValueError: there is no such layer.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images = np.ones((5, 2, 2, 1), np.float32)
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), images))
    >>> sorted(all_features(classifier, images))
    ['layers_1/kernel']
    """
    index = dict(_ordered(classifier, images))
    names = list(index if names is None else names)
    for name in names:
        check_choice("layer", name, index)
    chosen = tuple(index[name] for name in names)
    n, parts = len(images), []
    batch_size = min(batch_size, 1 << max(n - 1, 0).bit_length())
    for start in range(0, n, batch_size):
        # Filled up with the last image: one program serves all batches.
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        parts.append(jax.device_get(_rows(classifier, images[rows], chosen)))
    return {
        name: np.concatenate(columns)[:n]
        for name, columns in zip(names, zip(*parts, strict=True), strict=True)
    }


@functools.partial(jax.jit, static_argnames="chosen")
def _rows(classifier, images, chosen):
    tree = layer_inputs(classifier, images)
    records = jax.tree.leaves(tree, is_leaf=_is_record)
    return [_mean_rows(records[i].inputs, len(images)) for i in chosen]


def _mean_rows(rows, n):
    groups, _, width = (int(np.prod(rows.shape[:-2])), *rows.shape[-2:])
    rows = rows.reshape(groups, n, -1, width).mean(axis=2)
    return jnp.moveaxis(rows, 0, 1).reshape(n, groups * width)


def _is_record(node: PyTree) -> bool:
    return node is None or isinstance(node, LayerInput)


def _ordered(classifier, images) -> list[tuple[str, int]]:
    """Path and leaf number of every weight with an input, in order of first use."""
    captured = []

    def trace(classifier, images):
        captured.append(capture(classifier, classifier.prepare(images)))

    image = jax.ShapeDtypeStruct((1, *jnp.shape(images)[1:]), jnp.result_type(images))
    jax.eval_shape(trace, classifier, image)
    paths = [
        path_name(path) for path, _ in jax.tree.leaves_with_path(classifier.params)
    ]
    found = layers(captured[0], len(paths))
    order = dict.fromkeys(use.leaf for use in captured[0].uses.values())
    return [(paths[i], i) for i in order if not isinstance(found[i], str)]
