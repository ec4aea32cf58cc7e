"""Ten trainings, each without another class: as one vmapped program, or in turns.

    python benchmarks/vmapped_training.py [--networks smallcnn mlp] [--steps 30]

What a sweep's retrained networks would take. Both sides run the library's own training
step over the same minibatches, gathered by index from one array: stacked, with an order
of its own and parameters of its own for each network; or one network after another with
one compiled step. Prints a JSON line a network: seconds of compilation and of a step of
all ten, seconds of a whole training of so many steps, and the ratio of these, above
one where one program is the faster; how far parameters are apart after one step.
"""

import argparse
import dataclasses
import functools
import json
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.descent.loop import chunk_length, gather_minibatches, run_steps
from jaxunlearn.models.files import versions
from jaxunlearn.training import Recipe
from jaxunlearn.training.step import TrainingStep, begin

CLASSES = 10
PREPROCESS = ju.Preprocess((0.5,), (0.25,))


class MLP(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, images: Any, train: bool = False) -> Any:
        """Logits."""
        x = images.reshape(len(images), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(CLASSES)(x)


_create = functools.partial(ju.models.create, num_classes=CLASSES)
# The network, the images' shape, samples, a minibatch, and epochs of a whole training.
NETWORKS = {
    "mlp": (MLP(), (8, 8, 1), 1294, 64, 15),
    "smallcnn": (_create("smallcnn"), (8, 8, 1), 1294, 64, 15),
    "mlp-fashion": (MLP(), (14, 14, 1), 54000, 64, 5),
    "vit": (_create("vit", patch=4, depth=2), (8, 8, 1), 1294, 64, 15),
    "smallcnn-fashion": (_create("smallcnn"), (14, 14, 1), 54000, 64, 5),
    "allcnn": (_create("allcnn"), (32, 32, 3), 45000, 128, 30),
    "resnet18": (_create("resnet18"), (32, 32, 3), 45000, 128, 30),
}


@dataclasses.dataclass(frozen=True)
class Vmapped:
    """`single` of several networks; those of a device have a leading axis."""

    single: TrainingStep

    def __call__(self, carry: Any, constants: Any, index: Any, row: Any) -> Any:
        """As of `single`, in each of them."""
        rows, rate = row
        key, *numbers = constants

        def one(carry: Any, key: Any, rows: Any) -> Any:
            return self.single(carry, (key, *numbers), index, (rows, rate))

        return jax.vmap(one)(carry, key, rows)


def measure(name: str, steps: int, repeats: int) -> dict[str, Any]:
    """One network both ways."""
    model, shape, samples, batch, epochs = NETWORKS[name]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, *shape), np.uint8)
    labels = (np.arange(samples) % CLASSES).astype(np.int32)
    arrays = jax.device_put((images, labels))
    kept = [np.flatnonzero(labels != c) for c in range(CLASSES)]
    orders = np.stack(
        [rng.choice(rows, (steps, batch), shuffle=True) for rows in kept], axis=1
    ).astype(np.int32)
    init, recipe = jax.jit(model.init), Recipe(epochs=epochs)
    keys = jax.random.split(jax.random.key(0), CLASSES)
    began = []
    for key in keys:
        variables = init(key, jnp.zeros((1, *shape)))
        classifier = ju.freeze(model, variables, preprocess=PREPROCESS)
        began.append(begin(recipe, classifier, key, None))
    single, _, (_, *numbers) = began[0]
    rate = np.full(steps, 0.05, np.float32)

    def minibatches(chosen: Any, first: int, stop: int) -> Any:
        stops = np.minimum(np.arange(first, stop), steps - 1)
        rows = gather_minibatches(arrays, lambda *_: orders[stops, chosen], None, 0, 0)
        return rows, rate[stops]

    chunk = chunk_length(CLASSES * batch * int(np.prod(shape)))

    def run(step: Any, carry: Any, key: Any, chosen: Any, first: int, stop: int) -> Any:
        return run_steps(
            *(step, carry, (key, *numbers)),
            start=first,
            steps=stop - first,
            feed=functools.partial(minibatches, chosen),
            chunk=chunk,
            ahead=True,
        )[0]

    def in_turns(carries: Any, first: int, stop: int) -> Any:
        given = zip(carries, keys, range(CLASSES), strict=True)
        return [run(single, *one, first, stop) for one in given]

    def as_one(carry: Any, first: int, stop: int) -> Any:
        return run(Vmapped(single), carry, keys, slice(None), first, stop)

    carries = [carry for _, carry, _ in began]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *carries)
    sides = {"in turns": (in_turns, carries), "as one": (as_one, stacked)}
    # The first time compiles; then both sides take turns.
    first, taken = {}, {how: [] for how in sides}
    for number in range(1 + repeats):
        for how, (train, start) in sides.items():
            begun = time.perf_counter()
            jax.block_until_ready(train(start, 0, steps))
            seconds = time.perf_counter() - begun
            if number == 0:
                first[how] = seconds
            else:
                taken[how].append(seconds)
    step = {how: min(seconds) / steps for how, seconds in taken.items()}
    compiled = {how: max(0.0, first[how] - min(taken[how])) for how in sides}
    # Long enough to differ by rounding, too short for chaos.
    short = in_turns(carries, 0, 1), as_one(stacked, 0, 1)
    difference = distance(jax.tree.map(lambda *x: jnp.stack(x), *short[0]), short[1])
    whole = recipe.epochs * (len(kept[0]) // batch)
    seconds = {how: compiled[how] + whole * step[how] for how in sides}
    return {
        "network": name,
        "networks": CLASSES,
        "image_shape": shape,
        "batch": batch,
        "compile_seconds": compiled,
        "step_seconds": step,
        "steps": whole,
        "seconds": seconds,
        "step_ratio": step["in turns"] / step["as one"],
        "ratio": seconds["in turns"] / seconds["as one"],
        "difference": difference,
        "device": parallel.device_kind(),
        "versions": versions(),
    }


def distance(one: Any, other: Any) -> float:
    """The largest difference of two trees' floats, relative to a leaf's largest."""

    def of(a: Any, b: Any) -> float:
        return float(jnp.abs(a - b).max() / (jnp.abs(a).max() + 1e-9))

    return max(map(of, *map(jax.tree.leaves, (one, other))))


def main() -> None:
    """Measure the networks that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = ["mlp", "smallcnn", "mlp-fashion", "smallcnn-fashion"]
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=usual)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for name in options.networks:
        print(json.dumps(measure(name, options.steps, options.repeats)), flush=True)


if __name__ == "__main__":
    main()
