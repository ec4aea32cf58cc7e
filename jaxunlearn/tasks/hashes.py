"""Hashes that tell samples apart: by their indices, or by their pixels."""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxunlearn.tasks.data import Data


def lines(indices: Sequence[int] | Int[np.ndarray, " n"]) -> str:
    """Indices in ascending order, one a line."""
    return "".join(f"{i}\n" for i in sorted(map(int, indices)))


def digest(indices: Sequence[int] | Int[np.ndarray, " n"]) -> str:
    """SHA-256 of the indices in ascending order, one a line: that of their file.

    >>> digest([5, 2])[:12]
    'b4c2d9b5e354'
    """
    return hashlib.sha256(lines(indices).encode()).hexdigest()


def image_digest(data: Data) -> str:
    """SHA-256 of the images as they are stored, and of their labels, in their order.

    >>> image_digest(Data(np.zeros((2, 1, 1, 1), np.uint8), [3, 5]))[:12]
    '22d518da5720'
    """
    images = np.asarray(data.images)
    found = hashlib.sha256(f"{images.dtype.name} {images.shape}\n".encode())
    # Image by image: an array on the host need not be in one piece.
    for image in images:
        found.update(image.tobytes())
    found.update(data.labels.tobytes())
    return found.hexdigest()
