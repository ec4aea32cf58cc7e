"""Which images and which network: what the commands that train have in common."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from jaxtyping import UInt8
from tyro.conf import arg

from jaxunlearn import datasets, models
from jaxunlearn.classifier.classifier import Preprocess, check_images, freeze
from jaxunlearn.tasks import Data

Folder = Annotated[Path | None, arg(metavar="FOLDER")]
Classes = arg(metavar="CLASS [CLASS ...]")
_DATA_SETS = f"{'|'.join(datasets.names())}|TFDS-NAME|FILE.npz|FOLDER"
DataSet = arg(metavar=_DATA_SETS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set and a network.

    Attributes:
      dataset: a data set by name (any image set of TFDS that lies in --data-dir), an
        .npz file, or a folder with one folder of images a class.
      data_dir: where TFDS keeps its sets; by default $TFDS_DATA_DIR.
      size: height and width to resize the images to; by default they stay as they are.
      mean: of the pixels in units of [0, 1], one number or one a channel, to
        standardise them with; by default the data set's.
      std: their standard deviation, likewise.
      model: name of a network.
      options: of the network, such as width=0.5.
    """

    dataset: Annotated[str, DataSet] = "digits"
    data_dir: Folder = None
    size: Annotated[tuple[int, int] | None, arg(metavar="HEIGHT WIDTH")] = None
    mean: Annotated[tuple[float, ...] | None, arg(metavar="NUMBER ...")] = None
    std: Annotated[tuple[float, ...] | None, arg(metavar="NUMBER ...")] = None
    model: Annotated[str, arg(metavar="|".join(models.names()))] = "smallcnn"
    options: Annotated[tuple[str, ...], arg(metavar="[NAME=VALUE ...]")] = ()

    def check(self) -> None:
        """Check what can be checked before any data are read.

        Raises:
          TypeError: the network has no such option.
          ValueError: names, options, mean or std are not what they can be.
        """
        check_names("model", [self.model], models.names())
        self.model_options()
        if (self.mean is None) != (self.std is None):
            msg = "--mean and --std go together: give both, or neither."
            raise ValueError(msg)
        if self.mean is not None:
            Preprocess(self.mean, self.std)

    def load(self, split: str, seed: int) -> Data:
        """One split of the data set; `seed` picks the validation samples."""
        folder = self._data_dir()
        size = self.size
        return datasets.load(self.dataset, split, data_dir=folder, seed=seed, size=size)

    def preprocess(self, seed: int) -> Preprocess:
        """How pixels are standardised."""
        if self.mean is not None:
            return Preprocess(self.mean, self.std)
        return datasets.preprocess(
            self.dataset, data_dir=self._data_dir(), seed=seed, size=self.size
        )

    def num_classes(self) -> int:
        """How many classes the data set has."""
        return datasets.num_classes(self.dataset, data_dir=self._data_dir())

    def model_options(self) -> dict[str, Any]:
        """The network's options as `models.create` takes them."""
        return models.parse_options(self.model, self.options)

    def create(self) -> Any:
        """The network, without parameters."""
        options = self.model_options()
        return models.create(self.model, num_classes=self.num_classes(), **options)

    def check_images(self, images: UInt8[np.ndarray, "n h w c"]) -> None:
        """Refuse images that the network or --mean is not for; nothing is computed.

        Raises:
          ValueError: they are too small, or have another number of channels.
        """
        if self.mean is not None:
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

    def _data_dir(self):
        return None if self.data_dir is None else str(self.data_dir)


def check_names(what: str, names, known) -> None:
    """Refuse unknown and repeated names, and none at all, listing the known ones."""
    there = f"there are: {', '.join(known)}."
    if not names:
        msg = f"Give at least one {what}; {there}"
        raise ValueError(msg)
    for name in names:
        if name not in known:
            msg = f"There is no {what} {name!r}; {there}"
            raise ValueError(msg)
        if names.count(name) > 1:
            msg = f"The {what} {name!r} is given more than once."
            raise ValueError(msg)


def check_seed(seed: int, name: str = "--seed") -> None:
    """Refuse a seed that some random generator would."""
    if not 0 <= seed < 2**32:
        msg = f"{name} must be 0 or more and less than 2**32; it is {seed}."
        raise ValueError(msg)
