"""Forget a class of a classifier that others trained: ResNet-8 for CIFAR-10.

Its training is not at hand, and no retrained twin. What can be said without one:
accuracies, the change of the retained logits, the drift of layers on true retained
images, what a linear probe reads off the features, how many minibatches bring the class
back, and how well CovarNav's proxies stand in for the true images.
"""

import argparse
import json
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

import jaxunlearn as ju
from jaxunlearn import datasets
from jaxunlearn.methods import MaskHead
from jaxunlearn.metrics import features, linear_probe, relative_change, relearn_steps
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.proxies import proxy_quality
from jaxunlearn.metrics.relearning import Relearning
from jaxunlearn.models.files import versions
from jaxunlearn.parallel import device_kind
from jaxunlearn.serialization import to_dict


class ResNet8(nn.Module):
    """The image classification reference of MLPerf Tiny; layers named as its weights.

    Number `n` is that of the convolution; its BatchNorm has a number of its own.
    """

    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        """Logits, in inference mode."""

        def conv(x, number, channels, stride=1, side=3, norm=None):
            name = f"conv2d_{number}"
            x = nn.Conv(channels, (side, side), stride, padding="SAME", name=name)(x)
            if norm is None:
                return x
            return nn.BatchNorm(True, epsilon=1e-3, name=f"batch_normalization_{norm}")(
                x
            )

        x = nn.relu(conv(x, 0, 16, norm=0))
        x = nn.relu(x + conv(nn.relu(conv(x, 1, 16, norm=1)), 2, 16, norm=2))
        for first, norm, channels in ((3, 3, 32), (6, 5, 64)):
            y = nn.relu(conv(x, first, channels, stride=2, norm=norm))
            y = conv(y, first + 1, channels, norm=norm + 1)
            x = nn.relu(y + conv(x, first + 2, channels, stride=2, side=1))
        return nn.Dense(self.num_classes, name="dense")(x.mean(axis=(1, 2)))


def load(path: Path) -> ju.Classifier:
    """The classifier of a file with names such as `conv2d_0.kernel`."""
    kinds = {"kernel": "kernel", "bias": "bias", "gamma": "scale", "beta": "bias"}
    kinds |= {"moving_mean": "mean", "moving_variance": "var"}
    variables = {"params": {}, "batch_stats": {}}
    for name, array in load_file(path).items():
        layer, kind = name.split(".")
        leaves = variables["batch_stats" if "moving" in kind else "params"]
        leaves.setdefault(layer, {})[kinds[kind]] = jnp.asarray(array)
    return ju.freeze(ResNet8(), variables, preprocess=ju.Preprocess(0.5, 0.5))


