"""The classifier of others: its layers in NumPy, and what is written down of it."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CHANNELS = [(3, 16), (16, 16), (16, 16), (16, 32), (32, 32), (16, 32)]
CHANNELS += [(32, 64), (64, 64), (32, 64)]
STRIDED, NARROW = (3, 5, 6, 8), (5, 8)
# The BatchNorm that follows a convolution.
NORMS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 6: 5, 7: 6}


@pytest.fixture(scope="module")
def scripts():
    """The benchmark and its tables."""
    sys.path.insert(0, str(BENCHMARKS))
    import pretrained
    import pretrained_network
    import pretrained_report

    sys.path.remove(str(BENCHMARKS))
    return pretrained, pretrained_report, pretrained_network


@pytest.fixture(scope="module")
def weights():
    """Random arrays under the names, and of the shapes, of the file."""
    rng = np.random.default_rng(0)
    arrays = {}
    for number, (before, after) in enumerate(CHANNELS):
        side = 1 if number in NARROW else 3
        kernel = rng.normal(size=(side, side, before, after)) / (side * before**0.5)
        arrays[f"conv2d_{number}.kernel"] = kernel
        arrays[f"conv2d_{number}.bias"] = rng.normal(size=after)
        if number in NORMS:
            name = f"batch_normalization_{NORMS[number]}"
            for kind in ("gamma", "beta", "moving_mean"):
                arrays[f"{name}.{kind}"] = rng.normal(size=after)
            arrays[f"{name}.moving_variance"] = rng.uniform(0.5, 2, size=after)
    arrays |= {
        "dense.kernel": rng.normal(size=(64, 10)),
        "dense.bias": rng.normal(size=10),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def convolved(weights, x, number):
    """Window by window; zeros all around at stride 1, else below and right alone."""
    kernel = weights[f"conv2d_{number}.kernel"].astype(np.float64)
    side, stride = len(kernel), 2 if number in STRIDED else 1
    more = max(side - stride, 0)
    pad = (more // 2, more - more // 2)
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    places = range(0, x.shape[1] - side + 1, stride)
    rows = [
        [np.tensordot(x[:, i : i + side, j : j + side], kernel, 3) for j in places]
        for i in places
    ]
    y = np.moveaxis(np.array(rows), 2, 0) + weights[f"conv2d_{number}.bias"]
    if number not in NORMS:
        return y
    name = f"batch_normalization_{NORMS[number]}"
    gamma, beta, mean, variance = (
        weights[f"{name}.{kind}"].astype(np.float64)
        for kind in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return gamma * (y - mean) / np.sqrt(variance + 1e-3) + beta


def expected_logits(weights, pixels):
    def relu(x):
        return np.maximum(x, 0)

    def layer(x, number):
        return convolved(weights, x, number)

    h = relu(layer(pixels / 127.5 - 1, 0))
    h = relu(h + layer(relu(layer(h, 1)), 2))
    h = relu(layer(h, 5) + layer(relu(layer(h, 3)), 4))
    h = relu(layer(h, 8) + layer(relu(layer(h, 6)), 7))
    return h.mean(axis=(1, 2)) @ weights["dense.kernel"] + weights["dense.bias"]


@pytest.mark.long
def test_the_network_is_that_of_the_file(scripts, weights):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    found = scripts[2].classifier_of(weights)(pixels)
    expected = expected_logits(weights, pixels.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_every_number_of_the_file_is_used(scripts, weights):
    import jax

    classifier = scripts[2].classifier_of(weights)
    leaves = jax.tree.leaves((classifier.params, classifier.state))
    assert sum(leaf.size for leaf in leaves) == 78_666


def test_a_piece_is_made_once(scripts, tmp_path):
    pieces = scripts[0].Pieces(tmp_path / "new")
    first = pieces.record("one", lambda: {"value": np.float32(2)})
    assert first["value"] == 2
    assert pieces.record("one", lambda: pytest.fail("made again")) == first


def test_tables_have_what_was_measured(scripts):
    row = {"unlearned": 12.5, "original": 60.0, "retrained": [20.0, 24.0]}
    method = {"tuned": {"learning_rate": 0.1}, "samples_read": {"retain": 7}}
    method |= {"seconds": 9.0, "drift_on_proxies": {"dense": 0.125}}
    known = {"forget": 3, "retained": 80.0, "forgotten": 60.0, "change": 0.0}
    known |= {"drift": {"dense": 0.25}}
    audit = {"forget": 3, "audited": "mine", "verdict": "not forgotten"}
    source = {"forget": 3, "source": "noise", "images": 9, "accuracy": 100.0}
    records = [
        {"first_2000": 83.4},
        known | {"model": "original"},
        known | {"model": "mine", "forgotten": 5.0, "method": method},
        source | {"mean": 0.5, "least": 0.25},
        audit | {"rows": {"probe": row}},
        {"forget": 3, "taught": "mine", "relearn": ">20"},
    ]
    text = scripts[1].report(records)
    for line in (
        "| original | 80.0 | 60.0 |  |  |  |  |",
        "| mine | 80.0 | 5.0 | 0.000 | 0.250 | learning_rate 0.1 | 7 |",
        "| noise | 9 | 100 | 0.500 | 0.250 |",
        "| original | 60.0 |  |  |",
        "| trained here, without it, 2 | 24.0 |  |  |",
        "| mine | 12.5 | >20 | not forgotten |",
        "| layer | mine | mine, by its proxies |",
        "| dense | 0.250 | 0.125 |",
    ):
        assert line in text.splitlines(), line
    assert "Audits" not in scripts[1].report(records[:4])
