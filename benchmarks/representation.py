"""What `LayerwiseTeacher` leaves in the representation, beside retraining.

    PYTHONPATH=. python benchmarks/representation.py OUT.jsonl --network mlp --classes 6

Fashion-MNIST at 14 x 14, one original and two retrained networks a class. A line for
every value of `mu`, budget and way to refresh statistics: validation accuracies, by
which alone a value may be chosen, and seconds of all cores beside those of retraining.
Then for some of them another, the audits on test data.
"""

import argparse
import json
import os
import time

import flax.linen as nn
import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn import datasets, methods, models
from jaxunlearn.methods.multiply_adds import Costs
from jaxunlearn.methods.rules import TOLERANCE
from jaxunlearn.metrics.verdict import audit_all
from jaxunlearn.training.recipe import Recipe

AUDITS = ("accuracy", "distribution", "probe", "class-mean", "relearn")


class MLP(nn.Module):
    """Two hidden layers without normalisation."""

    @nn.compact
    def __call__(self, x, train=False):
        """Logits."""
        del train
        x = x.reshape(len(x), -1)
        for width in (256, 128):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


NETWORKS = {
    "mlp": MLP,
    "smallcnn": lambda: models.create("smallcnn", num_classes=10, width=8),
}
# The method's grid, and what the rule goes on to at either end of it.
MUS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# Audited whatever the rule takes.
SHOWN = ("mu 1", "mu 3", "drift 0.2")


def variants(normalised):
    """By title, what is tried."""
    teacher = methods.LayerwiseTeacher
    found = {f"mu {mu:g}": teacher(mu=mu) for mu in MUS}
    for when in ("end", "each") if normalised else ():
        for mu in (0.1, 1.0):
            found[f"mu {mu:g}, refreshed {when}"] = teacher(mu=mu, refresh=when)
    for budget in (0.1, 0.2, 0.4):
        found[f"drift {budget:g}"] = teacher(mu=30.0, drift_budget=budget)
    return found


def chosen(records):
    """The least and the largest `mu` within a point of the best Acc_r - Acc_f."""
    margins = {t: np.subtract(*records[t]["validation"]) for t in records}
    values = {f"mu {mu:g}": mu for mu in MUS}
    best = max(margins[t] for t in values)
    good = [t for t in values if margins[t] >= best - TOLERANCE]
    return min(good, key=values.get), max(good, key=values.get)


def row(audit):
    """Of each part its values of this model, the original and the retrained."""
    return {
        r.name: [r.unlearned, r.original, *r.retrained] + [r.within] for r in audit.rows
    } | {"verdict": audit.verdict}


def write(path, line):
    """One more line of JSON."""
    with open(path, "a") as file:
        file.write(json.dumps(line, default=float) + "\n")


def main():
    """Train, unlearn, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    parser.add_argument("--classes", type=int, nargs="+", default=[6, 4])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    own = parser.parse_args()
    place = {"size": (14, 14), "data_dir": os.environ.get("TFDS_DATA_DIR")}
    train, validation, test = (
        datasets.load("fashion_mnist", split, **place)
        for split in ("train", "validation", "test")
    )
    rows = np.random.default_rng(0).permutation(len(train))[: own.images]
    train = ju.Data(train.images[rows], train.labels[rows])
    given = {"preprocess": datasets.preprocess("fashion_mnist")}

    def fit(data, seed):
        begun = time.process_time()
        model = ju.training.fit(
            *(NETWORKS[own.network](), data),
            recipe=Recipe(epochs=own.epochs, learning_rate=0.05),
            key=jax.random.key(seed),
            **given,
        )
        jax.block_until_ready(model.params)
        return model, time.process_time() - begun

    original, _ = fit(train, 0)
    forward = Costs(original, train.images).forward()
    for forgotten in own.classes:
        task = ju.Task(
            *ju.split_by_class(train, [forgotten]),
            [forgotten],
            num_classes=10,
            validation=validation,
        )
        # The first has the time of compilation, too; the last is told.
        retrained = [fit(task.retain, 1 + seed) for seed in range(own.seeds)]
        seconds = retrained[-1][1]
        tried, records = {}, {}
        for title, method in variants(bool(original.state)).items():
            result = method(original, task, key=jax.random.key(9))
            begun = time.process_time()
            result = method(original, task, key=jax.random.key(9))
            jax.block_until_ready(result.classifier.params)
            spent = time.process_time() - begun
            judged = ju.evaluate(result.classifier, validation, [forgotten])
            tried[title] = result.classifier
            records[title] = {
                "validation": [judged.retained, judged.forgotten],
                "seconds": spent,
                "retraining": seconds,
                "multiply_adds": sum(result.trace.multiply_adds.values()),
                "training": 3 * own.epochs * len(task.retain) * forward,
                "drift": dict(result.trace.drift),
            }
            head = {"network": own.network, "class": forgotten, "title": title}
            write(own.out, head | records[title])
        least, largest = chosen(records)
        audited = {t: tried[t] for t in dict.fromkeys((least, largest, *SHOWN))}
        mask = methods.MaskHead()(original, task, key=jax.random.key(9))
        audited["mask-head"] = mask.classifier
        audits = audit_all(
            audited,
            original=original,
            retrained=[model for model, _ in retrained],
            train=train,
            test=test,
            forget_classes=[forgotten],
            key=jax.random.key(5),
            which=AUDITS,
        )
        for title, audit in audits.items():
            head = {"network": own.network, "class": forgotten, "title": title}
            rules = {"least": title == least, "largest": title == largest}
            write(own.out, head | rules | row(audit))


if __name__ == "__main__":
    main()
