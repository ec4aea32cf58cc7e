"""Settings that several commands share, as dataclasses of flags, and their checks."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from jaxtyping import Array, UInt8

from jaxunlearn import datasets, methods, models, parallel
from jaxunlearn.classifier.classifier import (
    Classifier,
    Preprocess,
    check_images,
    freeze,
)
from jaxunlearn.cli.classes import class_names, forget_numbers, forget_sets
from jaxunlearn.cli.console import loaded
from jaxunlearn.cli.flags import Command
from jaxunlearn.cli.pieces import Pieces
from jaxunlearn.datasets.splits import SPLITS
from jaxunlearn.methods.rules import ClassRule, SampleRule
from jaxunlearn.models.files import Card, save_with_card, versions
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, check_imbalance, long_tailed
from jaxunlearn.training.recipe import Recipe

Folder = Annotated[Path | None, "FOLDER"]
File = Annotated[Path, "FILE"]
Classes = Annotated[tuple[int | str, ...], "CLASS"]
DataSet = Annotated[str, "NAME|FILE.npz|FOLDER"]
Model = Literal[*models.names()]
Method = Literal[*methods.by_name]
# Those that start from the classifier that there is.
UnlearningMethod = Literal[
    *(n for n, m in methods.by_name.items() if not getattr(m, "from_scratch", False))
]
Rates = Annotated[tuple[float, ...], "RATE"]

RATE_RULE = ClassRule.sentence
SAMPLE_RATE_RULE = SampleRule.sentence

# The field that holds a method's settings.
_FIELDS = {name: name.replace("-", "_") for name in methods.by_name}

_PerMethod = dataclasses.make_dataclass(
    "_PerMethod",
    [
        (_FIELDS[name], method, method())
        for name, method in methods.by_name.items()
        if dataclasses.fields(method)
    ],
    frozen=True,
    kw_only=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSettings(Command, _PerMethod):
    """The unlearning methods' own settings: a field for each of `methods.by_name`.

    Attributes:
      learning_rates: the grid from which every method that descends takes its rate:
        the smallest whose Acc_r - Acc_f on validation data is within a point of the
        best; of samples, the smallest whose accuracy on them is nearest, within a
        point, to that on validation samples of their classes, and costs at most a point
        of validation accuracy. Empty: each method keeps its own, such as
        --unsc.learning-rate. A method that tunes another field has a grid of its own,
        unless that is given by hand.
    """

    learning_rates: Rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)

    @classmethod
    def from_flags(cls, given: Mapping[str, Any]) -> Command:
        """Refuses a rate by hand that the grid would override without a word."""
        settings = super().from_flags(given)
        for name, method in methods.by_name.items():
            by_hand = "learning_rate" in given.get(_FIELDS[name], {})
            tuned = getattr(method, "tuned", None) == "learning_rate"
            if tuned and by_hand and settings.learning_rates:
                msg = (
                    f"--{name}.learning-rate has no effect next to a grid, from which "
                    "every method takes its rate: change the grid, or empty it with "
                    "--learning-rates and nothing after it."
                )
                raise ValueError(msg)
        return settings

    @classmethod
    def unused(cls, given: Mapping[str, Any]) -> set[str]:
        """The settings of methods other than --methods or --method names."""
        named = given.get("methods") or given.get("method") or list(methods.by_name)
        named = [named] if isinstance(named, str) else named
        return {_FIELDS[n] for n in _FIELDS if n not in named}

    def settings_of(self, name: str) -> Any:
        """The method of this name, as it is set."""
        own = getattr(self, _FIELDS[name], None)
        return methods.by_name[name]() if own is None else own

    def grid_of(self, name: str) -> tuple[float, ...]:
        """What the method of this name takes the field from that it tunes."""
        kind, method = methods.by_name[name], self.settings_of(name)
        tuned = getattr(kind, "tuned", None)
        if tuned == "learning_rate":
            return self.learning_rates
        by_hand = tuned is None or getattr(method, tuned) != getattr(kind(), tuned)
        return () if by_hand else kind.grid

    def check(self) -> None:
        """Refuse a grid of which not every entry is a learning rate."""
        super().check()
        for rate in self.learning_rates:
            if not 0 < rate < math.inf:
                msg = f"learning_rates must be positive and finite; one is {rate}."
                raise ValueError(msg)

    def to_dict(self, used: Sequence[str], without: Sequence[str]) -> dict[str, Any]:
        """What decides about the result: settings of the methods used, and the rest."""
        unused = self.unused({"methods": used})
        return {n: v for n, v in to_dict(self).items() if n not in {*unused, *without}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings(Command):
    """A data set, a network and how to train it.

    Attributes:
      dataset: an .npz file, a folder with one folder of images a class, or any image
        set of TFDS that lies in --data-dir, such as cifar10; digits need no files.
      data_dir: where TFDS keeps its sets; by default $TFDS_DATA_DIR.
      size: height and width to resize the images to; by default they stay as they are.
      channels: how many the images of an .npz file have, where neither 1, 3 nor 4.
      grey_to_rgb: give grey images three equal channels, for a network of RGB images.
      mean: mean of the pixels in units of [0, 1], one number or one a channel, to
        standardise them with; by default the data set's.
      std: standard deviation of the pixels, likewise.
      model: the network.
      options: options of the network, such as width=0.5.
      split_seed: which samples are for validation.
      recipe: how the classifier is trained.
      imbalance: train on a long tail: class 0 keeps as many training samples as the
        smallest class has, the last this factor fewer, and those between fall off
        exponentially; validation and test stay whole.
      refresh_statistics: take running statistics of BatchNorm again once a network is
        trained, of its training images and without dropout; for networks that drop out
        before they normalise, such as alexnet.
    """

    dataset: DataSet = "digits"
    data_dir: Folder = None
    size: Annotated[tuple[int, int] | None, "HEIGHT WIDTH"] = None
    channels: int | None = None
    grey_to_rgb: bool = False
    mean: Annotated[tuple[float, ...] | None, "NUMBER"] = None
    std: Annotated[tuple[float, ...] | None, "NUMBER"] = None
    model: Model = "smallcnn"
    options: Annotated[tuple[str, ...], "NAME=VALUE"] = ()
    split_seed: int | None = None
    recipe: Recipe = Recipe()
    refresh_statistics: bool = False
    imbalance: float | None = None

    @property
    def validation_seed(self) -> int:
        """Which samples are for validation."""
        return self.split_seed or 0

    def check(self) -> None:
        """Check what can be checked before any data are read."""
        super().check()
        self.model_options()
        if bool(self.mean) != bool(self.std):
            msg = "--mean and --std go together: give both, or neither."
            raise ValueError(msg)
        if self.mean:
            Preprocess(self.mean, self.std)
        check_seed(self.validation_seed, "--split-seed")
        if self.imbalance is not None:
            check_imbalance("--imbalance", self.imbalance)

    @property
    def _reading(self) -> dict[str, Any]:
        seed = self.validation_seed
        given = {"data_dir": self.data_dir, "seed": seed, "size": self.size}
        return given | {"channels": self.channels}

    def load(self, split: str) -> Data:
        """One split of the data set; of training samples the long tail."""
        data = datasets.load(self.dataset, split, **self._reading)
        data = as_trained_on(data, split, self.imbalance, self.validation_seed)
        return as_rgb(data) if self.grey_to_rgb else data

    def load_splits(self) -> dict[str, Data]:
        """All splits of the data set."""
        return dict(zip(SPLITS, loaded(SPLITS, self.load), strict=True))

    def preprocess(self) -> Preprocess:
        """How pixels are standardised."""
        if self.mean:
            return Preprocess(self.mean, self.std)
        return datasets.preprocess(self.dataset, **self._reading)

    def num_classes(self) -> int:
        """How many classes the data set has."""
        return datasets.num_classes(self.dataset, data_dir=self.data_dir)

    def class_names(self) -> tuple[str, ...] | None:
        """What the classes are called, where that is more than their numbers."""
        return class_names(self.dataset, self.data_dir)

    def forget_numbers(self, words: Sequence[int | str]) -> tuple[int, ...]:
        """Numbers of the classes that --forget names."""
        return forget_numbers(words, self.class_names(), self.num_classes())

    def forget_sets(self, words: Sequence[str]) -> str | list[tuple[int, ...]]:
        """A set of classes for each word of --forget, or "each"."""
        return forget_sets(words, self.class_names(), self.num_classes())

    def model_options(self) -> dict[str, Any]:
        """The network's options as `models.create` takes them."""
        return models.parse_options(self.model, self.options)

    def create(self) -> Any:
        """The network, without parameters."""
        options = self.model_options()
        return models.create(self.model, num_classes=self.num_classes(), **options)

    def check_images(self, images: UInt8[np.ndarray, "n h w c"]) -> None:
        """Refuse images that the network or --mean is not for; nothing is computed."""
        if self.mean:
            check_images(images, Preprocess(self.mean, self.std))
        network = freeze(self.create(), {"params": {}}).network
        shape = images.shape[1:]
        jax.eval_shape(lambda key: network.init(key, shape), jax.random.key(0))

    @property
    def label(self) -> str:
        """The data set in the name of a folder."""
        path = Path(self.dataset)
        here = path.suffix == ".npz" or path.exists()
        if here and self.dataset not in datasets.names():
            return path.resolve().stem
        return re.sub(r"[^\w.]+", "-", self.dataset)

    def save(
        self,
        folder: Pieces,
        file: str,
        classifier: Classifier,
        details: Mapping[str, Any],
        **entries: Any,
    ) -> None:
        """Write a classifier with its card, of which `entries` are the rest."""
        card = Card(
            model=self.model,
            num_classes=self.num_classes(),
            class_names=self.class_names(),
            options=self.model_options(),
            dataset=self.dataset,
            size=self.size,
            split_seed=self.validation_seed,
            imbalance=self.imbalance,
            **entries,
        )
        folder.write(
            f"{file}.safetensors",
            lambda path: save_with_card(path, classifier, card, details),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeededSettings(TrainingSettings):
    """Of a command that trains one classifier.

    Attributes:
      seed: random seed of everything: parameters, order of samples, labels.
      split_seed: which samples are for validation; by default --seed.
    """

    seed: int = 0

    @property
    def validation_seed(self) -> int:
        """Which samples are for validation."""
        return self.seed if self.split_seed is None else self.split_seed

    def check(self) -> None:
        """Check what can be checked before any data are read."""
        check_seed(self.seed)  # of which the split's seed is by default the same
        super().check()


def circumstances(splits: Mapping[str, Data]) -> dict[str, Any]:
    """What a record says of where it comes from."""
    return {
        "samples": {split: len(data) for split, data in splits.items()},
        "versions": versions(),
        "device": parallel.device_kind(),
        "devices": parallel.device_count(),
        "processes": parallel.process_count(),
    }


def keys(seed: int) -> tuple[Array, Array]:
    """What the original is trained from, and what every method starts from."""
    original, method = jax.random.split(jax.random.key(seed))
    return original, method


def check_seed(seed: int, name: str = "--seed") -> None:
    """Refuse a seed that some random generator would."""
    if not 0 <= seed < 2**32:
        msg = f"{name} must be 0 or more and less than 2**32; it is {seed}."
        raise ValueError(msg)


def as_trained_on(
    data: Data, split: str, imbalance: float | None, split_seed: int
) -> Data:
    """A split as a network meets it: the training samples may be a long tail.

    The split's seed draws it, so that a card tells which samples these are.
    """
    if split != "train" or imbalance is None:
        return data
    return long_tailed(data, imbalance, seed=split_seed)


def as_rgb(data: Data) -> Data:
    """Grey images with three equal channels."""
    if data.images.shape[-1] != 1:
        msg = f"--grey-to-rgb is for images of one channel; these have {data.images.shape[-1]}."  # noqa: E501
        raise ValueError(msg)
    images = np.repeat(np.asarray(data.images), 3, axis=-1)
    return Data(images, data.labels, data.class_names)


def channels_of(card: Card) -> int | None:
    """What `channels` of a data set is to say of a classifier's images."""
    channels = card.image_shape[2]
    return None if channels in (1, 3, 4) else channels
