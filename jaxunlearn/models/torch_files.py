"""Classifiers in files of PyTorch's weights."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn import models
from jaxunlearn.classifier.classifier import Classifier, Preprocess, freeze, thaw
from jaxunlearn.models.files import Card, linen_module, prefixed
from jaxunlearn.models.torch_names import namings, shown_fields
from jaxunlearn.models.torch_source import import_torch, read_tensors
from jaxunlearn.models.torch_weights import from_torch, to_torch
from jaxunlearn.serialization import atomic_write


def load_torch(
    path: str | os.PathLike,
    name: str,
    *,
    image_shape: tuple[int, int, int],
    preprocess: Preprocess | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Classifier, Card]:
    """A classifier of PyTorch's weights, see `torch_weights.from_torch`, and its card.

    Args:
      path: of the weights.
      name: of the network, for `models.create`.
      image_shape: (h, w, c).
      preprocess: of the pixels; weights do not say it.
      options: of the network, as far as the weights do not show them. What they show
        and these deny is refused.

    Raises:
      TypeError, ValueError, OSError: as `from_torch` and `models.create`.
    """
    plain = models.create(name, num_classes=1)
    layers = (layer for names in namings(plain).values() for layer in names.values())
    tensors = read_tensors(path, {f"{layer}.weight" for layer in layers})
    with prefixed(path):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        fields = {"num_classes": 1, **shown_fields(plain, shapes), **(options or {})}
        model = models.create(name, **fields)
        variables = from_torch(model, tensors, image_shape=image_shape)
        card = Card(**models.recognise(model), image_shape=tuple(image_shape))
        return freeze(model, variables, preprocess=preprocess), card


def save_torch(
    path: str | os.PathLike,
    classifier: Classifier,
    *,
    naming: str | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> None:
    """Write a `state_dict`: by safetensors where `path` says so, else by `torch.save`.

    What `preprocess` does is not in it. See `torch_weights.to_torch`.
    """
    model, variables = linen_module(classifier), thaw(classifier)
    namings(classifier.network if model is None else model)  # refuses those without
    arrays = to_torch(model, variables, naming=naming, image_shape=image_shape)
    with atomic_write(Path(path)) as temporary:
        if temporary.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(arrays, temporary)
            return
        torch = import_torch(f"Writing {path}")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(tensors, temporary)
