"""`jaxunlearn plan`: what a request would take, before anything of it runs."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from rich import box
from rich.table import Table

from jaxunlearn import datasets, methods, models
from jaxunlearn.classifier.classifier import Preprocess, freeze
from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.flags import Command
from jaxunlearn.cli.settings import (
    Classes,
    DataSet,
    File,
    Folder,
    Model,
    check_forget,
    check_names,
    text_of,
)
from jaxunlearn.models.files import Card, read_card
from jaxunlearn.nullspace.rank_rules import choose_rule
from jaxunlearn.planning import (
    LayerPlan,
    StagePlan,
    Workload,
    abstract_classifier,
    plan,
)

# Pixels are standardised, with numbers that make no difference to the cost.
_PIXELS = Preprocess(0.5, 0.5)

# Those that say how many images they read or invert.
_METHODS = [name for name, kind in methods.by_name.items() if hasattr(kind, "reads")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Command):
    """The memory and operations of a request, from shapes alone; its time on demand.

    Attributes:
      model: the network.
      options: options of the network, such as width=0.5.
      checkpoint: plan for the classifier in this .safetensors file instead.
      dataset: count the images and classes of this data set.
      data_dir: where data sets are kept that are read from disk.
      image_shape: shape of images that are not at hand.
      num_classes: how many classes they are of.
      images: how many retained images there are.
      forget: the classes to forget.
      method: says how many images are inverted, and of how many moments are taken.
      batch_size: images of a batch of moments.
      images_per_class: inverted images of each retained class, where the method
        inverts any.
      inversion_steps: steps of the inversion.
      inversion_batch_size: images optimised together.
      steps: unlearning steps.
      step_batch_size: images of each.
      energy: protect this share of the inputs' energy; the default rule, with .99.
      rank: or so many directions of each layer.
      protected_fraction: or this share of a layer's directions.
      rtol: or directions above this share of the largest singular value.
      compile: compile the programs, and say what memory they ask for, to the byte.
      measure: time three runs of each stage's program on this machine.
      json: print JSON instead of tables.
    """

    examples = (
        "jaxunlearn plan --dataset digits --method unsc",
        "jaxunlearn plan --model resnet50 --image-shape 224 224 3 --num-classes 1000",
    )
    choices = {"model": models.names(), "method": _METHODS}

    model: Model = "smallcnn"
    options: Annotated[tuple[str, ...], "NAME=VALUE"] = ()
    checkpoint: File | None = None
    dataset: DataSet | None = None
    data_dir: Folder = None
    image_shape: Annotated[tuple[int, int, int] | None, "HEIGHT WIDTH CHANNELS"] = None
    num_classes: int | None = None
    images: int | None = None
    forget: Classes = (0,)
    method: Annotated[str, "METHOD"] = "covarnav"
    batch_size: int = 256
    images_per_class: int = 32
    inversion_steps: int = 500
    inversion_batch_size: int = 256
    steps: int = 100
    step_batch_size: int = 256
    energy: float | None = None
    rank: int | None = None
    protected_fraction: float | None = None
    rtol: float | None = None
    compile: bool = False
    measure: bool = False
    json: bool = False

    def workload(self, retained: int, num_classes: int) -> Workload:
        """How much there is to do, of `retained` images of `num_classes` classes."""
        rules = (self.energy, self.rank, self.protected_fraction, self.rtol)
        energy = 0.99 if rules == (None,) * 4 else self.energy
        rule = choose_rule(energy, *rules[1:])
        kind = methods.by_name[self.method]
        fields = {field.name for field in dataclasses.fields(kind)}
        given = {"images_per_class": self.images_per_class}
        method = kind(**{name: n for name, n in given.items() if name in fields})
        return Workload(
            **method.reads(retained, num_classes - len(self.forget)),
            batch_size=self.batch_size,
            rule=rule,
            inversion_steps=self.inversion_steps,
            inversion_batch_size=self.inversion_batch_size,
            steps=self.steps,
            step_batch_size=self.step_batch_size,
        )

    def run(self) -> None:
        """Print the layers and the stages."""
        print_plan(self)


def print_plan(settings: Plan) -> None:
    """Print the layers and the stages."""
    results, progress = consoles()
    check_names("method to be planned", [settings.method], _METHODS)
    shape, classes, images = _sizes(settings)
    check_forget(settings.forget, classes)
    workload = settings.workload(images, classes)
    network = freeze(_module(settings, classes), {"params": {}}).network
    classifier = abstract_classifier(network, shape, _PIXELS)
    if settings.measure:
        progress.print("Timing three runs of each stage on this machine.")
    how = {"compile": settings.compile, "measure": settings.measure}
    request = plan(classifier, shape, workload, **how)
    if settings.json:
        results.print(json.dumps(dataclasses.asdict(request), indent=1))
        return
    results.print(_layers(request.layers))
    results.print(_stages(request.stages))
    asked = settings.compile or settings.measure
    results.print(
        "rows: of one image. rank: by data, where these decide. Memory is "
        + ("what XLA\nasks for." if asked else "estimated\nfrom shapes; see --compile.")
        + (
            " Compilation comes on top of the seconds."
            if settings.measure
            else " For seconds: --measure."
        )
    )


def _sizes(settings: Plan) -> tuple[tuple[int, ...], int, int]:
    """Shape of an image, number of classes, number of retained images."""
    shape, classes, images = (
        settings.image_shape,
        settings.num_classes,
        settings.images,
    )
    if settings.checkpoint is not None:
        card = _card(settings.checkpoint)
        shape, classes = shape or card.image_shape, classes or card.num_classes
    if settings.dataset is not None:
        folder = text_of(settings.data_dir)
        data = datasets.load(settings.dataset, "train", data_dir=folder)
        retained = ~np.isin(data.labels, settings.forget)
        shape = shape or data.images.shape[1:]
        images = images or int(retained.sum())
        classes = classes or datasets.num_classes(settings.dataset, data_dir=folder)
    needed = {"--image-shape": shape, "--num-classes": classes}
    one, two = (settings.workload(n, len(settings.forget) + 1) for n in (1, 2))
    if one != two:
        needed["--images"] = images
    missing = [flag for flag, value in needed.items() if value is None]
    if missing:
        msg = f"The sizes of the data are unknown: give --dataset, or {' and '.join(missing)}."  # noqa: E501
        raise ValueError(msg)
    return tuple(shape or ()), int(classes or 0), int(images or 0)


def _card(path: Path) -> Card:
    known = path.suffix == ".safetensors" and path.is_file()
    read = read_card(path) if known else None
    if read is None:
        msg = f"--checkpoint takes a .safetensors file that jaxunlearn wrote; it is {path}."  # noqa: E501
        raise ValueError(msg)
    return read[0]


def _module(settings: Plan, classes: int):
    if settings.checkpoint is not None:
        card = _card(settings.checkpoint)
        return models.create(card.model, num_classes=classes, **card.options)
    check_names("model", [settings.model], models.names())
    options = models.parse_options(settings.model, settings.options)
    return models.create(settings.model, num_classes=classes, **options)


def _layers(layers: Sequence[LayerPlan]) -> Table:
    table = Table(title="layers", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("weight", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for heading in ("g", "d", "out", "rows", "rank", "moment"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in layers:
        sizes = (layer.g, layer.d, layer.out, layer.rows)
        rank = "by data" if layer.rank is None else str(layer.rank)
        table.add_row(
            layer.path, layer.kind, *map(str, sizes), rank, _bytes(layer.moment_bytes)
        )
    return table


def _stages(stages: Sequence[StagePlan]) -> Table:
    table = Table(title="stages", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    for heading in ("runs", "FLOPs", "memory", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in stages:
        table.add_row(
            stage.name,
            str(stage.runs),
            f"{stage.flops:.2e}",
            _bytes(stage.bytes),
            _seconds(stage),
        )
    return table


def _seconds(stage: StagePlan) -> str:
    return "" if stage.seconds is None else f"{stage.seconds:.3g}"


def _bytes(count: float) -> str:
    """In decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
