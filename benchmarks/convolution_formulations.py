"""Ways to compute a convolution and its gradients.

    python benchmarks/convolution_formulations.py [--batch 32] [--threads 1]

For every layer of ResNet-18 and of the half-width All-CNN at 32 x 32: XLA's convolution
with channels last and with channels first, several formulations by matrix products, and
PyTorch where it is installed. Checks that all agree, and prints JSON lines and a table
of milliseconds. Flags for XLA come from the environment, as always (`XLA_FLAGS`).
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunlearn import parallel
from jaxunlearn.descent.cpu_convolution import PiecewiseConvolution

try:
    import torch
except ImportError:
    torch = None

FIRST, LAST = ("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC")


class Layer(NamedTuple):
    """A convolution with `side // 2` zeros around the map."""

    map: int
    before: int
    after: int
    side: int = 3
    stride: int = 1

    @property
    def name(self) -> str:
        """Such as 32x32x64-128k3s2."""
        return (
            f"{self.map}x{self.map}x{self.before}-{self.after}"
            f"k{self.side}s{self.stride}"
        )

    @property
    def out(self) -> int:
        """Side of the map behind it."""
        return -(-self.map // self.stride)

    @property
    def operations(self) -> int:
        """Multiplications and additions an image, zeros included."""
        return 2 * self.out**2 * self.side**2 * self.before * self.after


# How often each occurs.
NETWORKS = {
    "resnet18": {
        Layer(32, 3, 64): 1,
        Layer(32, 64, 64): 4,
        Layer(32, 64, 128, 3, 2): 1,
        Layer(32, 64, 128, 1, 2): 1,
        Layer(16, 128, 128): 3,
        Layer(16, 128, 256, 3, 2): 1,
        Layer(16, 128, 256, 1, 2): 1,
        Layer(8, 256, 256): 3,
        Layer(8, 256, 512, 3, 2): 1,
        Layer(8, 256, 512, 1, 2): 1,
        Layer(4, 512, 512): 3,
    },
    "allcnn": {
        Layer(32, 3, 48): 1,
        Layer(32, 48, 48): 1,
        Layer(32, 48, 96, 3, 2): 1,
        Layer(16, 96, 96): 2,
        Layer(16, 96, 96, 3, 2): 1,
        Layer(8, 96, 96): 1,
        Layer(8, 96, 96, 1): 1,
    },
}


# Forward. `x` is [n, h, w, c], the kernel [side, side, c, d].


def padded(x, side):
    """Zeros around the map."""
    border = (side // 2, side // 2)
    return jnp.pad(x, ((0, 0), border, border, (0, 0)))


def tap(x, i, j, out, stride):
    """What the kernel's entry (i, j) meets, of a padded map."""
    last = (out - 1) * stride + 1
    return x[:, i : i + last : stride, j : j + last : stride]


def convolution(x, kernel, layer):
    """XLA's own."""
    border = (layer.side // 2, layer.side // 2)
    return lax.conv_general_dilated(
        x, kernel, (layer.stride,) * 2, (border, border), dimension_numbers=LAST
    )


def convolution_first(x, kernel, layer):
    """XLA's own, between two transpositions."""
    border = (layer.side // 2, layer.side // 2)
    y = lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2),
        kernel.transpose(3, 2, 0, 1),
        (layer.stride,) * 2,
        (border, border),
        dimension_numbers=FIRST,
    )
    return y.transpose(0, 2, 3, 1)


