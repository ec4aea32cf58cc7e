"""What an inversion should start from: noise, or the images that are to be forgotten.

    PYTHONPATH=. python benchmarks/inversion_start.py OUT.jsonl --seeds 1 2

Small networks with and without BatchNorm, trained here. Every way to come by proxies is
judged by the energy of true retained inputs that its leading directions capture, layer
by layer, and by what CovarNav does with the same proxies at the rate that validation
data choose. A line for every network, seed and source; those that OUT has are left out.
"""

import argparse
import dataclasses
import itertools
import json
import os
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
    "CIFAR-10, plain": Cell(
        *("cifar10", lambda: PlainCNN(10)),
        *(Recipe(epochs=12, learning_rate=0.05, flip=True), (16, 16), 10000),
    ),
    "CIFAR-10, ResNet-18": Cell(
        *("cifar10", _named("resnet18", width=8)),
        *(Recipe(epochs=8, crop_padding=2, flip=True), (16, 16), 10000),
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


# The protections that CovarNav is tried with, and the rates to choose from.
PROJECTIONS: dict[str, dict[str, Any]] = {
    "ridge": {"projection": "ridge", "damping": 1e-3},
    "energy": {"projection": "hard", "energy": 0.97},
}
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
# The most of Acc_f, on validation data, that counts as forgotten.
FORGOTTEN = 8.0


class Study:
    """A trained network, a class to forget, and the data to judge by."""

    def __init__(self, name: str, seed: int, own: argparse.Namespace):
        self.cell, self.own, self.classes = CELLS[name], own, [own.forget]
        read = {"data_dir": own.data_dir, "size": self.cell.size}
        counts = {"train": self.cell.images, "validation": 1000, own.split: 2000}
        sets = {
            split: some(datasets.load(self.cell.dataset, split, **read), count)
            for split, count in counts.items()
        }
        train, self.validation, self.judged = sets.values()
        self.original = training.fit(
            self.cell.network(),
            train,
            recipe=self.cell.recipe,
            key=jax.random.key(seed),
            preprocess=datasets.preprocess(self.cell.dataset, size=self.cell.size),
        )
        forget, retain = ju.split_by_class(train, self.classes)
        self.task = ju.Task(forget, retain, self.classes, num_classes=10)
        self.retained = ju.split_by_class(self.judged, self.classes)[1].images
        self.true = ju.second_moments(self.original, self.retained)
        self.key = jax.random.key(seed)

    def record(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The energy that a share of directions captures, and what is kept."""
        sizes = {"images_per_class": self.own.images_per_class}
        steps = {"inversion_steps": self.own.inversion_steps}
        method, begun = ju.CovarNav(**sizes, **steps, **fields), time.process_time()
        proxies = method.proxies(self.original, self.task, key=self.key)
        seconds = time.process_time() - begun
        rule = {"protected_fraction": self.own.fraction}
        quality = proxy_quality(self.original, proxies, self.true, **rule)
        # In the first layer noise spans all patches that there are.
        names = feature_layers(self.original, proxies.images)[1:]
        layers = {name: quality.captured_energy[name] for name in names}
        mean, least = float(np.mean(list(layers.values()))), min(layers.values())
        found = {"mean": mean, "least": least, "accuracy": quality.accuracy}
        found |= {"layers": layers, "seconds": seconds}
        if not self.own.captured_alone:
            found["end"] = {n: self._end(proxies, p) for n, p in PROJECTIONS.items()}
        return found

    def _end(self, proxies: ju.Data, projection: dict[str, Any]) -> dict[str, Any]:
        """What CovarNav keeps with them: of the rates that forget, the best Acc_r."""
        task = dataclasses.replace(self.task, retain=proxies)
        sizes = {"images_per_class": self.own.images_per_class, "batch_size": 64}
        method = ju.CovarNav(stand_in="retained", steps=40, **sizes, **projection)
        tried = {}
        for rate in RATES:
            own = method.replace(learning_rate=rate)
            try:
                result = own(self.original, task, key=self.key)
            except FloatingPointError:  # it has diverged: not a rate to take
                continue
            accuracy = ju.evaluate(result.classifier, self.validation, self.classes)
            if accuracy.forgotten <= FORGOTTEN:
                tried[rate] = accuracy.retained, result.classifier
        if not tried:
            return {"rate": None}
        rate = max(tried, key=lambda rate: tried[rate][0])
        kept, changed = tried[rate]
        accuracy = ju.evaluate(changed, self.judged, self.classes)
        both = (logits(c, self.retained) for c in (self.original, changed))
        return {
            "rate": rate,
            "validation": kept,
            "retained": accuracy.retained,
            "forgotten": accuracy.forgotten,
            "change": float(relative_change(*both)),
        }


def main() -> None:
    """A line of JSON for every network, seed and source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=CELLS)
    parser.add_argument("--sources", nargs="*", default=list(SOURCES), choices=SOURCES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--forget", type=int, default=6)
    parser.add_argument("--split", default="test")
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--images-per-class", type=int, default=16)
    parser.add_argument("--inversion-steps", type=int, default=100)
    parser.add_argument("--captured-alone", action="store_true", help="do not unlearn")
    own = parser.parse_args()
    named = ("cell", "seed", "source")
    lines = own.out.read_text().splitlines() if own.out.exists() else []
    known = {tuple(json.loads(line)[n] for n in named) for line in lines}
    shared = ("forget", "split", "fraction", "images_per_class", "inversion_steps")
    settings = {name: getattr(own, name) for name in shared}
    for name, seed in itertools.product(own.cells, own.seeds):
        wanted = [s for s in own.sources if (name, seed, s) not in known]
        if not wanted:
            continue
        study = Study(name, seed, own)
        kept = ju.evaluate(study.original, study.judged, study.classes)
        for source in wanted:
            record = dict(zip(named, (name, seed, source), strict=True))
            record["original"] = [kept.retained, kept.forgotten]
            record |= study.record(SOURCES[source])
            record |= {"settings": settings}
            record |= {"device": device_kind(), "versions": versions()}
            with own.out.open("a") as file:
                file.write(json.dumps(to_dict(record), allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
