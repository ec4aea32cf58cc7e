"""A sweep over all classes against one request, and against requests in a loop.

    python benchmarks/sweep.py --out benchmarks/results/sweep_2cpu.jsonl

Two kinds of records, one JSON line each, appended as they come:

- "ways": seconds of a step of all requests by `vmap`, by `lax.map` and one by one. What
  `jaxunlearn.sweep` does by itself on a CPU rests on these.
- "requests": UNSC on the digits, every class forgotten by itself. One request alone,
  all in a sweep, all in a Python loop that takes statistics anew for each: seconds of
  the first time (with compilation, also given apart) and of a second time where shapes
  are known; samples read for statistics; how far the two sides' logits are apart.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import tyro

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.models.files import versions
from jaxunlearn.training import Recipe

CLASSES = 10
KEY = jax.random.key(1)


class MLP(nn.Module):
    """Two hidden layers."""

    width: int = 256

    @nn.compact
    def __call__(self, images, train=False):
        """Logits."""
        x = images.reshape(len(images), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(CLASSES)(x)


# The network, the images' shape, and images of a class in a minibatch.
WAYS = {
    "mlp": (MLP(), (8, 8, 1), 128),
    "smallcnn": (ju.models.create("smallcnn", num_classes=CLASSES), (8, 8, 1), 128),
    "allcnn": (
        ju.models.create("allcnn", num_classes=CLASSES, width=0.25),
        (16, 16, 3),
        32,
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      ways: networks whose steps are timed each way.
      requests: networks on which whole requests are timed.
      epochs: of their training.
      steps: of each request.
      repeats: of the steps, whose median counts.
      out: a file to append to.
    """

    ways: tuple[str, ...] = ("mlp", "smallcnn", "allcnn")
    requests: tuple[str, ...] = ("mlp", "smallcnn")
    epochs: int = 5
    steps: int = 100
    repeats: int = 3
    out: Path | None = None


def main(options: Options) -> None:
    """Print, and append, one line a record."""
    for name in options.ways:
        tell(options, ways(name, options))
    for name in options.requests:
        tell(options, requests(name, options))


def tell(options: Options, record: dict) -> None:
    """Print a record with what it depends on, and append it."""
    record |= {"device": parallel.device_kind(), "versions": versions()}
    line = json.dumps(record)
    print(line, flush=True)
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def ways(name: str, options: Options) -> dict:
    """Seconds of a step of all requests, by way of computing it."""
    model, shape, batch = WAYS[name]
    images = np.random.default_rng(0).random((CLASSES * batch, *shape), np.float32)
    data = ju.Data(images, np.arange(len(images)) % CLASSES)
    classifier = ju.freeze(model, jax.jit(model.init)(jax.random.key(0), images[:1]))
    # In a loop on a CPU a convolution's gradients take long.
    steps = 2 if parallel.loops_are_slow() else options.steps
    method = ju.UNSC(subspace="pooled", steps=steps, batch_size=batch)
    seconds = {}
    for how in ("vmap", "map", "one by one"):
        taken = []
        # The first time compiles.
        for _ in range(1 + options.repeats):
            found = ju.sweep(classifier, data, "each", method, key=KEY, how=how)
            taken.append(found.seconds["steps"] / steps)
        seconds[how] = statistics.median(taken[1:])
    return {
        "kind": "ways",
        "model": name,
        "requests": CLASSES,
        "batch": batch,
        "image_shape": shape,
        "step_seconds": seconds,
        "fastest": min(seconds, key=seconds.__getitem__),
    }


def requests(name: str, options: Options) -> dict:
    """One request, all in a sweep, all in a loop."""
    train = ju.datasets.load("digits", "train")
    classifier = ju.training.fit(
        WAYS[name][0],
        train,
        recipe=Recipe(epochs=options.epochs),
        key=jax.random.key(0),
        preprocess=ju.datasets.preprocess("digits"),
    )
    method = ju.UNSC(steps=options.steps)

    def alone(c: int) -> ju.Result:
        forget, retain = ju.split_by_class(train, [c])
        task = ju.Task(forget, retain, (c,), num_classes=CLASSES)
        return method(classifier, task, key=KEY)

    def together() -> ju.Sweep:
        return ju.sweep(classifier, train, "each", method, key=KEY)

    def loop() -> list[ju.Result]:
        return [alone(c) for c in range(CLASSES)]

    # The sweep first: what it compiles besides is to its own account.
    jax.clear_caches()
    swept, swept_first = timed(together)
    _, swept_again = timed(together)
    jax.clear_caches()
    _, one_first = timed(lambda: alone(0))
    _, one_again = timed(lambda: alone(0))
    jax.clear_caches()
    looped, loop_first = timed(loop)
    read = sum(r.trace.samples_read["retain"] for r in looped)
    pairs = zip(swept.results, looped, strict=True)
    return {
        "kind": "requests",
        "model": name,
        "requests": CLASSES,
        "images": len(train),
        "steps": options.steps,
        "how": swept.how,
        "one": {"first": one_first, "again": one_again},
        "sweep": {"first": swept_first, "again": swept_again},
        "sweep_stages": swept.seconds,
        "loop": {"first": loop_first},
        "loop_compile": sum(r.trace.seconds["compile"] for r in looped),
        "sweep_to_one": {
            "first": swept_first / one_first,
            "again": swept_again / one_again,
        },
        "loop_to_sweep": loop_first / swept_first,
        "samples_read_for_statistics": {
            "sweep": swept.samples_read["statistics"],
            "loop": read,
        },
        "data_passes": {"sweep": swept.passes["statistics"], "loop": CLASSES},
        "largest_logit_difference": max(
            difference(one, other, classifier, train.images) for one, other in pairs
        ),
    }


def timed(function) -> tuple:
    """What it returns, and its wall seconds."""
    start = time.perf_counter()
    found = jax.block_until_ready(function())
    return found, time.perf_counter() - start


def difference(one, other, original, images) -> float:
    """Of the logits of two results, relative to how far the second has moved."""
    a, b, start = (
        np.asarray(c(images)) for c in (one.classifier, other.classifier, original)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b - start))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