def patches(x, kernel, layer):
    """Patches by XLA's operation, and one product."""
    border = (layer.side // 2, layer.side // 2)
    found = lax.conv_general_dilated_patches(
        x,
        (layer.side,) * 2,
        (layer.stride,) * 2,
        (border, border),
        dimension_numbers=LAST,
    )
    # Channels come before the taps there.
    matrix = kernel.transpose(2, 0, 1, 3).reshape(-1, layer.after)
    return found @ matrix


def gathered(x, kernel, layer):
    """Patches by slices, and one product."""
    x = padded(x, layer.side)
    taps = [(i, j) for i in range(layer.side) for j in range(layer.side)]
    found = [tap(x, i, j, layer.out, layer.stride) for i, j in taps]
    return jnp.concatenate(found, axis=-1) @ kernel.reshape(-1, layer.after)


def by_rows(x, kernel, layer):
    """For each row of the kernel, patches by slices and a product."""
    x, total = padded(x, layer.side), 0
    for i in range(layer.side):
        found = [tap(x, i, j, layer.out, layer.stride) for j in range(layer.side)]
        rows = jnp.concatenate(found, axis=-1)
        total += rows @ kernel[i].reshape(-1, layer.after)
    return total


def shifted(x, kernel, layer):
    """For each entry of the kernel a slice and a product."""
    x, total = padded(x, layer.side), 0
    for i in range(layer.side):
        for j in range(layer.side):
            total += tap(x, i, j, layer.out, layer.stride) @ kernel[i, j]
    return total


# Backward. `g` is [n, out, out, d].


def mirrored(kernel):
    """The kernel of the convolution that is the gradient at stride 1."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def gradient_by(formulation):
    """XLA's differentiation of a formulation."""

    def gradient(g, kernel, layer, batch):
        x = jnp.zeros((batch, layer.map, layer.map, layer.before), g.dtype)
        return jax.linear_transpose(lambda x: formulation(x, kernel, layer), x)(g)[0]

    return gradient


def gradient_in_phases(formulation):
    """A convolution of stride 1 for each remainder of a place by the stride.

    At stride 1 this is the convolution with the mirrored kernel.
    """

    def gradient(g, kernel, layer, batch):
        stride, rows = layer.stride, []
        for row in range(stride):
            columns = [phase(g, kernel, layer, row, column) for column in range(stride)]
            # [n, out, out, stride, c]
            rows.append(jnp.stack(columns, axis=3))
        whole = jnp.stack(rows, axis=2)
        return whole.reshape(batch, layer.map, layer.map, layer.before)

    def phase(g, kernel, layer, row, column):
        """Places `stride * k + (row, column)` of the input."""
        stride, border = layer.stride, layer.side // 2
        # Output o and tap t touch place stride * o + t - border.
        pairs = []
        for offset in (row, column):
            taps = [t for t in range(layer.side) if (offset + border - t) % stride == 0]
            pairs.append([(t, (offset + border - t) // stride) for t in taps])
        if not pairs[0] or not pairs[1]:
            shape = (*g.shape[:3], layer.before)
            return jnp.zeros(shape, g.dtype)
        return formulation(g, kernel, pairs)

    return gradient


def window(g, pairs):
    """Padding that brings every shift of `pairs` into the map, and the slices' starts.

    Each pair is (tap, shift): the tap meets output `k + shift` for place `k`.
    """
    shifts = [[shift for _, shift in along] for along in pairs]
    low = [max(0, -min(along)) for along in shifts]
    high = [max(0, max(along)) for along in shifts]
    wide = jnp.pad(g, ((0, 0), (low[0], high[0]), (low[1], high[1]), (0, 0)))
    return wide, low


def phase_slices(g, kernel, pairs):
    """For each pair of taps its slice of `g` and its matrix [d, c]."""
    wide, low = window(g, pairs)
    n, m = g.shape[1:3]
    for t, shift in pairs[0]:
        for u, across in pairs[1]:
            i, j = shift + low[0], across + low[1]
            yield wide[:, i : i + n, j : j + m], kernel[t, u].T


def phase_shifted(g, kernel, pairs):
    """A product for each tap."""
    return sum(found @ matrix for found, matrix in phase_slices(g, kernel, pairs))


def phase_gathered(g, kernel, pairs):
    """One product of concatenated slices."""
    found, matrices = zip(*phase_slices(g, kernel, pairs), strict=True)
    return jnp.concatenate(found, axis=-1) @ jnp.concatenate(matrices)


def phase_convolution(g, kernel, pairs):
    """XLA's convolution of stride 1 by the taps of this phase."""
    wide, _ = window(g, pairs)
    # Shifts fall by one as taps grow by the stride.
    taps = [[t for t, _ in reversed(along)] for along in pairs]
    part = kernel[jnp.array(taps[0])][:, jnp.array(taps[1])].swapaxes(2, 3)
    starts = [min(shift for _, shift in along) for along in pairs]
    n, m = g.shape[1:3]
    first = [max(0, start) for start in starts]
    sizes = [n + len(taps[0]) - 1, m + len(taps[1]) - 1]
    wide = wide[:, first[0] : first[0] + sizes[0], first[1] : first[1] + sizes[1]]
    return lax.conv_general_dilated(wide, part, (1, 1), "VALID", dimension_numbers=LAST)


def gradient_scattered(g, kernel, layer, batch):
    """One product to all taps, whose slices are added where they came from."""
    side, stride, last = layer.side, layer.stride, (layer.out - 1) * layer.stride + 1
    matrix = kernel.transpose(3, 0, 1, 2).reshape(layer.after, -1)
    spread = (g @ matrix).reshape(batch, layer.out, layer.out, side, side, -1)
    wide = layer.map + 2 * (side // 2)
    total = 0
    for i in range(side):
        for j in range(side):
            edges = [(k, wide - k - last, stride - 1) for k in (i, j)]
            part = spread[:, :, :, i, j]
            zero = jnp.zeros((), g.dtype)
            total += lax.pad(part, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    inside = slice(side // 2, side // 2 + layer.map)
    return total[:, inside, inside]


def kernel_by_xla(x, g, kernel, layer):
    """XLA's differentiation of its own convolution."""
    return jax.linear_transpose(lambda k: convolution(x, k, layer), kernel)(g)[0]


def kernel_in_pieces(x, g, kernel, layer):
    """As the library takes it on a CPU."""
    border = (layer.side // 2, layer.side // 2)
    kind = PiecewiseConvolution((layer.stride,) * 2, (border, border))
    return kind.kernel_gradient(x, g, kernel)


FORWARD = {
    "xla": convolution,
    "xla first": convolution_first,
    "patches": patches,
    "gathered": gathered,
    "rows": by_rows,
    "shifted": shifted,
}
BACKWARD = {
    "xla": gradient_by(convolution),
    "xla first": gradient_by(convolution_first),
    "phases": gradient_in_phases(phase_convolution),
    "gathered": gradient_in_phases(phase_gathered),
    "shifted": gradient_in_phases(phase_shifted),
    "scattered": gradient_scattered,
}
KERNEL = {"xla": kernel_by_xla, "pieces": kernel_in_pieces}


def torch_sides(x, kernel, g, layer) -> tuple[dict[str, Callable], ...]:
    """PyTorch's three operations, with channels first and last in memory."""
    forward, backward, of_kernel = {}, {}, {}
    for name, memory in (
        ("torch", torch.contiguous_format),
        ("torch last", torch.channels_last),
    ):
        theirs, wide, theirs_g = (
            torch.from_numpy(np.array(a)).contiguous(memory_format=memory)
            for a in (
                x.transpose(0, 3, 1, 2),
                kernel.transpose(3, 2, 0, 1),
                g.transpose(0, 3, 1, 2),
            )
        )
        options = {"stride": layer.stride, "padding": layer.side // 2}

        def run_forward(x=theirs, kernel=wide, options=options):
            with torch.no_grad():
                return torch.nn.functional.conv2d(x, kernel, **options)

        def run_backward(x=theirs, kernel=wide, g=theirs_g, options=options):
            return torch.nn.grad.conv2d_input(x.shape, kernel, g, **options)

        def run_kernel(x=theirs, kernel=wide, g=theirs_g, options=options):
            found = torch.nn.grad.conv2d_weight(x, kernel.shape, g, **options)
            # What `value` brings to the order of our kernels.
            return found.permute(2, 0, 3, 1)

        forward[name], backward[name] = run_forward, run_backward
        of_kernel[name] = run_kernel
    return forward, backward, of_kernel


def value(result) -> np.ndarray:
    """In our order."""
    if torch is not None and isinstance(result, torch.Tensor):
        return result.permute(0, 2, 3, 1).numpy()
    return np.asarray(result)


def measure(functions: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns."""
    found = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            found[name].append(time.perf_counter() - start)
    return found


def check(functions: dict[str, Callable]) -> float:
    """The greatest relative difference from the first."""
    values = [value(function()) for function in functions.values()]
    size = np.abs(values[0]).max()
    worst = max(float(np.abs(v - values[0]).max() / size) for v in values)
    if not worst < 1e-4:
        raise SystemExit(f"Formulations differ by {worst}: {list(functions)}.")
    return worst


def sides(
    layer: Layer, batch: int, wanted: list[str] | None
) -> dict[str, dict[str, Callable]]:
    """What is measured of a layer, by direction and name."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, layer.map, layer.map, layer.before))
    kernel = jax.random.normal(
        keys[1], (layer.side, layer.side, layer.before, layer.after)
    )
    g = jax.random.normal(keys[2], (batch, layer.out, layer.out, layer.after))
    forward, backward = {}, {}
    for name, function in FORWARD.items():
        # As arguments: constants would be folded while compiling.
        compiled = jax.jit(lambda x, k, f=function: f(x, k, layer))
        forward[name] = lambda f=compiled: f(x, kernel)
    for name, function in BACKWARD.items():
        compiled = jax.jit(lambda g, k, f=function: f(g, k, layer, batch))
        backward[name] = lambda f=compiled: f(g, kernel)
    of_kernel = {}
    for name, function in KERNEL.items():
        compiled = jax.jit(lambda x, g, k, f=function: f(x, g, k, layer))
        of_kernel[name] = lambda f=compiled: f(x, g, kernel)
    if torch is not None:
        theirs = torch_sides(x, kernel, g, layer)
        for ours, others in zip((forward, backward, of_kernel), theirs, strict=True):
            ours.update(others)
    found = {"forward": forward, "backward": backward, "kernel": of_kernel}
    if wanted is None:
        return found
    return {
        direction: {name: f for name, f in functions.items() if name in wanted}
        for direction, functions in found.items()
    }


def main() -> None:
    """Print JSON lines, then the table, then what the networks' layers sum to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="cores to use; default is all")
    parser.add_argument("--layers", nargs="+", help="names; default is all")
    parser.add_argument("--formulations", nargs="+", help="names; default is all")
    parser.add_argument("--results", type=Path, help="a file to append to")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        # The thread pools of both libraries do not exist yet.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    threads = len(os.sched_getaffinity(0))
    if torch is not None:
        torch.set_num_threads(threads)
    layers = list(
        dict.fromkeys(layer for found in NETWORKS.values() for layer in found)
    )
    if arguments.layers:
        layers = [layer for layer in layers if layer.name in arguments.layers]
    least = {}
    for layer in layers:
        found = sides(layer, arguments.batch, arguments.formulations)
        for direction, functions in found.items():
            worst = check(functions)
            seconds = measure(functions, arguments.repeats)
            least[layer, direction] = {n: min(s) for n, s in seconds.items()}
            record = {
                "layer": layer.name,
                "direction": direction,
                "batch": arguments.batch,
                "seconds": {
                    name: {
                        "min": min(values),
                        "median": statistics.median(values),
                        "max": max(values),
                    }
                    for name, values in seconds.items()
                },
                "greatest_relative_difference": worst,
                "threads": threads,
                "device": parallel.device_kind(),
                "jax": jax.__version__,
                "torch": None if torch is None else torch.__version__,
                "xla_flags": os.environ.get("XLA_FLAGS", ""),
            }
            line = json.dumps(record)
            print(line, flush=True)
            if arguments.results is not None:
                with arguments.results.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    print_tables(least)


def print_tables(least: dict[tuple[Layer, str], dict[str, float]]) -> None:
    """Milliseconds, the least of all repeats."""
    for direction in ("forward", "backward", "kernel"):
        rows = {layer: row for (layer, way), row in least.items() if way == direction}
        names = list(next(iter(rows.values())))
        print(f"\n{direction:18}" + "".join(f"{name:>11}" for name in names))
        for layer, row in rows.items():
            print(f"{layer.name:18}" + "".join(f"{1e3 * row[n]:11.2f}" for n in names))
        for network, counts in NETWORKS.items():
            if not set(counts) <= set(rows):
                continue
            sums = [
                sum(count * rows[layer][n] for layer, count in counts.items())
                for n in names
            ]
            print(f"{network:18}" + "".join(f"{1e3 * s:11.2f}" for s in sums))


if __name__ == "__main__":
    main()
