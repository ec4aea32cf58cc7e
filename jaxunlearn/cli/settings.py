"""What the commands can be told. Every default is written here or in what it nests."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxunlearn import datasets, methods, models
from jaxunlearn.methods import UNSC, CovarNav, Retrain, Unprojected
from jaxunlearn.tasks import check_classes
from jaxunlearn.training import Recipe

RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Methods:
    """The unlearning methods' own settings, shared by the commands that unlearn.

    Attributes:
      learning_rates: the grid from which every method that descends takes its rate:
        the smallest whose Acc_r - Acc_f on validation data is within a point of the
        best. Empty: each method keeps its own rate.
      covarnav: settings of CovarNav.
      unsc: settings of UNSC.
      unprojected: settings of the control without projection.
    """

    learning_rates: tuple[float, ...] = RATES
    covarnav: CovarNav = CovarNav()
    unsc: UNSC = UNSC()
    unprojected: Unprojected = Unprojected()

    def settings_of(self, name: str) -> Any:
        """The method of this name, as it is set."""
        return Retrain() if name == "retrain" else getattr(self, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Methods):
    """Train a classifier, forget classes with several methods, compare them.

    Attributes:
      dataset: name of a data set.
      data_dir: where data sets are kept that are read from disk.
      model: name of a network.
      forget: the classes to forget.
      methods: what to compare.
      seed: of everything drawn, the validation samples included.
      out: the run's folder; by default runs/DATASET-forget-CLASSES-seed-SEED.
      overwrite: replace a run that is there.
      config: the config.json of a run, taken as the defaults of all other flags.
      recipe: how the original and the retrained classifier are trained.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    model: str = "smallcnn"
    forget: tuple[int, ...] = (3,)
    methods: tuple[str, ...] = ("covarnav", "unsc", "unprojected", "retrain")
    seed: int = 0
    out: Path | None = None
    overwrite: bool = False
    config: Path | None = None
    recipe: Recipe = Recipe()

    def checked(self) -> "Run":
        """The same with `out` filled in, after checking what can be checked now."""
        check_names("data set", [self.dataset], datasets.names())
        check_names("model", [self.model], models.names())
        check_names("method", self.methods, list(methods.by_name))
        check_classes(self.forget, datasets.num_classes(self.dataset), name="forget")
        if not self.forget:
            msg = "forget names no class: give at least one, as in --forget 3."
            raise ValueError(msg)
        if self.seed < 0:
            msg = f"seed must be 0 or more; it is {self.seed}."
            raise ValueError(msg)
        if any(rate <= 0 for rate in self.learning_rates):
            msg = f"learning_rates must be positive; they are {self.learning_rates}."
            raise ValueError(msg)
        if self.out is not None:
            return self
        classes = "-".join(map(str, self.forget))
        name = f"{self.dataset}-forget-{classes}-seed-{self.seed}"
        return dataclasses.replace(self, out=Path("runs") / name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlearn(Methods):
    """Forget classes in a saved classifier.

    Attributes:
      checkpoint: a .safetensors file of a run.
      method: what to forget with.
      forget: the classes to forget.
      dataset: name of a data set; by default the one it was trained on.
      data_dir: where data sets are kept that are read from disk.
      seed: of everything drawn.
      out: the .safetensors file to write.
      overwrite: replace a file that is there.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    method: str = "covarnav"
    forget: tuple[int, ...] = (3,)
    dataset: str | None = None
    data_dir: Path | None = None
    seed: int = 0
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Accuracy of a saved classifier on every class.

    Attributes:
      checkpoint: a .safetensors file of a run.
      forget: the classes that count as forgotten.
      dataset: name of a data set; by default the one it was trained on.
      data_dir: where data sets are kept that are read from disk.
      split: train, validation or test.
      json: print JSON instead of a table.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    forget: tuple[int, ...] = (3,)
    dataset: str | None = None
    data_dir: Path | None = None
    split: str = "test"
    json: bool = False


def check_names(what: str, names: Any, known: list[str]) -> None:
    """Refuse unknown names, listing the known ones."""
    names = list(names)
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) != len(names):
        found = (
            f"there is no {what} {unknown[0]!r}"
            if unknown
            else f"{what}s must be named once each; they are {names}"
        )  # noqa: E501
        msg = f"{found[0].upper()}{found[1:]}; there are: {', '.join(known)}."
        raise ValueError(msg)


def to_json(settings: Any) -> dict[str, Any]:
    """Settings as plain values that JSON can hold."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def from_json(default: Any, stored: dict[str, Any], where: str = "") -> Any:
    """`default` with the stored values in place of its own.

    Raises:
      ValueError: a stored name that there is not.

    >>> from_json(Run(), {"forget": [5], "covarnav": {"energy": 0.9}}).covarnav.energy
    0.9
    """
    fields = {field.name for field in dataclasses.fields(default)}
    values = {}
    for name, value in stored.items():
        if name not in fields:
            msg = f"The configuration holds {where + name!r}, which there is not; there are: {', '.join(sorted(fields))}."  # noqa: E501
            raise ValueError(msg)
        old = getattr(default, name)
        if dataclasses.is_dataclass(old) and isinstance(value, dict):
            values[name] = from_json(old, value, f"{where}{name}.")
        elif isinstance(value, list):
            values[name] = tuple(value)
        elif name in ("out", "data_dir", "config") and value is not None:
            values[name] = Path(value)
        else:
            values[name] = value
    return dataclasses.replace(default, **values)


def read_config(path: Path) -> Run:
    """A run's stored configuration.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no JSON object, or holds unknown names.
    """
    if not path.is_file():
        msg = f"There is no file {path}: --config takes the config.json of a run."
        raise FileNotFoundError(msg)
    try:
        stored = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        msg = f"{path} is no JSON: {error}."
        raise ValueError(msg) from error
    if not isinstance(stored, dict):
        msg = f"{path} must hold a JSON object; it holds a {type(stored).__name__}."
        raise ValueError(msg)  # noqa: TRY004
    return from_json(Run(), stored)
