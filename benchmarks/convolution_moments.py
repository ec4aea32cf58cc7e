"""Second moments of convolutions: shifted products against explicit patches.

    python benchmarks/convolution_moments.py [--batch 64] [--repeats 5] [--products]

Both sides see the same inputs in one process at precision HIGHEST: ours never writes
all patches out; the other side writes them with `lax.conv_general_dilated_patches` and
multiplies once. Prints seconds (median), their ratio, temporary bytes and the relative
difference of the results, as JSON lines; beside them the seconds of each of our two
formulations without the gram's assembly, which a stream of images does once, and the
processor's seconds over the cores, which tell more on a busy machine.

With `--products`: the rates of products `xT y` by their number of columns, from which
the constants of `jaxunlearn/symmetric.py` are.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxunlearn as ju
from jaxunlearn.capture.contractions import Convolution
from jaxunlearn.capture.walk import capture

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
    (16, 96, 3, 2),
    (16, 64, 5, 1),
]


class Shifted(Convolution):
    """By offsets, whatever the costs say."""

    by_offsets = True


class Patched(Convolution):
    """By blocks of patches, whatever the costs say."""

    by_offsets = False


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


def seconds(compiled, *arguments, repeats):
    """Median wall seconds after one run, and the least of the processor's a core."""
    jax.block_until_ready(compiled(*arguments))
    walls, processor = [], []
    for _ in range(repeats):
        start, spent = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        walls.append(time.perf_counter() - start)
        processor.append(time.process_time() - spent)
    return statistics.median(walls), min(processor) / os.cpu_count()


def formulations(layer, x, repeats):
    """Seconds of the sums alone, by each way that there is."""
    found = {}
    for kind in (Shifted, Patched) if set(layer.stride) == {1} else (Patched,):
        forced = kind(**dataclasses.asdict(layer))
        wall, processor = seconds(jax.jit(forced.sums), x[:, None], repeats=repeats)
        name = kind.__name__.lower()
        found |= {f"{name}_s": round(wall, 5), f"{name}_cpu_s": round(processor, 5)}
    return found


def compare(side, channels, kernel, stride, batch, repeats) -> dict:
    """One shape by both sides."""
    x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
    layer = product(side, channels, kernel, stride)
    ours = jax.jit(lambda x: layer.whole(layer.sums(x[:, None]))[0])
    theirs = jax.jit(lambda x: explicit(x, kernel, stride))
    programs = [f.lower(x).compile() for f in (ours, theirs)]
    # Patches come channel-major, ours tap-major.
    order = jnp.arange(channels * kernel**2).reshape(channels, -1).T.ravel()
    reference = programs[1](x)[order][:, order]
    difference = jnp.linalg.norm(programs[0](x) - reference)
    times = [seconds(p, x, repeats=repeats) for p in programs]
    memory = [p.memory_analysis().temp_size_in_bytes for p in programs]
    d = channels * kernel**2
    return {
        "side": side,
        "channels": channels,
        "kernel": kernel,
        "stride": stride,
        "batch": batch,
        "ours_s": round(times[0][0], 5),
        "explicit_s": round(times[1][0], 5),
        "ratio": round(times[1][0] / times[0][0], 2),
        "ours_cpu_s": round(times[0][1], 5),
        "explicit_cpu_s": round(times[1][1], 5),
        "cpu_ratio": round(times[1][1] / times[0][1], 2),
        "chosen": "shifted" if layer.by_offsets else "patched",
        **formulations(layer, x, repeats),
        "ours_temporary_bytes": memory[0],
        "explicit_temporary_bytes": memory[1],
        "within_bound": memory[0] <= memory[1] + 2 * 4 * d * d,
        "relative_difference": float(difference / jnp.linalg.norm(reference)),
    }


def rate(columns, repeats) -> dict:
    """Of a product of two tall matrices, 1.5 billion multiplications or a million rows.

    Seconds of the processor over the cores.
    """
    rows = min(2**20, 3 * 2**29 // columns**2)
    x, y = jax.random.normal(jax.random.key(0), (2, rows, columns))
    multiply = jax.jit(lambda x, y: jnp.matmul(x.T, y, precision="highest"))
    _, spent = seconds(multiply, x, y, repeats=repeats)
    speed = 2 * rows * columns**2 / spent / 1e9
    return {"columns": columns, "rows": rows, "gflop_per_s": round(speed, 1)}


def main():
    """Print one JSON line a shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--products", action="store_true")
    arguments = parser.parse_args()
    if arguments.products:
        for columns in (3, 16, 27, 48, 96, 144, 288, 432, 864):
            print(json.dumps(rate(columns, arguments.repeats)), flush=True)
        return
    for shape in SHAPES:
        record = compare(*shape, arguments.batch, arguments.repeats)
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
