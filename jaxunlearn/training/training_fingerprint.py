"""What two trainings must share to be the same one."""

import re
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data
from jaxunlearn.training.fingerprint import digest
from jaxunlearn.training.recipe import Recipe


def fingerprint(
    description: str,
    classifier: Classifier,
    train: Data,
    validation: Data | None,
    recipe: Recipe,
    key: Array,
) -> dict[str, Any]:
    """All that decides about the result, as plain values under speaking names.

    Args:
      description: of the network.
      classifier: as training starts from it; of its leaves, shapes and types count.
      train: what is trained on.
      validation: counts where the recipe stops early.
      recipe: how.
      key: of the training.

    >>> from jaxunlearn import classifier
    >>> from jaxunlearn.training.fingerprint import differences
    >>> import flax.linen as nn
    >>> model = nn.Dense(1)
    >>> frozen = classifier.freeze(model, {"params": {"kernel": np.ones((1, 1))}})
    >>> data = Data(np.zeros((1, 1, 1, 1), np.uint8), [0])
    >>> both = (
    ...     fingerprint(repr(model), frozen, data, None, Recipe(), jax.random.key(seed))
    ...     for seed in (0, 1)
    ... )
    >>> differences(*both)
    ['key ([0, 0] there, [0, 1] here)']
    """
    leaves = jax.tree_util.tree_leaves_with_path((classifier.params, classifier.state))
    shapes = [f"{path_name(path)} {leaf.dtype}{leaf.shape}" for path, leaf in leaves]
    # Addresses of functions differ from process to process.
    description = re.sub(r" at 0x[0-9a-f]+", "", description)
    found = {f"recipe.{name}": value for name, value in to_dict(recipe).items()}
    found |= {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "network": digest(description.encode(), "\n".join(shapes).encode()),
        "preprocess": to_dict(classifier.preprocess),
        "number of samples": len(train),
        "samples": _hash_data(train),
    }
    if recipe.patience is not None:
        found["validation samples"] = _hash_data(validation)
    return found


def _hash_data(data):
    images = np.ascontiguousarray(data.images)
    kind = f"{images.dtype}{images.shape}"
    return digest(kind.encode(), images, np.ascontiguousarray(data.labels))
