"""Classifiers in files: of this library's format, or of PyTorch's weights."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier, Preprocess
from jaxunlearn.cli.flags import Command
from jaxunlearn.cli.settings import DataSet, Folder, Model, TrainingSettings
from jaxunlearn.models.files import Card, load_classifier, read_card
from jaxunlearn.models.torch_files import load_torch
from jaxunlearn.serialization import checksum, to_dict


class SavedClassifier(NamedTuple):
    """A classifier from a file."""

    path: Path
    classifier: Classifier
    card: Card

    def to_dict(self) -> dict[str, Any]:
        """What tells where it comes from."""
        card = to_dict(self.card)
        card["preprocess"] = to_dict(self.classifier.preprocess)
        return {"path": str(self.path), "sha256": checksum(self.path), "card": card}


def load_saved(path: Path, flag: str) -> SavedClassifier:
    """The classifier in a file that a flag names, in this library's format."""
    if read_card(path) is None:
        msg = (
            f"{flag} takes a .safetensors file that jaxunlearn wrote, and {path} is "
            "none. jaxunlearn convert makes one of PyTorch's weights."
        )
        raise ValueError(msg)
    saved = SavedClassifier(path, *load_classifier(path))
    tree = (saved.classifier.params, saved.classifier.state)
    for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
            msg = (
                f"{path} holds numbers that are not finite, in {path_name(where[1:])}: "
                "its training diverged. Take an earlier checkpoint."
            )
            raise ValueError(msg)
    return saved


@contextlib.contextmanager
def naming_flag() -> Iterator[None]:
    """The flag in place of what a caller of the library would do."""
    try:
        yield
    except ValueError as error:
        said, cure, _ = str(error).partition(": numpy.repeat(images")
        if not cure:
            raise
        msg = f"{said}: --grey-to-rgb makes them of grey ones."
        raise ValueError(msg) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedSettings(Command):
    """How to read a classifier from a file, and the data that it is for.

    Attributes:
      dataset: name of a data set; by default the one it was trained on.
      data_dir: where data sets are kept that are read from disk.
      grey_to_rgb: give grey images three equal channels, for a network of RGB images.
      model: of PyTorch's weights, the network.
      options: and its options, such as width=0.5, where the weights do not show them.
      size: and height and width to resize the data set's images to.
      image_shape: and the shape of its images, where no --dataset says it.
      mean: and mean of the pixels in units of [0, 1], to standardise them with; by
        default the data set's.
      std: and standard deviation of the pixels.
    """

    dataset: DataSet | None = None
    data_dir: Folder = None
    grey_to_rgb: bool = False
    model: Model | None = None
    options: Annotated[tuple[str, ...], "NAME=VALUE"] = ()
    size: Annotated[tuple[int, int] | None, "HEIGHT WIDTH"] = None
    image_shape: Annotated[tuple[int, int, int] | None, "HEIGHT WIDTH CHANNELS"] = None
    mean: Annotated[tuple[float, ...] | None, "NUMBER"] = None
    std: Annotated[tuple[float, ...] | None, "NUMBER"] = None

    def read(self, path: Path) -> SavedClassifier:
        """The classifier in a file of this library's or of PyTorch's weights."""
        if read_card(path) is None:
            return self._read_torch(path)
        names = ("model", "options", "size", "image_shape", "mean", "std")
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]
        if given:
            msg = f"{path} says itself what it holds: leave out {', '.join(given)}, which PyTorch's weights need."  # noqa: E501
            raise ValueError(msg)
        return load_saved(path, "--checkpoint")

    def _read_torch(self, path: Path) -> SavedClassifier:
        if self.model is None or (self.dataset is None and self.image_shape is None):
            msg = (
                f"jaxunlearn did not write {path}. If it holds PyTorch's weights, say "
                "of which --model, and give --dataset, or --image-shape with --mean "
                "and --std."
            )
            raise ValueError(msg)
        names = ("data_dir", "size", "grey_to_rgb", "mean", "std", "model", "options")
        given = {name: getattr(self, name) for name in names}
        settings = TrainingSettings(**given, dataset=self.dataset or "digits")
        settings.check()
        shape, pixels = self.image_shape, None
        if self.dataset is not None:
            shape, pixels = (
                settings.load("test").images.shape[1:],
                settings.preprocess(),
            )
        elif self.mean:
            pixels = Preprocess(self.mean, self.std)
        with naming_flag():
            classifier, card = load_torch(
                path,
                self.model,
                image_shape=shape,
                preprocess=pixels,
                options=settings.model_options(),
            )
        if self.dataset is not None:
            counts = {"number of classes": (card.num_classes, settings.num_classes())}
            other = f"the data set {self.dataset} has"
            check_same(counts, str(path), other, "give the one that it is of.")
            known = {"dataset": self.dataset, "size": self.size}
            known["class_names"] = settings.class_names()
            card = dataclasses.replace(card, **known)
        return SavedClassifier(path, classifier, card)


def load_companion(path: Path, flag: str, original: SavedClassifier) -> SavedClassifier:
    """Another classifier, of the same classes and images."""
    companion = load_saved(path, flag)
    both = (companion, original)
    compared = {
        "number of classes": [s.card.num_classes for s in both],
        "image shape": [list(s.card.image_shape) for s in both],
        "pixel range": [
            "any" if s.classifier.preprocess is None else "[0, 1]" for s in both
        ],
    }
    other = f"that of {original.path} is"
    check_same(compared, f"{flag} {path}", other, "they must be the same.")
    return companion


def check_same(
    compared: Mapping[str, Sequence[Any]], what: str, other: str, advice: str
) -> None:
    """Refuse a classifier of which something is not as that of another."""
    for name, (one, two) in compared.items():
        if one != two:
            msg = f"{what} holds a classifier of {name} {one}, and {other} {two}: {advice}"  # noqa: E501
            raise ValueError(msg)
