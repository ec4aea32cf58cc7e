"""A training step by itself, and as the body of a loop on the device.

Which of the two `training.fit` sends off is decided by `parallel.loops_are_slow`: XLA's
CPU backend does convolution gradients inside loops another way. Prints one JSON line
with the seconds of each and their ratio.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.training import Recipe
from jaxunlearn.training.step import begin


def seconds(function, repeats: int) -> list[float]:
    """Of each call after the first."""
    jax.block_until_ready(function())
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="allcnn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1, help="in the loop")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = ju.models.create(arguments.model, num_classes=10)
    images = np.random.default_rng(0).random((arguments.batch, 32, 32, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    classifier = ju.freeze(model, variables)
    step, carry, constants = begin(Recipe(), classifier, jax.random.key(1), None)
    labels = np.arange(arguments.batch, dtype=np.int32) % 10
    batch = ((images, labels), np.float32(0.01))

    @jax.jit
    def alone(carry):
        return step(carry, constants, 0, batch)[0]

    @jax.jit
    def looped(carry, count):
        return jax.lax.fori_loop(
            0, count, lambda i, carry: step(carry, constants, i, batch)[0], carry
        )

    plain = seconds(lambda: alone(carry), arguments.repeats)
    inside = seconds(lambda: looped(carry, arguments.steps), arguments.repeats)
    each = statistics.median(inside) / arguments.steps
    record = {
        "model": arguments.model,
        "batch": arguments.batch,
        "steps": arguments.steps,
        "alone_seconds": plain,
        "looped_seconds": inside,
        "ratio_per_step": each / statistics.median(plain),
        "images_per_second_alone": arguments.batch / statistics.median(plain),
        "device": parallel.device_kind(),
        "jax": jax.__version__,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
