"""Handwritten digits, 8 x 8, as scikit-learn ships them: nothing to download.

1,797 images of ten classes (UCI "Optical Recognition of Handwritten Digits", its test
half). The test split is every fifth image of each class in scikit-learn's order, 364 in
all (35 to 37 a class), the same whatever the seed. Of the other 1,433, 139 are drawn
for validation (a tenth of each class, rounded down: 14, and 13 of class 8) and 1,294
are for training (126 to 132 a class).
"""

import numpy as np

from jaxunlearn.datasets.pixels import of_array
from jaxunlearn.datasets.splits import Source


def source() -> Source:
    """The digits, in scikit-learn's order.

    The 17 grey levels `v` of the original become `round(255 v / 16)`, ties to even (the
    only one, v = 8, becomes 128): 0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, ...
    """
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    images = np.rint(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)

    def samples(part, chosen, size):
        return of_array(images[chosen], size)

    return Source("The set of digits", {}, lambda part: labels, samples, 10)
