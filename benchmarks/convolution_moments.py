"""Second moments of convolutions: shifted products against explicit patches.

    python benchmarks/convolution_moments.py [--batch 64] [--repeats 5]

Both sides see the same inputs in one process at precision HIGHEST: ours never writes
the patches out; the other side writes them with `lax.conv_general_dilated_patches` and
multiplies once. Prints seconds (median), their ratio, temporary bytes and the relative
difference of the results, as JSON lines.
"""

import argparse
import json
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxunlearn as ju
from jaxunlearn.products import Convolution
from jaxunlearn.program import capture

# (side, channels, kernel, stride): the layers of All-CNN (half width), ResNet-18, VGG.
SHAPES = [
    (32, 3, 3, 1),
    (32, 48, 3, 1),
    (16, 96, 3, 1),
    (8, 96, 3, 1),
    (32, 64, 3, 1),
    (16, 128, 3, 1),
    (8, 256, 3, 1),
    (4, 512, 3, 1),
    (32, 48, 3, 2),
    (16, 64, 5, 1),
]


def explicit(x, kernel, stride):
    """One product of all patches."""
    patches = jax.lax.conv_general_dilated_patches(
        x,
        (kernel, kernel),
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    rows = patches.reshape(-1, patches.shape[-1])
    return jnp.einsum("nd,ne->de", rows, rows, precision=jax.lax.Precision.HIGHEST)


def product(side, channels, kernel, stride) -> Convolution:
    """The convolution as the library reads it off a program."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Conv(channels, (kernel, kernel), stride, name="conv")
            return layer(x).mean((1, 2))

    images = jnp.zeros((1, side, side, channels))
    classifier = ju.freeze(Layer(), Layer().init(jax.random.key(0), images))
    (use,) = capture(classifier, images).uses.values()
    return use.product


def seconds(compiled, x, repeats):
    """Median wall seconds after one run."""
    compiled(x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        compiled(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    """Print one JSON line a shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for side, channels, kernel, stride in SHAPES:
        x = jax.random.normal(
            jax.random.key(0), (arguments.batch, side, side, channels)
        )
        layer = product(side, channels, kernel, stride)
        ours = jax.jit(lambda x, layer=layer: layer.gram(x[:, None])[0])
        theirs = jax.jit(lambda x, k=kernel, s=stride: explicit(x, k, s))
        programs = [f.lower(x).compile() for f in (ours, theirs)]
        # Patches come channel-major, ours tap-major.
        order = jnp.arange(channels * kernel**2).reshape(channels, -1).T.ravel()
        reference = programs[1](x)[order][:, order]
        difference = jnp.linalg.norm(programs[0](x) - reference)
        times = [seconds(p, x, arguments.repeats) for p in programs]
        memory = [p.memory_analysis().temp_size_in_bytes for p in programs]
        d = channels * kernel**2
        print(
            json.dumps(
                {
                    "side": side,
                    "channels": channels,
                    "kernel": kernel,
                    "stride": stride,
                    "ours_s": round(times[0], 5),
                    "explicit_s": round(times[1], 5),
                    "ratio": round(times[1] / times[0], 2),
                    "ours_temporary_bytes": memory[0],
                    "explicit_temporary_bytes": memory[1],
                    "within_bound": memory[0] <= memory[1] + 2 * 4 * d * d,
                    "relative_difference": float(
                        difference / jnp.linalg.norm(reference)
                    ),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
