"""What goes beyond the head where no retained sample is left: a pool in its place.

    PYTHONPATH=. python benchmarks/without_retained.py OUT.jsonl --classes 6 2

`LayerwiseTeacher` and `ResetAndDistill` read retained data. Here they are given a task
whose retained set is a pool made of the network and of the forget images alone: images
inverted from noise or from the forget images, the forget images themselves, blends of
both, or nothing but augmented forget images. The original with its forgotten classes
masked is the only source of labels. True retained images are the ceiling. Nothing is
chosen: pools, budgets and fields are fixed here. A line of JSON for every model.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxunlearn as ju
from benchmarks.inversion_start import PlainCNN
from benchmarks.representation import MLP, NETWORKS
from jaxunlearn import datasets, methods, models
from jaxunlearn.methods.batch_statistics import refresh_statistics
from jaxunlearn.methods.multiply_adds import Costs
from jaxunlearn.methods.relabel import nearest_retained_labels
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.relearning import Relearning, relearn_steps
from jaxunlearn.metrics.verdict import audit_all
from jaxunlearn.models.files import versions
from jaxunlearn.training import Recipe

AUDITS = ("accuracy", "distribution", "probe", "class-mean", "neighbour")
# Of minibatches; the audit's own cap would cost more than all else here.
RELEARNING = Relearning(cap=100)
# Multiply-adds of `ResetAndDistill`, inversion not counted, as a share of retraining.
SHARE = 0.2
IMAGES_PER_CLASS, INVERSION_STEPS = 32, 100


@dataclasses.dataclass(frozen=True)
class Cell:
    """A network, and how it is trained."""

    network: Callable[[], Any]
    recipe: Recipe
    size: tuple[int, int] | None = (14, 14)


CELLS = {
    "mlp": Cell(MLP, Recipe(epochs=12, learning_rate=0.05)),
    "smallcnn": Cell(NETWORKS["smallcnn"], Recipe(epochs=12)),
    # The same without BatchNorm.
    "plain": Cell(
        functools.partial(PlainCNN, 10, 8), Recipe(epochs=12, learning_rate=0.05)
    ),
    "lenet5": Cell(
        functools.partial(models.create, "lenet5", num_classes=10),
        *(Recipe(epochs=12, learning_rate=0.03), None),
    ),
}


def labelled(original: ju.Classifier, images: np.ndarray, classes) -> ju.Data:
    """Images with the likeliest retained class of the original."""
    outputs = logits(original, images)
    return ju.Data(images, np.asarray(nearest_retained_labels(outputs, classes)))


def blends(first: np.ndarray, second: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Convex mixtures of pairs drawn at random, the shares uniform."""
    random = np.random.default_rng(seed)
    share = random.random((count, 1, 1, 1)).astype(np.float32)
    rows = (random.integers(len(x), size=count) for x in (first, second))
    a, b = (x[r] for x, r in zip((first, second), rows, strict=True))
    return share * a + (1 - share) * b


def pools(original, task, true, key) -> tuple[dict[str, Any], dict[str, float]]:
    """Images by the pool's name, and the seconds of the two inversions."""
    made, seconds = {}, {}
    for start in ("noise", "forget"):
        sizes = {"images_per_class": IMAGES_PER_CLASS, "start": start}
        method = ju.CovarNav(inversion_steps=INVERSION_STEPS, **sizes)
        begun = time.process_time()
        made[start] = np.asarray(method.proxies(original, task, key=key).images)
        seconds[start] = time.process_time() - begun
    forgotten = task.forget.images.astype(np.float32) / 255
    proxies = made[ju.CovarNav().start_of(original, forgotten.shape[1:])]
    mixed = blends(proxies, forgotten, len(forgotten), 0)
    everything = np.concatenate([proxies, forgotten, mixed])
    augmented = ju.augmented_images(original, forgotten, len(everything), key=key)
    true = true.astype(np.float32) / 255
    rows = np.random.default_rng(0).permutation(len(true))[: len(proxies)]
    return {
        "noise start": made["noise"],
        "forget start": made["forget"],
        "+ forget images": np.concatenate([proxies, forgotten]),
        "+ blends": everything,
        "forget as they are": augmented,
        "true, as many": true[rows],
        "true": true,
    }, seconds


def retained_accuracy(classifier, data, classes) -> float:
    """With a masked head, in percent over samples."""
    rows = ~np.isin(data.labels, classes)
    found = nearest_retained_labels(logits(classifier, data.images[rows]), classes)
    return 100 * float((np.asarray(found) == data.labels[rows]).mean())


