"""The baseline of the benchmarks in PyTorch optimises what the library optimises."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.long

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install torch"
)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NETWORKS = {"resnet18": {"width": 4}, "allcnn": {"width": 0.0625}}
LABELS = np.array([3, 1, 4, 1, 5, 9], np.int32)


@pytest.fixture(scope="module")
def speed():
    """The benchmark, whose sides are compared here."""
    sys.path.insert(0, str(BENCHMARKS))
    import inversion_speed

    sys.path.remove(str(BENCHMARKS))
    return inversion_speed


@pytest.fixture(scope="module", params=NETWORKS)
def sides(speed, request):
    classifier, twin = speed.pair(request.param, **NETWORKS[request.param])
    return classifier, speed.twin_objective(twin)


def test_the_terms_agree(speed, sides):
    classifier, objective = sides
    start = speed.start_images(len(LABELS), 16)
    terms = jax.jit(speed.inversion.inversion_terms, static_argnames="prior")
    ours = terms(classifier, start, LABELS, speed.PRIOR)
    theirs = objective(speed.in_torch(start), torch.from_numpy(LABELS).long())
    assert float(ours["feature"]) > 1
    for name, value in theirs._asdict().items():
        expected = float(ours[name])
        np.testing.assert_allclose(float(value), expected, rtol=1e-4, err_msg=name)


def test_the_first_losses_agree(speed):
    """Of the network that compiles quickly; the benchmark checks both."""
    classifier, twin = speed.pair("allcnn", **NETWORKS["allcnn"])
    objective = speed.twin_objective(twin)
    start = speed.start_images(len(LABELS), 8)
    ours = speed.library_losses(classifier, LABELS, start, steps=5)
    theirs = speed.twin_losses(objective, LABELS, start, steps=5)
    assert len(ours) == 5
    assert ours[-1] < ours[0]
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)


def test_jitter_rolls_the_images_that_the_objective_sees(speed, sides):
    """And leaves the pixels that are returned in the box."""
    _, objective = sides
    seen = []

    def watched(images, labels):
        seen.append(images.detach().clone())
        return objective(images, labels)

    start = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    images, totals = speed.baseline.invert(
        watched, start, torch.tensor([0, 1]), steps=4
    )
    assert len(totals) == 4
    assert images.min() >= 0
    assert images.max() <= 1
    assert not torch.equal(seen[0], start)
    np.testing.assert_array_equal(np.sort(seen[0].ravel()), np.sort(start.ravel()))
