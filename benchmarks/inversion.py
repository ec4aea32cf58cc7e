"""How well inverted images stand in for retained data, beside noise and true images.

Every variant of the inversion is judged by the energy of the retained training data
that its subspaces capture, by a second classifier trained from another seed, and by
what CovarNav keeps with it: Acc_r at a given Acc_f, read off a sweep over learning
rates. Judged on validation data, unless --split test says otherwise.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn.cli.settings import TrainingSettings
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.inversion import ImagePrior
from jaxunlearn.methods.statistics import Statistics
from jaxunlearn.metrics import relative_change
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.proxies import proxy_quality
from jaxunlearn.models.files import load_classifier, versions
from jaxunlearn.parallel import device_kind
from jaxunlearn.serialization import to_dict

# Acc_f, in percent, at which Acc_r is compared.
LEVELS = (20.0, 10.0, 5.0)

# The floor, the method, the ceiling.
SOURCES = {
    "uniform": {"stand_in": "uniform"},
    "gaussian": {"stand_in": "gaussian"},
    "matched": {"stand_in": "matched"},
    "inverted": {},
    "retained": {"stand_in": "retained"},
}

VARIANTS = {
    "steps 100": {"inversion_steps": 100},
    "steps 1000": {"inversion_steps": 1000},
    "8 images": {"images_per_class": 8},
    "16 images": {"images_per_class": 16},
    "64 images": {"images_per_class": 64},
    "feature 0": {"prior": ImagePrior(feature=0.0)},
    "feature 1": {"prior": ImagePrior(feature=1.0)},
    "feature 10": {"prior": ImagePrior(feature=10.0)},
    "variation .1": {"prior": ImagePrior(total_variation=0.1)},
    "variation 1": {"prior": ImagePrior(total_variation=1.0)},
    "variation 10": {"prior": ImagePrior(total_variation=10.0)},
    "l2 0": {"prior": ImagePrior(l2=0.0)},
    "feature 1, l2 0": {"prior": ImagePrior(feature=1.0, l2=0.0)},
    "feature 1, l2 0, variation .1": {
        "prior": ImagePrior(feature=1.0, l2=0.0, total_variation=0.1)
    },
    "no jitter": {"jitter": 0},
    "multi-step": {"inversion_schedule": "multi-step"},
    "rate .02": {"inversion_rate": 0.02},
    "rate .1": {"inversion_rate": 0.1},
    "no jitter, rate .1": {"jitter": 0, "inversion_rate": 0.1},
    "energy .95": {"energy": 0.95},
    "energy .999": {"energy": 0.999},
}


class Study:
    """One data set, one original, one second classifier, one class to forget."""

    def __init__(self, arguments):
        self.name, self.split = arguments.dataset, arguments.split
        low, high, count = arguments.rates
        grid = np.geomspace(low, high, int(count))
        self.rates = [float(f"{rate:.2g}") for rate in grid]
        self.base = ju.CovarNav(
            steps=arguments.descent_steps,
            batch_size=arguments.batch_size,
            images_per_class=arguments.images_per_class,
            inversion_steps=arguments.inversion_steps,
        )
        if arguments.protected_fraction is not None:
            fraction = arguments.protected_fraction
            self.base = self.base.replace(energy=None, protected_fraction=fraction)
        source = TrainingSettings(
            dataset=arguments.dataset, data_dir=arguments.data_dir
        )
        train, judge = (source.load(s) for s in ("train", arguments.split))
        self.original, self.second = self._classifiers(arguments, source, train)
        self.judge = some(judge, arguments.judged)
        forget, retain = ju.split_by_class(train, [arguments.forget])
        classes = source.num_classes()
        self.task = ju.Task(forget, retain, [arguments.forget], num_classes=classes)
        rows = some(retain, arguments.true_images).images
        self.true = ju.second_moments(self.original, rows)
        self.retained = ju.split_by_class(self.judge, [arguments.forget])[1]
        self.before = logits(self.original, self.retained.images)
        self.seed = arguments.seed
        self.key = jax.random.key(self.seed)
        self.targets = ju.runner_up_labels(
            logits(self.original, forget.images),
            forget.labels,
            exclude=self.task.forget_classes,
        )

    def _classifiers(self, arguments, source, train):
        """From files, or trained here from two seeds."""
        if arguments.original is not None:
            return [
                load_classifier(path)[0]
                for path in (arguments.original, arguments.second)
            ]
        return [
            ju.training.fit(
                source.create(),
                train,
                recipe=ju.training.Recipe(),
                key=jax.random.key(seed),
                preprocess=source.preprocess(),
            )
            for seed in (0, 1)
        ]

    def run(self, name: str, fields: dict) -> dict:
        """One way to come by proxies, with all that is measured of it."""
        method = dataclasses.replace(self.base, **fields)
        watch = Stopwatch()
        with watch.stage("inversion"):
            proxies = method.proxies(self.original, self.task, key=self.key)
        quality = proxy_quality(
            self.original, proxies, self.true, second=self.second, **method.rule
        )
        moments = ju.second_moments(self.original, proxies.images)
        projection = method.projection_of(Statistics(lambda classes: moments), ())
        points = [self._judged(method, projection, rate) for rate in self.rates]
        return {
            "dataset": self.name,
            "split": self.split,
            "variant": name,
            "seed": self.seed,
            "images": len(proxies),
            "fields": to_dict(dataclasses.asdict(method)),
            "seconds": watch.seconds["inversion"],
            "quality": to_dict(quality),
            "mean_captured": float(np.mean(list(quality.captured_energy.values()))),
            "least_captured": min(quality.captured_energy.values()),
            "points": points,
            "retained_at": {str(v): crossing(points, v, 1) for v in LEVELS},
            "change_at": {str(v): crossing(points, v, 3) for v in LEVELS},
            "device": device_kind(),
            "versions": versions(),
        }

    def _judged(self, method, projection, rate):
        """`(rate, Acc_r, Acc_f, change of retained logits)`; None if it diverged."""
        try:
            found = ju.unlearn(
                self.original,
                self.task.forget.images,
                self.targets,
                method.replace(learning_rate=rate).optimizer(projection),
                steps=method.steps,
                batch_size=method.batch_size,
                key=self.key,
            )
        except FloatingPointError:
            return rate, None, None, None
        accuracy = ju.evaluate(found.classifier, self.judge, self.task.forget_classes)
        change = relative_change(
            self.before, logits(found.classifier, self.retained.images)
        )
        return rate, accuracy.retained, accuracy.forgotten, change


def some(data, count):
    """So many samples of a data set, evenly spread."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
    return ju.Data(data.images[rows], data.labels[rows])


