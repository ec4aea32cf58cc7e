"""Handwritten digits, 8 x 8, as scikit-learn ships them: nothing to download.

1,797 images of ten classes (UCI "Optical Recognition of Handwritten Digits", its test
half). The test split is every fifth image of each class in scikit-learn's order, 364 in
all (35 to 37 a class), the same whatever the seed. Of the other 1,433, 139 are drawn
for validation (a tenth of each class, rounded down: 14, and 13 of class 8) and 1,294
are for training (126 to 132 a class).
"""

import numpy as np

from jaxunlearn.classifier import Preprocess
from jaxunlearn.tasks import Data

NUM_CLASSES = 10

# Of the pixels in units of [0, 1] of everything but the test split, so that they do not
# depend on which samples a seed sets aside for validation.
PREPROCESS = Preprocess(mean=0.30546, std=0.37609)


def load(split: str, *, data_dir: str | None, seed: int) -> Data:
    """One split of the digits, uint8 `[n, 8, 8, 1]`, in scikit-learn's order.

    The 17 grey levels `v` of the original become `round(255 v / 16)`, ties to even (the
    only one, v = 8, becomes 128): 0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, ...

    Args:
      split: "train", "validation" or "test".
      data_dir: not used, the images come with scikit-learn.
      seed: which samples are for validation.
    """
    del data_dir  # nothing is read from disk
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    chosen = _split(labels, seed) == split
    images = np.rint(pixels[chosen] * (255 / 16)).astype(np.uint8)
    return Data(images.reshape(-1, 8, 8, 1), labels[chosen])


def _split(labels, seed):
    """The name of the split that each sample is in."""
    generator = np.random.default_rng(seed)
    split = np.full(len(labels), "train", dtype=object)
    for c in range(NUM_CLASSES):
        members = np.flatnonzero(labels == c)
        split[members[::5]] = "test"
        rest = generator.permutation(members[split[members] == "train"])
        split[rest[: len(rest) // 10]] = "validation"
    return split
