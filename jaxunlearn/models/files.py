"""Classifiers as `.safetensors` files that say how to rebuild themselves."""

import contextlib
import dataclasses
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import models
from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier, Preprocess, freeze
from jaxunlearn.serialization import atomic_write, from_dict, to_dict, write_json

# The entry of the file's header that holds the card.
_HEADER = "jaxunlearn"

_PACKAGES = ("jaxunlearn", "jax", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What a file says about its classifier.

    Attributes:
      model: name of the network, for `models.create`.
      num_classes: likewise.
      options: further arguments of `models.create`.
      image_shape: (h, w, c).
      name: what the classifier is called.
      dataset: what it was trained on.
      size: height and width that its images were resized to, if they were.
      split_seed: which samples of it were for validation.
      forgotten: the classes that it has forgotten.
    """

    model: str
    num_classes: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_shape: tuple[int, int, int]
    name: str = ""
    dataset: str | None = None
    size: tuple[int, int] | None = None
    split_seed: int = 0
    forgotten: tuple[int, ...] = ()


def save_classifier(path: str | Path, classifier: Classifier, card: Card) -> None:
    """Write parameters, state and what rebuilds the network, all or nothing.

    Args:
      path: ends in `.safetensors`.
      classifier: of a network made by `models.create`.
      card: how it was made.

    Raises:
      ValueError: the classifier is not of the network that the card describes.
      FileNotFoundError: there is no such folder.
    """
    from safetensors.numpy import save

    tree = {"params": classifier.params, "state": classifier.state}
    tensors = {
        path_name(where): np.ascontiguousarray(leaf)
        for where, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    _, expected = _network(card)
    _check_tensors(tensors, expected)
    described = to_dict(card) | {"preprocess": to_dict(classifier.preprocess)}
    header = {_HEADER: json.dumps(described, allow_nan=False)}
    with atomic_write(Path(path)) as temporary:
        temporary.write_bytes(save(tensors, header))


def save_with_card(
    path: Path, classifier: Classifier, card: Card, details: Mapping[str, Any]
) -> None:
    """`save_classifier`, and beside it a JSON file for people and scripts.

    Args:
      path: ends in `.safetensors`; the card's name is the same with `.json`.
      classifier: of a network made by `models.create`.
      card: how it was made.
      details: further entries, such as accuracies.
    """
    save_classifier(path, classifier, card)
    described = to_dict(card) | {"preprocess": to_dict(classifier.preprocess)}
    entries = described | dict(details) | {"versions": versions()}
    write_json(path.with_suffix(".json"), entries)


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on.

    >>> sorted(versions())
    ['flax', 'jax', 'jaxunlearn', 'numpy', 'optax', 'python']
    """
    found = {name: version(name) for name in _PACKAGES}
    return found | {"python": platform.python_version()}


def read_card(path: Path) -> tuple[Card, Preprocess | None] | None:
    """Card and pixels of a `.safetensors` file, None where another library wrote it.

    Raises:
      ValueError: the file is no whole safetensors file, or its card is damaged.
    """
    with _opened(path) as file:
        header = _header(file)
    if header is None:
        return None
    try:
        return _described(header)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        msg = f"{path} holds no classifier that can be rebuilt. {error}"
        raise ValueError(msg) from error


def _described(header: str) -> tuple[Card, Preprocess | None]:
    described = json.loads(header)
    preprocess = described.pop("preprocess")
    preprocess = None if preprocess is None else Preprocess(**preprocess)
    return from_dict(Card, described), preprocess


def load_classifier(path: str | Path) -> tuple[Classifier, Card]:
    """The classifier that `save_classifier` wrote, and its card.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no whole safetensors file, does not say what network it
        is of, or its tensors are not those of that network.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no file {path}: give the path of a .safetensors file."
        raise FileNotFoundError(msg)
    with _opened(path) as file:
        header = _header(file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header is None:
        msg = f"{path} does not say which network it is of: only files that jaxunlearn wrote can be loaded."  # noqa: E501
        raise ValueError(msg)
    try:
        card, preprocess = _described(header)
        model, expected = _network(card)
        _check_tensors(tensors, expected)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        msg = f"{path} holds no classifier that can be rebuilt. {error}"
        raise ValueError(msg) from error
    leaves, structure = jax.tree_util.tree_flatten_with_path(expected)
    found = [jnp.asarray(tensors[path_name(where)]) for where, _ in leaves]
    tree = jax.tree.unflatten(structure, found)
    variables = {"params": tree["params"], **tree["state"]}
    return freeze(model, variables, preprocess=preprocess), card


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file for reading."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        msg = f"{path} is no whole safetensors file ({error}): write it anew."
        raise ValueError(msg) from error


def _header(file: Any) -> str | None:
    return (file.metadata() or {}).get(_HEADER)


def _network(card: Card) -> tuple[Any, dict[str, Any]]:
    """The module that a card describes, and the shapes of its params and state."""
    if min(card.image_shape) < 1:
        msg = f"image_shape must be positive; it is {list(card.image_shape)}."
        raise ValueError(msg)
    model = models.create(card.model, num_classes=card.num_classes, **card.options)
    network = freeze(model, {"params": {}}).network
    params, state = jax.eval_shape(
        lambda key: network.init(key, card.image_shape), jax.random.key(0)
    )
    return model, {"params": params, "state": state}


def _check_tensors(tensors: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    """Refuse tensors that are not those of the network, naming one and both shapes."""
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    wanted = {path_name(where): leaf for where, leaf in leaves}
    for name, leaf in wanted.items():
        if name not in tensors:
            msg = f"The tensor {name} of the network is missing."
            raise ValueError(msg)
        found, needed = (
            f"{t.dtype}[{','.join(map(str, t.shape))}]" for t in (tensors[name], leaf)
        )
        if found != needed:
            msg = f"The tensor {name} is {found} and the network's is {needed}."
            raise ValueError(msg)
    for name in tensors:
        if name not in wanted:
            msg = f"The network has no tensor {name}; it has: {', '.join(wanted)}."
            raise ValueError(msg)
