"""`jaxunlearn plan`: what a request would take, before anything of it runs."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from rich.table import Table

from jaxunlearn import datasets, methods, models, parallel
from jaxunlearn.checks import check_count
from jaxunlearn.classifier.classifier import Preprocess, freeze
from jaxunlearn.cli.classes import class_names, forget_numbers
from jaxunlearn.cli.console import consoles, loaded, table
from jaxunlearn.cli.flags import Command
from jaxunlearn.cli.settings import (
    Classes,
    DataSet,
    File,
    Folder,
    Model,
    as_trained_on,
)
from jaxunlearn.models.files import Card, read_card
from jaxunlearn.nullspace.rank_rules import choose_rule
from jaxunlearn.planning import (
    Amounts,
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
class Plan(Amounts, Command):
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
      images_per_class: inverted images of each retained class, where the method
        inverts any.
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

    model: Model = "smallcnn"
    options: Annotated[tuple[str, ...], "NAME=VALUE"] = ()
    checkpoint: File | None = None
    dataset: DataSet | None = None
    data_dir: Folder = None
    image_shape: Annotated[tuple[int, int, int] | None, "HEIGHT WIDTH CHANNELS"] = None
    num_classes: int | None = None
    images: int | None = None
    forget: Classes = (0,)
    method: Literal[*_METHODS] = "covarnav"
    images_per_class: int = 32
    energy: float | None = None
    rank: int | None = None
    protected_fraction: float | None = None
    rtol: float | None = None
    compile: bool = False
    measure: bool = False
    json: bool = False

    def workload(self, retained: int, retained_classes: int) -> Workload:
        """How much there is to do, of `retained` images."""
        rules = [self.energy, self.rank, self.protected_fraction, self.rtol]
        if rules == [None] * 4:
            rules[0] = 0.99
        kind = methods.by_name[self.method]
        inverts = "images_per_class" in kind.__dataclass_fields__
        given = {"images_per_class": self.images_per_class} if inverts else {}
        return Workload(
            **kind(**given).reads(retained, retained_classes),
            rule=choose_rule(*rules),
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(Amounts)},
        )

    def run(self) -> None:
        """Print the layers and the stages."""
        results, progress = consoles()
        card = None if self.checkpoint is None else _card(self.checkpoint)
        shape, classes, retained_classes, images = self.sizes(card)
        workload = self.workload(images, retained_classes)
        if card is None:
            name, options = self.model, models.parse_options(self.model, self.options)
        else:
            name, options = card.model, card.options
        module = models.create(name, num_classes=classes, **options)
        network = freeze(module, {"params": {}}).network
        classifier = abstract_classifier(network, shape, _PIXELS)
        if self.measure:
            progress.print("Timing three runs of each stage on this machine.")
        how = {"compile": self.compile, "measure": self.measure}
        request = plan(classifier, shape, workload, **how)
        if self.json:
            results.print(json.dumps(dataclasses.asdict(request), indent=1))
            return
        results.print(_layers(request.layers))
        results.print(_stages(request.stages))
        memory = "estimated from shapes; see --compile"
        memory = "what XLA asks for" if self.compile or self.measure else memory
        seconds = "Compilation comes on top of the seconds."
        seconds = seconds if self.measure else "For seconds: --measure."
        text = f"rows: of one image. rank: by data, where these decide. Memory is {memory}. {seconds}"  # noqa: E501
        results.print(textwrap.fill(text, 80))
        for stage in request.stages:
            if stage.fitting_batch is not None:
                results.print(textwrap.fill(_cure(stage, request.free_bytes), 80))

    def sizes(self, card: Card | None) -> tuple[tuple[int, ...], int, int, int]:
        """Shape of an image, classes, and the classes and images that are retained."""
        shape, classes, images = self.image_shape, self.num_classes, self.images
        labels, names = None, None
        if card is not None:
            shape, classes = shape or card.image_shape, classes or card.num_classes
            names = card.class_names
        if self.dataset is not None:
            name, where = self.dataset, {"data_dir": self.data_dir}
            (data,) = loaded(
                ["train"], lambda split: datasets.load(name, split, **where)
            )
            if card is not None:
                tail = card.imbalance, card.split_seed
                data = as_trained_on(data, "train", *tail)
            shape, labels = shape or data.images.shape[1:], data.labels
            classes = classes or datasets.num_classes(name, **where)
            names = class_names(name, self.data_dir)
        needed = {"--image-shape": shape, "--num-classes": classes}
        if self.workload(1, 1) != self.workload(2, 1) and labels is None:
            needed["--images"] = images
        missing = [flag for flag, value in needed.items() if value is None]
        if missing:
            msg = f"The sizes of the data are unknown: give --dataset, or {' and '.join(missing)}."  # noqa: E501
            raise ValueError(msg)
        for flag, size in (*needed.items(), ("--images", images)):
            for value in np.ravel(size if size is not None else 1):
                check_count(flag, int(value))
        needed, free = 4 * math.prod(map(int, shape)), parallel.free_memory()
        if needed > free:
            msg = f"One image of shape {list(shape)} takes {_bytes(needed)}, and {_bytes(free)} are free: give a smaller --image-shape."  # noqa: E501
            raise ValueError(msg)
        forget = forget_numbers(self.forget, names, classes)
        if images is None:
            images = 0 if labels is None else int((~np.isin(labels, forget)).sum())
        return tuple(shape), classes, classes - len(forget), images


def _card(path: Path) -> Card:
    known = path.suffix == ".safetensors" and path.is_file()
    described = read_card(path) if known else None
    if described is None:
        msg = f"--checkpoint takes a .safetensors file that jaxunlearn wrote; it is {path}."  # noqa: E501
        raise ValueError(msg)
    return described[0]


def _layers(layers: Sequence[LayerPlan]) -> Table:
    numbers = ("g", "d", "out", "rows", "rank", "moment")
    rows = table("layers", ["weight", "kind"], numbers)
    for layer in layers:
        sizes = map(str, (layer.g, layer.d, layer.out, layer.rows))
        rank = "by data" if layer.rank is None else str(layer.rank)
        rows.add_row(layer.path, layer.kind, *sizes, rank, _bytes(layer.moment_bytes))
    return rows


def _stages(stages: Sequence[StagePlan]) -> Table:
    rows = table("stages", ["stage"], ("runs", "FLOPs", "memory", "seconds"))
    for stage in stages:
        seconds = "" if stage.seconds is None else f"{stage.seconds:.3g}"
        numbers = (str(stage.runs), f"{stage.flops:.2e}", _bytes(stage.bytes), seconds)
        rows.add_row(stage.name, *numbers)
    return rows


# What makes a stage smaller.
_BATCHES = {
    "inversion": "--inversion-batch-size",
    "statistics": "--batch-size",
    "steps": "--step-batch-size",
}


def _cure(stage: StagePlan, free: int) -> str:
    """What to do about a stage that does not fit."""
    text = f"{stage.name} needs {_bytes(stage.bytes)}, and {_bytes(free)} are free: "
    if stage.fitting_batch and stage.name in _BATCHES:
        return f"{text}{_BATCHES[stage.name]} {stage.fitting_batch} would fit."
    return f"{text}no batch is small enough; take a smaller network or image."


def _bytes(count: float) -> str:
    """In decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
