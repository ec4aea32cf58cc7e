"""Steps of training and unlearning on a CPU cut into one, two or four devices.

    python benchmarks/cpu_devices.py --devices 1 2 4

Each device has its share of the minibatch. Each number of devices has a process of its
own; the numbers that they compute are the same but for rounding. Prints JSON lines of
images per second.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

CLASSES, IMAGES, SHAPE = 10, 256, (32, 32, 3)


def rate(call: Callable[[int], None], few: int, many: int, images: int) -> float:
    """Images a second, from calls with fewer and more rounds of so many images."""
    call(few)
    seconds = {few: [], many: []}
    for _ in range(3):
        for rounds, found in seconds.items():
            started = time.perf_counter()
            call(rounds)
            found.append(time.perf_counter() - started)
    return (many - few) * images / (min(seconds[many]) - min(seconds[few]))


def measure(batch: int) -> dict:
    """Of a half-width All-CNN, on all devices that this process has."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import jaxunlearn as ju

    model = ju.models.create("allcnn", num_classes=CLASSES, width=0.5)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    pixels = ju.datasets.preprocess("cifar10")
    classifier = ju.freeze(model, variables, preprocess=pixels)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (IMAGES, *SHAPE), dtype=np.uint8)
    data = ju.Data(images, np.arange(IMAGES, dtype=np.int32) % CLASSES)
    count, key = jax.device_count(), jax.random.key(0)
    mesh = None if count == 1 else jax.make_mesh((count,), ("data",))

    def unlearn(steps):
        given = (classifier, data.images, data.labels, optax.sgd(0.01))
        done = ju.unlearn(*given, steps=steps, key=key, batch_size=batch, mesh=mesh)
        jax.block_until_ready(done.classifier.params)

    def train(epochs):
        recipe = ju.training.Recipe(epochs=epochs, batch_size=batch)
        given = {"key": key, "preprocess": pixels, "mesh": mesh}
        done = ju.training.fit(model, data, recipe=recipe, **given)
        jax.block_until_ready(done.params)

    return {
        "devices": count,
        "cores": len(os.sched_getaffinity(0)),
        "batch": batch,
        "unlearning_images_per_second": rate(unlearn, 1, 5, batch),
        "training_images_per_second": rate(train, 1, 3, IMAGES),
        "jax": jax.__version__,
    }


def main() -> None:
    """One child for each number of devices and size of a minibatch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.batch[0])))
        return
    for batch in options.batch:
        for count in options.devices:
            flag = f"--xla_force_host_platform_device_count={count}"
            subprocess.run(
                [sys.executable, __file__, "--child", "--batch", str(batch)],
                env=os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
                check=True,
            )


if __name__ == "__main__":
    main()