def crossing(points, level: float, column: int) -> float | None:
    """A column where Acc_f first falls to a level, between two rates of the sweep."""
    for before, after in zip(points, points[1:], strict=False):
        if None in (before[2], after[2]):
            continue
        if before[2] > level >= after[2]:
            share = (before[2] - level) / (before[2] - after[2])
            return before[column] + share * (after[column] - before[column])
    return None


def main() -> None:
    """Run the sources, or all variants too, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--original", type=Path, help="a .safetensors file")
    parser.add_argument("--second", type=Path, help="another, of another seed")
    parser.add_argument("--forget", type=int, default=3)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--judged", type=int, default=2000)
    parser.add_argument("--true-images", type=int, default=2000)
    parser.add_argument("--images-per-class", type=int, default=32)
    parser.add_argument("--inversion-steps", type=int, default=500)
    parser.add_argument(
        "--protected-fraction", type=float, help="of all directions, in place of energy"
    )
    parser.add_argument("--descent-steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--rates",
        nargs=3,
        type=float,
        default=(1e-3, 3, 11),
        metavar=("FIRST", "LAST", "COUNT"),
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="*", help="names; none for the sources")
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    wanted = SOURCES
    if arguments.variants is not None:
        names = arguments.variants or VARIANTS
        wanted = {name: (VARIANTS | SOURCES)[name] for name in names}
    study = Study(arguments)
    for name, fields in wanted.items():
        begun = time.perf_counter()
        found = study.run(name, fields)
        found["wall_seconds"] = time.perf_counter() - begun
        quality = found["quality"]
        at, change = (
            "/".join("-" if a is None else f"{a:.{digits}f}" for a in found[n].values())
            for n, digits in (("retained_at", 2), ("change_at", 3))
        )
        print(
            f"{name:30} captured {found['mean_captured']:.4f} least "
            f"{found['least_captured']:.4f} second {quality['second_accuracy']:6.2f} "
            f"Acc_r {at} change {change}  {found['seconds']:.0f} s",
            flush=True,
        )
        if arguments.results is not None:
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(to_dict(found), allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
