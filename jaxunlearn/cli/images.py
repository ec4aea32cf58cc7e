"""Images as files: labelled ones, and batches of an inversion that goes on."""

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


class FinishedBatches(list[np.ndarray]):
    """Images of whole batches, each in a file that is written when it is appended."""

    def __init__(self, folder: Path):
        self._folder = folder
        while self._file.exists():
            super().append(np.load(self._file))

    @property
    def _file(self) -> Path:
        return self._folder / f"{len(self)}.npy"

    def append(self, images: np.ndarray) -> None:
        """Write them, all or nothing."""
        self._folder.mkdir(exist_ok=True)
        with atomic_write(self._file) as temporary:
            np.save(temporary, images)
        super().append(images)
