"""What both sides start from: images, labels, weights, bases and orders, as arrays.

Nothing here knows of JAX or PyTorch; the library's side writes it into a folder, from
which the other sides read. Names and axes of weights and bases are PyTorch's.
"""

import dataclasses
from pathlib import Path

import numpy as np

CLASSES, FORGOTTEN = 10, 3
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
PRIOR = {"total_variation": 1e-3, "l2": 1e-1, "feature": 1e-1}
ENERGY = 0.99
RATE = 0.1
INVERSION_RATE = 0.1
# Projections in one call: one by itself would be too short to time.
PROJECTIONS = 10
# Images in a step, and steps, of the request whose logits are compared.
AGREEMENT = (16, 50)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Images are uint8 `[n, h, w, c]`.

    Attributes:
      retained: of the retained classes, with `retained_labels`.
      forgotten: of class `FORGOTTEN`.
      start: float images from which inversions begin, with `start_labels`.
    """

    retained: np.ndarray
    retained_labels: np.ndarray
    forgotten: np.ndarray
    start: np.ndarray
    start_labels: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray, batch: int) -> "Inputs":
        """Split a set by class; `batch` images to start inversions from."""
        keep = labels != FORGOTTEN
        classes = np.array([c for c in range(CLASSES) if c != FORGOTTEN], np.int32)
        start = np.random.default_rng(1).random((batch, *images.shape[1:]), np.float32)
        return cls(
            images[keep],
            labels[keep],
            images[~keep],
            start,
            np.resize(classes, batch),
        )

    def save(self, folder: Path) -> None:
        """Write them."""
        np.savez(folder / "inputs.npz", **vars(self))

    @classmethod
    def load(cls, folder: Path) -> "Inputs":
        """Read them."""
        with np.load(folder / "inputs.npz") as file:
            return cls(**file)

    def training(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """So many retained images and labels, over and over if there are fewer."""
        chosen = np.resize(np.arange(len(self.retained)), count)
        return self.retained[chosen], self.retained_labels[chosen]

    def first(self, count: int, classes: int = CLASSES - 1) -> "Inputs":
        """So many images of each of the first retained classes, and `count` others.

        Images to forget are four times as many.
        """
        rows = [
            np.flatnonzero(self.retained_labels == c)[:count]
            for c in np.unique(self.retained_labels)[:classes]
        ]
        kept = np.concatenate(rows)
        return Inputs(
            self.retained[kept],
            self.retained_labels[kept],
            self.forgotten[: 4 * count],
            self.start[:count],
            self.start_labels[:count],
        )

    def small(self) -> "Inputs":
        """Of the request whose logits are compared: eight images of three classes."""
        return self.first(8, classes=3)


def random_images(
    per_class: int, side: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random colour images, as strong at each scale as photographs are.

    Half of an image is a pattern of its class.

    Returns:
      uint8 `[n, h, w, 3]` and int32 `[n]`, classes in turn.
    """
    draw = np.random.default_rng(seed)
    labels = np.resize(np.arange(CLASSES, dtype=np.int32), per_class * CLASSES)
    patterns = _smooth(draw, CLASSES, side)[labels]
    mixed = (patterns + _smooth(draw, len(labels), side)) / np.sqrt(2)
    pixels = np.array(MEAN) + np.array(STD) * mixed
    return np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8), labels


def _smooth(draw, count, side):
    """Noise whose amplitude falls with the frequency, of unit variance."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = frequency[0, 1]
    white = np.fft.fft2(draw.normal(size=(count, side, side, 3)), axes=(1, 2))
    found = np.fft.ifft2(white / frequency[..., None], axes=(1, 2)).real
    return found / found.std()


def per_class(batch: int) -> int:
    """Images to invert for each retained class: a batch in all, or nearly."""
    return max(1, batch // (CLASSES - 1))


def rows(name: str, folder: Path) -> np.ndarray:
    """An order that the library's side has drawn: Int[steps, batch]."""
    with np.load(folder / "orders.npz") as file:
        return file[name]
