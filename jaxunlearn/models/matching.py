"""Whether stored tensors are those of a network."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.models.shapes import variable_shapes
from jaxunlearn.models.tensors import check_tensors, describe, is_key

# Images that are tried where nothing says what a network is for.
_USUAL = [(side, side, channels) for side in (32, 28, 224) for channels in (3, 1)]


def check_nested(classifier: Classifier) -> None:
    """Refuse leaves that would not come back to a linen module.

    It has no leaves of its own, whose structure the stored ones could take.
    """
    tree = (classifier.params, classifier.state)
    for (_, *path), leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [getattr(entry, "key", None) for entry in path]
        plain = all(isinstance(name, str) and "/" not in name for name in names)
        if not plain or is_key(leaf):
            msg = (
                f"The leaf {path_name(path)} must lie in dictionaries by names without "
                "a slash, and be no random key, to come back to a linen module: freeze "
                "the module with variables that hold no such thing."
            )
            raise ValueError(msg)


def check_linen(tensors: Mapping[str, Any], model: nn.Module, image_shape: Any) -> None:
    """Refuse tensors that are not a linen module's.

    Without the images' shape some are tried: the leaves that are the same for all of
    them are compared, and of the others the names.
    """
    tried = []
    for shape in _USUAL if image_shape is None else [image_shape]:
        try:
            tried.append(_leaves(model, shape))
            taken = shape
        except Exception as error:  # whatever the module raises
            if image_shape is None:
                continue
            msg = f"The network takes no images of {list(shape)}: {str(error)[:500]}"
            raise ValueError(msg) from error
        if _kinds(tried[-1]) == _kinds(tensors):
            return
    if not tried or any(leaves.keys() != tried[0].keys() for leaves in tried):
        return
    wanted = dict(tried[-1])
    for name in wanted if image_shape is None else ():
        # With one shape alone it is not known what varies.
        if len(tried) == 1 or len({leaves[name].shape for leaves in tried}) > 1:
            wanted[name] = tensors.get(name, wanted[name])
    # Some modules have heads that only training calls.
    optional = set(tensors) - set(wanted)
    optional &= set(_leaves(model, taken, training=True)) if optional else set()
    check_leaves({n: t for n, t in tensors.items() if n not in optional}, wanted)


def check_leaves(tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse tensors other than these, in whichever precision those of floats are."""
    stored, wanted = describe(tensors), describe(expected)
    ours, theirs = _kinds(tensors), _kinds(expected)
    for name in stored.keys() & wanted.keys():
        if ours[name] == theirs[name]:
            wanted[name] = stored[name]
    advice = "Give the model and the image_shape that they were made with."
    what = "The tensors are not those of the network"
    check_tensors(what, stored, wanted, advice)


def _leaves(model, image_shape, **options):
    """A linen module's leaves by their names in a file."""
    leaves = variable_shapes(model, image_shape, **options).items()
    return {p if p.startswith("params/") else f"state/{p}": leaf for p, leaf in leaves}


def _kinds(leaves):
    """Shape and type of leaves; all floats are of one type."""

    def kind(dtype):
        return "float" if jnp.issubdtype(dtype, jnp.floating) else str(dtype)

    return {name: (leaf.shape, kind(leaf.dtype)) for name, leaf in leaves.items()}
