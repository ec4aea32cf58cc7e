"""What the commands can be told. Every default is written here or in what it nests."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from jaxunlearn import methods
from jaxunlearn.cli.distributed import Several
from jaxunlearn.cli.source import Classes, DataSet, Folder, check_names
from jaxunlearn.cli.trained import Trained
from jaxunlearn.methods import UNSC, CovarNav, Descent, Unprojected
from jaxunlearn.serialization import from_dict, read_json, to_dict
from jaxunlearn.tasks import Data, check_classes

# Those that start from a classifier and descend; the others train from scratch.
DESCENDING = [n for n, method in methods.by_name.items() if issubclass(method, Descent)]

_File = Annotated[Path, arg(metavar="FILE")]
_Rates = Annotated[tuple[float, ...], arg(metavar="[RATE ...]")]
_Methods = Annotated[tuple[str, ...], arg(metavar=f"{'|'.join(methods.by_name)} ...")]

# Where a run goes, and on how many processes, is not part of what it is.
_PLACES = (
    *("out", "overwrite", "config"),
    *(field.name for field in dataclasses.fields(Several)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Methods:
    """The unlearning methods' own settings, shared by the commands that unlearn.

    Attributes:
      learning_rates: the grid from which every method that descends takes its rate:
        the smallest whose Acc_r - Acc_f on validation data is within a point of the
        best. Empty: each method keeps its own, such as --unsc.learning-rate.
      covarnav: settings of CovarNav.
      unsc: settings of UNSC.
      unprojected: settings of the control without projection.
    """

    learning_rates: _Rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    covarnav: CovarNav = CovarNav()
    unsc: UNSC = UNSC()
    unprojected: Unprojected = Unprojected()

    def settings_of(self, name: str) -> Any:
        """The method of this name, as it is set."""
        own = getattr(self, name.replace("-", "_"), None)
        return methods.by_name[name]() if own is None else own

    def check_rates(self) -> None:
        """Refuse a grid of which not every entry is a learning rate."""
        for rate in self.learning_rates:
            if not 0 < rate < math.inf:
                msg = f"learning_rates must be positive and finite; one is {rate}."
                raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Several, Methods, Trained):
    """Train a classifier, forget classes with several methods, compare them.

    Attributes:
      forget: the classes to forget.
      methods: what to compare.
      checkpoint: start from this classifier instead of training one: a .safetensors
        file of jaxunlearn, which sets the defaults of --dataset, --size, --mean,
        --std, --model, --options and --split-seed; or PyTorch's parameters of that
        --model.
      judge_proxies: measure how well CovarNav's proxies stand in for the retained data,
        and what it does with true images instead.
      out: the run's folder; by default runs/DATASET-forget-CLASSES-seed-SEED.
      overwrite: replace what is there, once the new run is complete.
      config: the config.json of a run, whose values become the defaults of all flags.
    """

    forget: Annotated[tuple[int, ...], Classes] = (3,)
    methods: _Methods = ("covarnav", "unsc", "unprojected", "retrain")
    checkpoint: Annotated[Path | None, arg(metavar="FILE")] = None
    judge_proxies: bool = True
    out: Folder = None
    overwrite: bool = False
    config: Annotated[Path | None, arg(metavar="FILE")] = None

    @property
    def place(self) -> Path:
        """Where the run goes."""
        classes = "-".join(map(str, self.forget))
        name = f"{self.label}-forget-{classes}-seed-{self.seed}"
        return Path("runs") / name if self.out is None else self.out

    def check(self) -> None:
        """Check what can be checked before any data are read.

        Raises:
          TypeError: the network has no such option.
          ValueError: names, classes, rates or a seed are not what they can be.
        """
        super().check()
        self.check_processes()
        check_names("method", self.methods, list(methods.by_name))
        check_forget(self.forget, self.num_classes())
        self.check_rates()

    def plain(self) -> dict[str, Any]:
        """What makes two runs the same, as plain values: all but where they go."""
        plain = to_dict(self)
        return {name: plain[name] for name in plain if name not in _PLACES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlearn(Methods):
    """Forget classes in a saved classifier.

    Attributes:
      checkpoint: a .safetensors file of a training or a run.
      out: the .safetensors file to write.
      forget: the classes to forget, besides those that it has forgotten already.
      method: what to forget with.
      dataset: name of a data set; by default the one it was trained on.
      data_dir: where data sets are kept that are read from disk.
      seed: of everything drawn.
      overwrite: replace a file that is there.
    """

    checkpoint: _File
    out: _File
    forget: Annotated[tuple[int, ...], Classes]
    method: Annotated[str, arg(metavar="|".join(DESCENDING))] = "covarnav"
    dataset: Annotated[str | None, DataSet] = None
    data_dir: Folder = None
    seed: int = 0
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Accuracy of a saved classifier on every class.

    Attributes:
      checkpoint: a .safetensors file of a training or a run.
      forget: the classes that count as forgotten; by default those that it has
        forgotten according to the file.
      dataset: name of a data set; by default the one it was trained on.
      data_dir: where data sets are kept that are read from disk.
      split: train, validation or test.
      json: print JSON instead of a table.
    """

    checkpoint: _File
    forget: Annotated[tuple[int, ...] | None, Classes] = None
    dataset: Annotated[str | None, DataSet] = None
    data_dir: Folder = None
    split: Annotated[str, arg(metavar="train|validation|test")] = "test"
    json: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Download a data set and bring it into the form that the other commands read.

    Attributes:
      name: of an image set of TFDS, such as cifar10.
      data_dir: where to put it; by default $TFDS_DATA_DIR, or TFDS's own folder.
    """

    name: Annotated[str, arg(metavar="NAME"), Positional]
    data_dir: Folder = None


def read_config(path: Path) -> Run:
    """A run's stored configuration.

    Raises:
      ValueError: there is no such file, it is no JSON object, or what it holds does not
        fit.
    """
    if not path.is_file():
        msg = f"There is no file {path}: --config takes the config.json of a run."
        raise ValueError(msg)
    stored = read_json(path)
    try:
        return from_dict(Run(), stored)
    except (ValueError, TypeError) as error:
        msg = f"{path} is no configuration of a run. {error}"
        raise ValueError(msg) from error


def check_forget(classes: Sequence[int], num_classes: int) -> None:
    """Refuse classes that there are not, all of them, and none."""
    if not classes:
        msg = "--forget names no class: give at least one, as in --forget 3."
        raise ValueError(msg)
    check_classes(classes, num_classes, name="--forget")


def check_flags(flags: Sequence[str], settings: Methods) -> None:
    """Refuse a learning rate by hand that the grid would override without a word."""
    for name in DESCENDING:
        flag = f"--{name}.learning-rate"
        given = any(f.partition("=")[0].replace("_", "-") == flag for f in flags)
        if given and settings.learning_rates:
            msg = (
                f"{flag} has no effect next to a grid, from which every method takes "
                "its rate: change the grid, or empty it with --learning-rates and "
                "nothing after it."
            )
            raise ValueError(msg)


def check_image_shape(checkpoint: Path, expected: Sequence[int], data: Data) -> None:
    """Refuse images of another shape than a classifier was trained on."""
    shape = list(data.images.shape[1:])
    if shape != list(expected):
        msg = (
            f"{checkpoint} takes images of shape {list(expected)} and those of the "
            f"data set are {shape}."
        )
        raise ValueError(msg)
