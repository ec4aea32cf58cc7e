"""Classifiers as `.safetensors` files that say how to rebuild themselves."""

import contextlib
import dataclasses
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn import models
from jaxunlearn.checks import check_eager, check_type, short
from jaxunlearn.classifier.classifier import Classifier, Preprocess, freeze
from jaxunlearn.models.matching import check_leaves, check_linen, check_nested
from jaxunlearn.models.shapes import nested
from jaxunlearn.models.tensors import (
    from_tensors,
    is_safetensors,
    read_tensors,
    to_tensors,
    write_tensors,
)
from jaxunlearn.serialization import from_dict, to_dict, write_json

_PACKAGES = ("jaxunlearn", "jax", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What a file says about its classifier.

    Attributes:
      model: name of the network, for `models.create`; "" where that makes none like it.
      num_classes: likewise; 0 where that is not known.
      options: further arguments of `models.create`.
      image_shape: (h, w, c), or None where it was not given.
      name: what the classifier is called.
      dataset: what it was trained on.
      size: height and width that its images were resized to, if they were.
      split_seed: which samples of it were for validation.
      imbalance: of the long tail of its training samples; None where all were taken.
      forgotten: the classes that it has forgotten.
      forgotten_samples: indices into its training split of samples that it has.
      samples_sha256: of these, one a line in ascending order; None without any.
      class_names: one for each class, where they have any.
    """

    model: str = ""
    num_classes: int = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_shape: tuple[int, int, int] | None = None
    name: str = ""
    dataset: str | None = None
    size: tuple[int, int] | None = None
    split_seed: int = 0
    imbalance: float | None = None
    forgotten: tuple[int, ...] = ()
    forgotten_samples: tuple[int, ...] = ()
    samples_sha256: str | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self):
        for name in ("image_shape", "size"):
            sides = getattr(self, name) or (1,)
            if min(sides) < 1:
                msg = f"{name} must be positive; it is {list(sides)}."
                raise ValueError(msg)
        names = self.class_names
        if names is not None and self.model and len(names) != self.num_classes:
            msg = f"class_names must be one for each of the {self.num_classes} classes; there are {len(names)}."  # noqa: E501
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """`Preprocess` as it is stored."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def save(
    path: str | os.PathLike,
    classifier: Classifier,
    *,
    image_shape: tuple[int, int, int] | None = None,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a classifier to a `.safetensors` file: all of it, or nothing.

    It holds parameters and state bit by bit, preprocessing, a checksum, and the name
    and options of a network that `models.create` makes. Options of `freeze` are not
    kept.

    Args:
      path: ends in `.safetensors`.
      classifier: of any network.
      image_shape: (h, w, c). The leaves of a linen module are checked against it here
        and in `load`, and the commands take only files that have it.
      class_names: one for each class, which the commands print.
      overwrite: replace what is there.

    Raises:
      FileExistsError: there is such a file.
      FileNotFoundError: there is no such folder.
      TypeError: the classifier is none, or is traced, or a name is no string.
      ValueError: the path ends otherwise, images have another shape, or leaves cannot
        be told apart by their paths or stored.

    >>> import tempfile
    >>> model = models.create("smallcnn", num_classes=3, width=2)
    >>> variables = model.init(jax.random.key(0), jax.numpy.ones((1, 8, 8, 1)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "small.safetensors"
    ...     save(path, freeze(model, variables))
    ...     load(path)(jax.numpy.ones((2, 8, 8, 1))).shape
    (2, 3)
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        msg = f"path must end in .safetensors; it is {path}."
        raise ValueError(msg)
    if path.exists() and not overwrite:
        msg = f"There is already {path}: pass overwrite=True, or give another path."
        raise FileExistsError(msg)
    check_type("classifier", classifier, Classifier, "Give what freeze returns.")
    check_eager("save", classifier)
    made = models.recognise(linen_module(classifier)) or {}
    names = None if class_names is None else tuple(class_names)
    if isinstance(class_names, str) or not all(isinstance(n, str) for n in names or ()):
        msg = f"class_names must be a sequence of strings; it is {short(class_names)}."
        raise TypeError(msg)
    card = Card(**made, image_shape=image_shape, class_names=names)
    save_classifier(path, classifier, card)


def load(path: str | os.PathLike, model: Any = None) -> Classifier:
    """The classifier in a file that `save` or a command wrote.

    Args:
      path: of the file.
      model: what was frozen, as `freeze` takes it, whose own parameters do not matter;
        None where `models.create` makes it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, does not say which network it is of while no
        model is given, or its tensors are not those of the network.

    >>> import tempfile
    >>> model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(3)])
    >>> variables = model.init(jax.random.key(0), jax.numpy.ones((1, 2, 2, 1)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "dense.safetensors"
    ...     save(path, freeze(model, variables))
    ...     load(path, model).params["layers_1"]["kernel"].shape
    (4, 3)
    """
    return _load(Path(path), model)[0]


def save_classifier(path: str | Path, classifier: Classifier, card: Card):
    """Write parameters, state and what rebuilds the network, all or nothing."""
    tensors = to_tensors({"params": classifier.params, "state": classifier.state})
    module = _create(card) if card.model else linen_module(classifier)
    if module is not None:
        check_nested(classifier)
        check_linen(tensors, module, card.image_shape)
    write_tensors(Path(path), tensors, _entries(card, classifier.preprocess))


def save_with_card(
    path: Path, classifier: Classifier, card: Card, details: Mapping[str, Any]
) -> None:
    """`save_classifier`, and beside it a JSON file for people and scripts."""
    save_classifier(path, classifier, card)
    entries = _entries(card, classifier.preprocess) | dict(details)
    write_json(path.with_suffix(".json"), entries | {"versions": versions()})


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    packages = {name: version(name) for name in _PACKAGES}
    return packages | {"python": platform.python_version()}


def read_card(path: Path) -> tuple[Card, Preprocess | None] | None:
    """Card and pixels in a file, None where another library wrote it."""
    entries = read_tensors(path)[1] if is_safetensors(path) else None
    if entries is None:
        return None
    with prefixed(path):
        preprocess, card = _described(entries)
        return _complete(card), preprocess


def load_classifier(path: str | Path) -> tuple[Classifier, Card]:
    """The classifier that `save_classifier` wrote, and its card with an image shape."""
    classifier, card = _load(Path(path), None)
    with prefixed(path):
        return classifier, _complete(card)


def linen_module(classifier: Classifier) -> Any:
    """What was frozen, where that is a linen module."""
    return getattr(getattr(classifier.network, "module", None), "value", None)


def _load(path: Path, model: Any) -> tuple[Classifier, Card | None]:
    tensors, entries = read_tensors(path) if is_safetensors(path) else ({}, None)
    if entries is None:
        msg = f"{path} does not say which network it is of: only files that jaxunlearn wrote can be loaded. PyTorch's weights are read by models.torch_weights.from_torch."  # noqa: E501
        raise ValueError(msg)
    with prefixed(path):
        for name, tensor in tensors.items():
            if jax.dtypes.canonicalize_dtype(tensor.dtype) != tensor.dtype:
                msg = f"{name} is {tensor.dtype}, which JAX rounds unless jax_enable_x64 is set."  # noqa: E501
                raise ValueError(msg)
        preprocess, card = _described(entries)
        if model is None and not card.model:
            msg = "No model is given, and models.create makes none like it: load(path, model)."  # noqa: E501
            raise ValueError(msg)
        model = _create(card) if model is None else model
        if isinstance(model, nn.Module):
            check_linen(tensors, model, card.image_shape)
            variables = nested(jax.tree.map(jnp.asarray, tensors))
            return freeze(model, variables, preprocess=preprocess), card
        blank = freeze(model, preprocess=preprocess)
        tree = {"params": blank.params, "state": blank.state}
        check_leaves(tensors, to_tensors(tree))
        return blank.replace(**from_tensors(tensors, tree)), card


@contextlib.contextmanager
def prefixed(path: str | Path) -> Iterator[None]:
    """The file's name before what is wrong with it."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        msg = f"{path} holds no classifier that can be rebuilt. {error}"
        raise ValueError(msg) from error


def _entries(card: Card, preprocess: Preprocess | None) -> dict[str, Any]:
    """What is kept beside the tensors."""
    return to_dict(card) | {"preprocess": to_dict(preprocess)}


def _described(entries: dict[str, Any]) -> tuple[Preprocess | None, Card]:
    """The way back from `_entries`."""
    fields = entries.pop("preprocess", None)
    if fields is not None:
        fields = Preprocess(**vars(from_dict(_Pixels, fields, "preprocess.")))
    return fields, from_dict(Card, entries)


def _complete(card: Card) -> Card:
    if not card.model or card.image_shape is None:
        msg = (
            "It does not say the shape of its images, which the commands need: "
            "save(path, classifier, image_shape=(height, width, channels)), of a "
            "network that models.create makes."
        )
        raise ValueError(msg)
    return card


def _create(card: Card) -> nn.Module:
    return models.create(card.model, num_classes=card.num_classes, **card.options)