class Study:
    """One network: the original, and what every request shares."""

    def __init__(self, name: str, own: argparse.Namespace):
        self.cell, self.own = CELLS[name], own
        read = {"data_dir": own.data_dir, "size": self.cell.size}
        self.train, self.validation, self.test = (
            datasets.load("fashion_mnist", split, **read)
            for split in ("train", "validation", "test")
        )
        rows = np.random.default_rng(0).permutation(len(self.train))[: own.images]
        self.train = ju.Data(self.train.images[rows], self.train.labels[rows])
        self.original = self.fit(self.train, 0)

    def fit(self, data: ju.Data, seed: int) -> ju.Classifier:
        """A network of this cell, trained on these data."""
        return ju.training.fit(
            self.cell.network(),
            data,
            recipe=self.cell.recipe,
            key=jax.random.key(seed),
            preprocess=datasets.preprocess("fashion_mnist", size=self.cell.size),
        )

    def unlearned(self, forgotten: int):
        """By title, the models of every method and pool, and what to tell of them."""
        classes, original = [forgotten], self.original
        split = ju.split_by_class(self.train, classes)
        task = ju.Task(*split, classes, num_classes=10)
        alone = dataclasses.replace(task, retain=None)
        key = jax.random.key(100 + self.own.seed)
        made, seconds = pools(original, alone, task.retain.images, key)
        retraining = self.cell.recipe.epochs * len(task.retain)
        forward = Costs(original, self.train.images).forward()
        found = {}

        def run(title, method, pool=None):
            given = alone
            if pool is not None:
                data = labelled(original, made[pool], classes)
                given = dataclasses.replace(alone, retain=data)
            begun = time.process_time()
            result = method(original, given, key=key)
            jax.block_until_ready(result.classifier.params)
            spent = sum(result.trace.multiply_adds.values())
            told = {"seconds": time.process_time() - begun, "tuned": result.trace.tuned}
            told["cost"] = spent / (3 * forward * retraining)
            told["caution"] = result.trace.caution
            if pool is not None:
                told |= self._judged(result.classifier, made[pool], task, key)
            found[title] = result.classifier, told
            accuracy = ju.evaluate(result.classifier, self.validation, classes)
            told["validation"] = [accuracy.retained, accuracy.forgotten]
            print(title, told, file=sys.stderr, flush=True)

        run("mask-head", methods.MaskHead())
        sizes = {"images_per_class": IMAGES_PER_CLASS}
        run("covarnav", ju.CovarNav(inversion_steps=INVERSION_STEPS, **sizes))
        for pool in self.own.pools or made:
            run(f"teacher, {pool}", methods.LayerwiseTeacher(), pool)
            budget = SHARE * retraining / len(made[pool])
            run(f"reset, {pool}", methods.ResetAndDistill(budget=budget), pool)
        budget = SHARE * retraining / len(made["+ blends"])
        scratch = methods.ResetAndDistill(budget=budget, layers=0)
        run("scratch, + blends", scratch, "+ blends")
        found["covarnav"][1]["inversion"] = seconds
        return task, found

    def _judged(self, changed, pool, task, key) -> dict[str, float]:
        """What statistics of normalisation do: Acc_r on validation, head masked."""
        if not jax.tree.leaves(self.original.state):
            return {}
        true = task.retain.images
        given = self.validation, task.forget_classes
        refreshed = {
            "original": self.original,
            "original, of the pool": refresh_statistics(self.original, pool, key=key),
            "unlearned": changed,
            "unlearned, of the pool": refresh_statistics(changed, pool, key=key),
            "unlearned, of true": refresh_statistics(changed, true, key=key),
        }
        found = {n: retained_accuracy(c, *given) for n, c in refreshed.items()}
        return {"statistics": found}

    def relearned(self, classifier, forgotten: int) -> list[Any]:
        """Minibatches until 95 % of the original's accuracy is back; whether a cap."""
        known = ju.evaluate(self.original, self.test, [forgotten]).forgotten
        found = relearn_steps(
            *(classifier, self.train, self.test, [forgotten]),
            target=0.95 * known,
            protocol=RELEARNING,
            key=jax.random.key(6),
        )
        return [found.steps, found.censored]


def row(audit: ju.metrics.verdict.Audit) -> dict[str, Any]:
    """Of each part its values of this model, the original and the retrained."""
    return {
        r.name: [r.unlearned, r.original, *r.retrained, r.within] for r in audit.rows
    } | {"verdict": audit.verdict}


def main() -> None:
    """Train, unlearn, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    parser.add_argument("--classes", type=int, nargs="+", default=[6, 2])
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--retrained", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pools", nargs="*", help="some of them; by default all")
    parser.add_argument("--audits", nargs="+", default=list(AUDITS))
    own = parser.parse_args()
    settings = {name: getattr(own, name) for name in ("images", "retrained", "seed")}
    for name in own.cells:
        study = Study(name, own)
        for forgotten in own.classes:
            task, found = study.unlearned(forgotten)
            seeds = range(1, 1 + own.retrained)
            retrained = [study.fit(task.retain, seed) for seed in seeds]
            audits = audit_all(
                {title: classifier for title, (classifier, _) in found.items()},
                original=study.original,
                retrained=retrained,
                train=study.train,
                test=study.test,
                forget_classes=[forgotten],
                key=jax.random.key(5),
                which=own.audits,
            )
            others = {
                f"retrained {s}": m for s, m in zip(seeds, retrained, strict=True)
            }
            every = {t: c for t, (c, _) in found.items()} | others
            relearned = {t: study.relearned(c, forgotten) for t, c in every.items()}
            with own.out.open("a") as file:
                for title, audit in audits.items():
                    head = {"cell": name, "class": forgotten, "title": title}
                    line = head | found[title][1] | row(audit)
                    line["relearn"] = [relearned[t] for t in (title, *others)]
                    line |= {"settings": settings, "versions": versions()}
                    file.write(json.dumps(line, default=float) + "\n")


if __name__ == "__main__":
    main()
