"""Gradients of max-pooling over tiles of 2 x 2: by slices and by windows.

    python benchmarks/max_pooling.py

Both get the maps behind AlexNet's convolutions; prints one JSON line a map.
"""

import json
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import parallel
from jaxunlearn.models.layers import halve

REPEATS = 7


def windows(x):
    """By windows."""
    return nn.max_pool(x, (2, 2), (2, 2))


def main():
    """Print one JSON line a map."""
    for shape in ((128, 29, 29, 64), (128, 12, 12, 128), (128, 5, 5, 256)):
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        gradients = [
            jax.jit(jax.grad(lambda x, pool=pool: jnp.square(pool(x)).sum()))
            for pool in (halve, windows)
        ]
        np.testing.assert_array_equal(*(gradient(x) for gradient in gradients))
        seconds = ([], [])
        for _ in range(REPEATS):
            for gradient, found in zip(gradients, seconds, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(gradient(x))
                found.append(time.perf_counter() - start)
        slices, by_windows = map(statistics.median, seconds)
        record = {
            "shape": shape,
            "slices_s": slices,
            "windows_s": by_windows,
            "ratio": by_windows / slices,
            "device": parallel.device_kind(),
            "jax": jax.__version__,
        }
        print(json.dumps(record))


if __name__ == "__main__":
    main()
