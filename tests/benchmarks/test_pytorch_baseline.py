"""UNSC in PyTorch, to which the benchmarks compare, does what the library does."""

import sys
from pathlib import Path

import numpy as np
import pytest

import jaxunlearn as ju

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install torch"
)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.compare import arithmetic, library, pytorch  # noqa: E402
from benchmarks.compare.agreement import compared  # noqa: E402
from benchmarks.compare.options import Options  # noqa: E402
from benchmarks.compare.released_procedure import extrapolated  # noqa: E402
from benchmarks.pytorch_baseline import released, statistics, unlearning  # noqa: E402

pytestmark = pytest.mark.long

sys.path.remove(str(ROOT))

DRAW = np.random.default_rng(0)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Both, of a small All-CNN on 8 x 8 images."""
    folder = tmp_path_factory.mktemp("compare")
    options = Options(width=0.0625, side=8, batch=16, images=12)
    ours = library.Library(options, folder)
    return ours, pytorch.PyTorch(options, folder, cores=1, device="cpu")


def test_moments_projectors_and_logits_after_a_request_agree(sides):
    """The request has 50 projected steps, which move the logits."""
    ours = sides[0].agreement()
    found = compared(ours, sides[1].agreement(ours))
    assert found["logits_moved_by"] > 0.05
    assert found["ranks"] == found["ranks_in_torch"]
    partly = [found["ranks"][x["layer"]] < x["d"] for x in sides[0].layers()]
    assert sum(partly) > len(partly) / 2
    for name in ("moments", "projectors", "logits"):
        assert found[name]["agrees"], (name, found[name])


def test_a_difference_is_seen(sides):
    """A turned basis and other logits are no agreement."""
    ours = {
        "moments/a": np.eye(3)[None],
        "bases/a": np.eye(3)[:, :1],
        "before": np.ones(3),
        "after": np.ones(3),
    }
    turned = np.array([[np.cos(0.01)], [np.sin(0.01)], [0]])
    theirs = {**ours, "same/a": turned, "after": 1.01 * np.ones(3)}
    found = compared(ours, theirs)
    assert found["moments"]["difference"] == 0
    assert found["projectors"]["difference"] == pytest.approx(np.sin(0.01))
    assert found["logits"]["difference"] == pytest.approx(0.01)
    assert not found["projectors"]["agrees"]
    assert not found["logits"]["agrees"]


def test_labels_agree():
    outputs = DRAW.normal(size=(20, 5)).astype(np.float32)
    labels = DRAW.integers(0, 5, 20)
    given = torch.from_numpy(outputs), torch.from_numpy(labels)
    nearest = unlearning.nearest_retained_labels(given[0], [1, 4])
    assert nearest.tolist() == ju.nearest_retained_labels(outputs, [1, 4]).tolist()
    runner_up = unlearning.runner_up_labels(*given, [1])
    expected = ju.runner_up_labels(outputs, labels, exclude=[1])
    assert runner_up.tolist() == expected.tolist()


def test_patches_are_those_that_the_convolution_sees():
    """Strided, padded, dilated and grouped: products of patches are its outputs."""
    layer = torch.nn.Conv2d(
        4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2
    )
    images = torch.from_numpy(DRAW.normal(size=(3, 4, 7, 6)).astype(np.float32))
    columns = statistics.input_rows(layer, images)
    weight = layer.weight.detach().reshape(2, 3, -1)
    outputs = (weight @ columns).reshape(6, 3, -1) + layer.bias.detach()[:, None, None]
    expected = layer(images).detach().flatten(2).transpose(0, 1)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_momentum_is_projected_with_the_update():
    basis = np.linalg.qr(DRAW.normal(size=(6, 2)))[0]
    off = np.eye(6) - basis @ basis.T
    weight = torch.nn.Parameter(torch.zeros(4, 3, 1, 2, dtype=torch.float64))
    optimizer = unlearning.ProjectedSGD(
        [(weight, torch.from_numpy(basis[None]))], rate=0.5, momentum=0.9
    )
    velocity, expected = np.zeros((4, 6)), np.zeros((4, 6))
    for _ in range(3):
        gradient = DRAW.normal(size=(4, 6))
        weight.grad = torch.from_numpy(gradient.reshape(4, 3, 1, 2))
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        expected -= 0.5 * velocity @ off
    np.testing.assert_allclose(weight.detach().reshape(4, 6), expected, atol=1e-12)


def test_released_patches_have_neither_padding_nor_stride():
    layer = torch.nn.Conv2d(2, 1, 3, stride=2, padding=1)
    values = DRAW.normal(size=(2, 2, 4, 5)).astype(np.float32)
    columns = released.input_columns(layer, values)
    assert columns.dtype == np.float64
    corners = [(n, i, j) for n in range(2) for i in range(2) for j in range(3)]
    expected = [values[n, :, i : i + 3, j : j + 3].ravel() for n, i, j in corners]
    np.testing.assert_array_equal(columns, np.transpose(expected).astype(np.float64))
    assert released.input_columns(layer, values[:, :, :2, :2]).shape == (18, 0)


def test_released_ranks_count_energies_strictly_below_the_threshold():
    axes = np.linalg.qr(DRAW.normal(size=(4, 4)))[0]
    columns = axes * np.sqrt([0.5, 0.25, 0.125, 0.125])
    first = released.extended(None, columns, 0.8)
    assert first.shape == (4, 2)  # one less than what reaches .8
    np.testing.assert_allclose(first @ first.T, axes[:, :2] @ axes[:, :2].T, atol=1e-12)
    assert released.extended(None, columns, 0.4).shape == (4, 0)
    # The second class lacks what the first has not: of .25 held, .75 are missing.
    second = np.stack([axes[:, 0] * 0.5, axes[:, 3] * 0.75**0.5], 1)
    assert released.extended(first, second, 0.9).shape == (4, 2)
    more = released.extended(first, second @ np.diag([1, 0.1]), 0.999)
    assert more.shape == (4, 2)
    both = released.extended(first, np.hstack([second, axes[:, 2:3]]), 0.7)
    np.testing.assert_allclose(both.T @ both, np.eye(3), atol=1e-12)


def test_released_procedure_class_by_class(sides):
    """Against a twin from one SVD a layer and class, and against moments.

    The last convolution of 3 x 3 has a map of 2 x 2, and so not a single patch.
    """
    port = sides[1]
    port.before("statistics")
    classes = port.retained_labels.unique().tolist()[:3]
    images = {c: port.retained[port.retained_labels == c] for c in classes}
    counts = (4, 6, 6, 8, 8, 10, 10, 12, 12)
    found = released.released_subspaces(port.network, images, counts)
    by_moments = released.bases_by_moments(port.network, images, counts)
    layers = released.layer_inputs(port.network, images[classes[0]])
    assert len(found) == 9
    for (name, basis), count in zip(found.items(), counts, strict=True):
        layer = layers[name][0]
        expected = np.zeros((len(basis), 0))
        for c in classes:
            values = released.layer_inputs(port.network, images[c])[name][1]
            columns = released.input_columns(layer, values[:count])
            expected = _twin(expected, columns, 0.97 + 0.003 * c)
        assert basis.shape == expected.shape == by_moments[name].shape, name
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-10)
        for other in (expected, by_moments[name]):
            np.testing.assert_allclose(basis @ basis.T, other @ other.T, atol=1e-6)
    assert found["network.features.8.0"].shape[1] == 0
    assert found["network.features.1.0"].shape[1] > 1


def _twin(basis, columns, share):
    """One direction at a time, while what is held is strictly below the share."""
    if columns.shape[1] == 0:
        return basis
    whole = np.linalg.norm(columns) ** 2
    off = np.eye(len(columns)) - basis @ basis.T
    vectors, sigma, _ = np.linalg.svd(off @ columns)
    held = 1 - np.linalg.norm(off @ columns) ** 2 / whole
    for vector, value in zip(vectors.T, sigma, strict=False):
        held += value**2 / whole
        if not held < share:
            break
        basis = np.column_stack([basis, vector])
    return basis


def test_times_between_the_second_class_and_the_last_are_interpolated():
    assert extrapolated([5.0, 10.0, 24.0], 9) == 5 + sum(range(10, 25, 2))


def test_operations_are_counted_from_shapes(sides):
    layers = [
        {"rows": 16, "d": 27, "out": 6, "rank": 26},
        {"rows": 4, "d": 54, "out": 6, "rank": 10},
    ]
    assert arithmetic.forward(layers) == 2 * 16 * 27 * 6 + 2 * 4 * 54 * 6
    assert arithmetic.gradients(layers) == 2 * 2 * 16 * 27 * 6 + 3 * 2 * 4 * 54 * 6
    assert arithmetic.grams(layers) == 2 * 16 * 27**2 + 2 * 4 * 54**2
    assert arithmetic.projection(layers) == 4 * 27 * 1 * 6 + 4 * 54 * 10 * 6
    known = sides[0].layers()
    assert [x["rows"] for x in known] == [64, 64, 16, 16, 16, 4, 4, 4, 1]
    assert arithmetic.peaks("NVIDIA H200")["tf32"] == 494.7e12
    assert arithmetic.peaks("NVIDIA A100-SXM4-80GB")["float32"] == 19.5e12
    assert arithmetic.peaks("cpu") == {}
