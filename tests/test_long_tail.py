"""Long-tailed training data: how many of each class are kept, and which."""

import itertools

import numpy as np
import pytest

from jaxunlearn.tasks import Data, long_tailed


def data(counts, seed=0):
    """So many samples of each class in a drawn order; each image is its own number."""
    labels = np.repeat(list(counts), list(counts.values()))
    labels = np.random.default_rng(seed).permutation(labels)
    numbers = np.arange(len(labels), dtype=np.float32).reshape(-1, 1, 1, 1)
    return Data(numbers, labels)


def kept_of(made):
    return dict(zip(*np.unique(made.labels, return_counts=True), strict=True))


def exact(n, imbalance, k, classes):
    """The largest m with m^(K-1) r^k <= n^(K-1), in integers; at least one."""
    powers = classes - 1
    fits = (m for m in range(n, 0, -1) if m**powers * imbalance**k <= n**powers)
    return next(fits, 1)


@pytest.mark.parametrize("imbalance", [1, 2, 10, 50, 100, 1000])
def test_class_k_keeps_its_share_of_the_smallest(imbalance):
    for n, classes in itertools.product((1, 7, 100, 1000), (2, 3, 4, 10)):
        counts = {c: n + 3 * (c % 2) for c in range(classes)}
        found = kept_of(long_tailed(data(counts), imbalance))
        assert found == {c: exact(n, imbalance, c, classes) for c in range(classes)}


def test_classes_count_in_the_order_of_their_numbers_whatever_lies_between():
    found = kept_of(long_tailed(data({9: 60, 2: 40, 5: 50}), 4))
    assert found == {2: 40, 5: 20, 9: 10}
    assert kept_of(long_tailed(data({3: 8}), 4)) == {3: 8}


def test_samples_are_drawn_once_each_and_keep_their_order():
    whole = data({0: 30, 1: 30, 2: 30})
    made = long_tailed(whole, 10, seed=3)
    numbers = made.images.ravel().astype(int)
    assert (np.diff(numbers) > 0).all()
    assert (whole.labels[numbers] == made.labels).all()

    again, other = (long_tailed(whole, 10, seed=s) for s in (3, 4))
    np.testing.assert_array_equal(again.images, made.images)
    assert other.images.ravel().tolist() != numbers.tolist()
    # Drawn, and not the first ones: of many seeds nearly every sample is met.
    parts = [long_tailed(whole, 10, seed=s) for s in range(60)]
    tails = [part.images[part.labels == 2] for part in parts]
    assert len(np.unique(np.concatenate(tails))) > 20


def test_even_classes_of_imbalance_one_are_all_kept():
    whole = data({0: 4, 1: 4})
    np.testing.assert_array_equal(long_tailed(whole, 1).images, whole.images)


def test_class_names_stay():
    made = long_tailed(Data(np.zeros((4, 1, 1, 1)), [0, 0, 1, 1], ["a", "b"]), 2)
    assert made.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("imbalance", "seed", "error", "sentence"),
    [
        (0.5, 0, ValueError, "imbalance must be finite and at least 1.* it is 0.5"),
        (np.inf, 0, ValueError, "at least 1.* it is inf"),
        (np.nan, 0, ValueError, "at least 1.* it is nan"),
        (True, 0, TypeError, "imbalance must be a number; it is True"),
        (10, -1, ValueError, "seed must be 0 or more; it is -1"),
        (10, 0.5, TypeError, "seed must be an integer; it is 0.5|Type-check"),
    ],
)
def test_what_is_no_imbalance_is_refused(imbalance, seed, error, sentence):
    with pytest.raises(error, match=sentence):
        long_tailed(data({0: 2, 1: 2}), imbalance, seed=seed)


def test_what_is_no_data_is_refused():
    with pytest.raises(TypeError, match="data must be a Data; it is a|Type-check"):
        long_tailed([0, 1], 10)
