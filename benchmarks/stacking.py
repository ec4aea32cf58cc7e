"""Layers of equal size: one after another, or stacked into one batched operation.

    python benchmarks/stacking.py [--layers 12] [--rows 4096] [--repeats 5]

Grams in float32 at precision HIGHEST, of as many rows a layer, in one program; `eigh`
in float64, on the device where the library decomposes. Prints JSON lines: seconds of
both ways (least), and their ratio, above one where stacking is the faster.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import parallel
from jaxunlearn.nullspace import linalg

SIZES = (16, 32, 64, 192, 384)


@jax.jit
def grams_apart(layers: list[jax.Array]) -> list[jax.Array]:
    """As many products as layers."""
    return [jnp.matmul(x.T, x, precision="highest") for x in layers]


@jax.jit
def grams_stacked(layers: list[jax.Array]) -> jax.Array:
    """One batched product; the layers' inputs come apart, as a network makes them."""
    rows = jnp.stack(layers)
    return jnp.matmul(rows.mT, rows, precision="highest")


def eigh_apart(grams: list[jax.Array]) -> Any:
    """One compiled program, called for each layer."""
    return [eigh_stacked(gram) for gram in grams]


eigh_stacked = jax.jit(jnp.linalg.eigh)


def least(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest call after a first one."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def show(operation: str, d: int, layers: int, apart: float, stacked: float) -> None:
    """One line."""
    line = {
        "operation": operation,
        "d": d,
        "layers": layers,
        "apart_s": round(apart, 6),
        "stacked_s": round(stacked, 6),
        "ratio": round(apart / stacked, 2),
        "device": parallel.device_kind(),
        "jax": jax.__version__,
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    """Compare both ways at every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    count, repeats = options.layers, options.repeats
    rng = np.random.default_rng(0)
    for d in SIZES:
        rows = rng.normal(size=(count, options.rows, d)).astype(np.float32)
        layers = list(jnp.asarray(rows))
        show(
            "gram",
            d,
            count,
            least(lambda layers=layers: grams_apart(layers), repeats),
            least(lambda layers=layers: grams_stacked(layers), repeats),
        )
        with linalg.float64():
            grams = [linalg.placed(x.T @ x) for x in rows]
            stack = jnp.stack(grams)
        with jax.enable_x64(True):
            apart = least(lambda grams=grams: eigh_apart(grams), repeats)
            stacked = least(lambda stack=stack: eigh_stacked(stack), repeats)
        show("eigh", d, count, apart, stacked)


if __name__ == "__main__":
    main()
