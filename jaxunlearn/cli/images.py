"""Labelled images as `.npz` files."""

from pathlib import Path

import numpy as np

from jaxunlearn.serialization import atomic_write
from jaxunlearn.tasks import Data


def save_images(path: Path, data: Data, seed: int) -> None:
    """Images, labels and the seed that they were drawn from."""
    arrays = {"images": np.asarray(data.images), "labels": data.labels}
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays, seed=np.int64(seed))


def load_images(path: Path) -> Data:
    """What `save_images` wrote, without the seed."""
    with np.load(path) as arrays:
        return Data(arrays["images"], arrays["labels"])
