"""Floating-point operations of each stage, counted from shapes, and what cards can do.

A product of `[m, k]` and `[k, n]` counts `2 m k n`. Elementwise work, normalisation and
decompositions are not counted.
"""

from typing import Any

from .options import Options

# Dense matrix peaks in FLOP/s as the makers state them: in float32 proper, and with
# TF32 inputs where there are such units.
PEAKS = {
    "H200": {"float32": 66.9e12, "tf32": 494.7e12},
    "H100 SXM": {"float32": 66.9e12, "tf32": 494.7e12},
    "H100 80GB HBM3": {"float32": 66.9e12, "tf32": 494.7e12},
    "H100 PCIe": {"float32": 51.2e12, "tf32": 378e12},
    "A100": {"float32": 19.5e12, "tf32": 156e12},
    "L40S": {"float32": 91.6e12, "tf32": 183e12},
    "L4": {"float32": 30.3e12, "tf32": 60e12},
    "A10G": {"float32": 31.2e12, "tf32": 62.5e12},
    "V100": {"float32": 15.7e12},
    "T4": {"float32": 8.1e12},
    "RTX 4090": {"float32": 82.6e12, "tf32": 82.6e12},
}


def peaks(device: str) -> dict[str, float]:
    """The peaks of a device of this name; none if it is unknown."""
    words = device.replace("-", " ").split()
    fitting = [name for name in PEAKS if all(word in words for word in name.split())]
    return PEAKS[max(fitting, key=len)] if fitting else {}


def forward(layers: list[dict[str, Any]]) -> int:
    """Of one image: `2 rows d out` a layer."""
    return sum(2 * x["rows"] * x["d"] * x["out"] for x in layers)


def gradients(layers: list[dict[str, Any]]) -> int:
    """Of one image: forward, and as much for weights and for inputs again.

    The first layer's input is the image, of which no gradient is taken.
    """
    return 3 * forward(layers) - forward(layers[:1])


def grams(layers: list[dict[str, Any]]) -> int:
    """Of one image: `2 rows d^2` a layer, symmetry not used."""
    return sum(2 * x["rows"] * x["d"] ** 2 for x in layers)


def projection(layers: list[dict[str, Any]]) -> int:
    """Of one update: `4 d r out` a layer, `r` the thinner of the basis and the rest."""
    return sum(
        4 * x["d"] * min(x["rank"], x["d"] - x["rank"]) * x["out"] for x in layers
    )


def operations(
    options: Options, layers: list[dict[str, Any]], retained: int, forgotten: int
) -> dict[str, int]:
    """Of one timed call of each stage that can be counted."""
    batch, steps = options.batch, options.steps
    some = min(batch, forgotten) * gradients(layers)
    return {
        "statistics": retained * (forward(layers) + grams(layers)),
        "inversion": steps * batch * 2 * forward(layers),
        "unlearning": steps * (some + projection(layers)),
        "unprojected": steps * some,
        "training": steps * batch * gradients(layers),
    }