def some(data: ju.Data, count: int) -> ju.Data:
    """So many samples, evenly spread."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
    return ju.Data(data.images[rows], data.labels[rows])


class Study:
    """The classifier, its data, and what is measured of every method."""

    def __init__(self, arguments):
        self.original, self.classes = load(arguments.weights), [arguments.forget]
        given = {"data_dir": arguments.data_dir}
        counts = zip(("train", "validation", "test"), arguments.images, strict=True)
        self.train, self.validation, self.test = (
            some(datasets.load("cifar10", split, **given), n) for split, n in counts
        )
        self.key = jax.random.key(arguments.seed)
        _, self.retain = ju.split_by_class(self.train, self.classes)
        self.retained = ju.split_by_class(self.test, self.classes)[1].images
        self.moments = ju.second_moments(self.original, self.retain.images)
        known = ju.evaluate(self.original, self.test, self.classes).forgotten
        self.target = 0.95 * known

    def run(self, name: str, method, grid) -> tuple[ju.Classifier, dict]:
        """One method at the rate that validation data choose, and what it cost."""
        begun = time.perf_counter()
        (result,) = ju.forget(
            *(method, self.original, self.train, [self.classes]),
            key=self.key,
            validation=self.validation,
            grid=grid,
        )
        record = {"method": name, "seconds": time.perf_counter() - begun}
        trace = result.trace
        record |= {"tuned": trace.tuned, "at_edge": trace.at_edge}
        if trace.proxies is not None:
            record["quality"] = self.quality(trace.proxies, method)
        return result.classifier, record

    def quality(self, proxies: ju.Data, method) -> dict:
        """What the proxies capture of the moments of true retained images."""
        found = proxy_quality(self.original, proxies, self.moments, **method.rule)
        energies = found.captured_energy
        return to_dict(found) | {
            "mean_captured": float(np.mean(list(energies.values()))),
            "least_captured": min(energies.values()),
        }

    def judge(self, classifier: ju.Classifier) -> dict:
        """Accuracies, certificate and audits; all without a retrained twin."""
        accuracy = ju.evaluate(classifier, self.test, self.classes)
        before, after = (logits(c, self.retained) for c in (self.original, classifier))
        drifts = ju.drift(self.moments, self.original.params, classifier.params)
        read = [features(classifier, x.images) for x in (self.train, self.test)]
        probed = linear_probe(read[0], self.train.labels, read[1])
        of_class = np.isin(self.test.labels, self.classes)
        again = relearn_steps(
            *(classifier, self.train, self.test, self.classes),
            target=self.target,
            protocol=Relearning(batch_size=64, cap=30),
            key=self.key,
        )
        return {
            "retained": accuracy.retained,
            "forgotten": accuracy.forgotten,
            "change": float(relative_change(before, after)),
            "drift": max(float(x) for x in jax.tree.leaves(drifts)),
            "probe": float(100 * np.mean((probed == self.test.labels)[of_class])),
            "relearn": str(again),
        }


def methods_of(arguments) -> dict:
    """By name: the method, and the rates among which validation data choose."""
    grid, how = arguments.rates, {"steps": arguments.steps, "batch_size": 64}
    proxies = how | {
        "images_per_class": arguments.images_per_class,
        "inversion_steps": arguments.inversion_steps,
    }
    return {
        "CovarNav": (ju.CovarNav(**proxies), grid),
        "CovarNav, forget start": (ju.CovarNav(**proxies, start="forget"), grid),
        "as they are": (ju.CovarNav(**proxies, stand_in="augmented"), grid),
        "uniform noise": (ju.CovarNav(**proxies, stand_in="uniform"), grid),
        "true images": (ju.CovarNav(**proxies, stand_in="retained"), grid),
        "UNSC": (ju.UNSC(**how), grid),
        "unprojected": (ju.Unprojected(**how), [x / 30 for x in grid]),
        "mask-head": (MaskHead(), None),
    }


def main() -> None:
    """A line of JSON for every method, and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="weights.safetensors of ResNet-8")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps CIFAR-10")
    parser.add_argument("--forget", type=int, default=3)
    parser.add_argument("--images", type=int, nargs=3, default=(5000, 1000, 2000))
    parser.add_argument("--images-per-class", type=int, default=16)
    parser.add_argument("--inversion-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rates", type=float, nargs="+", default=(0.01, 0.03, 0.1))
    parser.add_argument("--methods", nargs="*", help="names, as they are printed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    study, records = Study(arguments), []
    wanted = {"original": None} | methods_of(arguments)
    for name in ["original", *(arguments.methods or list(wanted)[1:])]:
        found, record = study.original, {"method": name}
        if wanted[name] is not None:
            found, record = study.run(name, *wanted[name])
        record |= study.judge(found) | {"settings": to_dict(vars(arguments))}
        record["settings"] |= {"weights": arguments.weights.name, "data_dir": None}
        records.append(record | {"device": device_kind(), "versions": versions()})
        print(json.dumps(to_dict(records[-1]), allow_nan=False), flush=True)
    numbers = ("retained", "forgotten", "change", "drift", "probe", "relearn")
    captured = ("mean_captured", "least_captured")
    print("", "", *numbers, *captured, "", sep=" | ")
    for record in records:
        values = {"mean_captured": np.nan, "least_captured": np.nan} | record
        values |= record.get("quality", {})
        cells = [x if isinstance(x := values[c], str) else f"{x:.3f}" for c in numbers]
        cells += [f"{values[c]:.3f}" for c in captured]
        print("", record["method"], *cells, "", sep=" | ")


if __name__ == "__main__":
    main()
