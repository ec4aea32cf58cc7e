"""What an inversion should start from: noise, or the images that are to be forgotten.

Small networks with and without BatchNorm, trained here. Every way to come by proxies is
judged by the energy of true retained inputs that its leading directions capture, layer
by layer, and with --end by what CovarNav does with it at the rate that validation data
choose.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn import datasets, models, training
from jaxunlearn.metrics import feature_layers, relative_change
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.proxies import proxy_quality
from jaxunlearn.models.files import versions
from jaxunlearn.parallel import device_kind
from jaxunlearn.serialization import to_dict
from jaxunlearn.training import Recipe


class PlainCNN(nn.Module):
    """`SmallCNN` without BatchNorm."""

    num_classes: int
    width: int = 16

    @nn.compact
    def __call__(self, x, train=False):
        """Logits; training and inference are the same."""
        for factor, stride in ((1, 1), (2, 2), (4, 2)):
            x = nn.relu(nn.Conv(factor * self.width, (3, 3), stride)(x))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


def _named(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: models.create(name, num_classes=10, **options)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A data set at a size, a network, and how it is trained on so many images."""

    dataset: str
    network: Callable[[], nn.Module]
    recipe: Recipe
    size: tuple[int, int] | None = None
    images: int = 2000


_QUICK = Recipe(epochs=5, learning_rate=0.03)
CELLS = {
    "digits, plain": Cell(
        "digits", lambda: PlainCNN(10), Recipe(epochs=30, learning_rate=0.05)
    ),
    "digits, smallcnn": Cell("digits", _named("smallcnn"), Recipe()),
    "Fashion-MNIST, LeNet-5": Cell(
        "fashion_mnist", _named("lenet5"), _QUICK, images=10000
    ),
    "Fashion-MNIST, smallcnn": Cell(
        *("fashion_mnist", _named("smallcnn", width=8), Recipe(epochs=6)),
        *((14, 14), 12000),
    ),
    "CIFAR-10, ResNet-18": Cell(
        *("cifar10", _named("resnet18", width=8)),
        *(Recipe(epochs=8, crop_padding=2, flip=True), (16, 16), 12000),
    ),
}

# The floors, the two starts, the ceiling.
SOURCES: dict[str, dict[str, Any]] = {
    "uniform": {"stand_in": "uniform"},
    "noise start": {"start": "noise"},
    "forget start": {"start": "forget"},
    "as they are": {"stand_in": "augmented"},
    "true": {"stand_in": "retained"},
}


def some(data: ju.Data, count: int) -> ju.Data:
    """So many samples, evenly spread."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
    return ju.Data(data.images[rows], data.labels[rows])


class Study:
    """A trained network, a class to forget, and the data to judge by."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        self.name, self.cell = name, CELLS[name]
        self.arguments, self.classes = arguments, [arguments.forget]
        read = {"data_dir": arguments.data_dir, "size": self.cell.size}
        self.train, self.validation, self.judged = (
            some(datasets.load(self.cell.dataset, split, **read), count)
            for split, count in (
                ("train", self.cell.images),
                ("validation", 1000),
                (arguments.split, 2000),
            )
        )
        self.original = training.fit(
            self.cell.network(),
            self.train,
            recipe=self.cell.recipe,
            key=jax.random.key(arguments.seed),
            preprocess=datasets.preprocess(self.cell.dataset, size=self.cell.size),
        )
        forget, retain = ju.split_by_class(self.train, self.classes)
        self.task = ju.Task(forget, retain, self.classes, num_classes=10)
        self.retained = ju.split_by_class(self.judged, self.classes)[1].images
        self.true = ju.second_moments(self.original, self.retained)
        self.key = jax.random.key(arguments.seed)

    def method(self, fields: dict[str, Any]) -> ju.CovarNav:
        """CovarNav that comes by its proxies in one of the ways."""
        sizes = {"images_per_class": self.arguments.images_per_class}
        steps = {"steps": 40, "inversion_steps": self.arguments.inversion_steps}
        return ju.CovarNav(projection="ridge", **sizes, **steps, **fields)

    def captured(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The energy that a share of directions captures, from the second layer on."""
        method, begun = self.method(fields), time.perf_counter()
        proxies = method.proxies(self.original, self.task, key=self.key)
        seconds = time.perf_counter() - begun
        rule = {"protected_fraction": self.arguments.fraction}
        quality = proxy_quality(self.original, proxies, self.true, **rule)
        names = feature_layers(self.original, proxies.images)[1:]
        layers = {name: quality.captured_energy[name] for name in names}
        mean, least = float(np.mean(list(layers.values()))), min(layers.values())
        found = {"mean": mean, "least": least, "accuracy": quality.accuracy}
        return found | {"layers": layers, "seconds": seconds}

    def end(self, fields: dict[str, Any]) -> dict[str, Any]:
        """What CovarNav keeps with them, at the rate of the validation rule."""
        (result,) = ju.forget(
            *(self.method(fields), self.original, self.train, [self.classes]),
            key=self.key,
            validation=self.validation,
            grid=(0.01, 0.03, 0.1, 0.3, 1.0),
        )
        accuracy = ju.evaluate(result.classifier, self.judged, self.classes)
        both = (logits(c, self.retained) for c in (self.original, result.classifier))
        return {
            "rate": result.trace.tuned["learning_rate"],
            "retained": accuracy.retained,
            "forgotten": accuracy.forgotten,
            "change": float(relative_change(*both)),
        }


def main() -> None:
    """A line of JSON for every network and source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=CELLS)
    parser.add_argument("--sources", nargs="*", default=list(SOURCES), choices=SOURCES)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--forget", type=int, default=6)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--images-per-class", type=int, default=16)
    parser.add_argument("--inversion-steps", type=int, default=300)
    parser.add_argument("--end", action="store_true", help="unlearn with them, too")
    arguments = parser.parse_args()
    for name in arguments.cells:
        study = Study(name, arguments)
        known = ju.evaluate(study.original, study.judged, study.classes)
        for source in arguments.sources:
            record = {"cell": name, "source": source, "original": known.retained}
            record |= study.captured(SOURCES[source])
            if arguments.end:
                record["end"] = study.end(SOURCES[source])
            record |= {"settings": to_dict(vars(arguments) | {"data_dir": None})}
            record |= {"device": device_kind(), "versions": versions()}
            print(json.dumps(to_dict(record), allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
