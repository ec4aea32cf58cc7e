"""A folder of images in batches, for what does not fit into memory."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from jaxunlearn.checks import as_integer, check_count, short
from jaxunlearn.datasets import folders, pixels
from jaxunlearn.datasets.splits import Samples, check_split, select


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Batches `(images, labels)` of a folder, the same in every pass.

    Attributes:
      samples: the images of the folder.
      numbers: which of them, in the order of the passes.
      labels: of those.
      batch_size: images in each batch; the last one may have fewer.
      workers: threads that decode ahead.
    """

    samples: Samples
    numbers: Int[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]
    batch_size: int
    workers: int

    def __len__(self) -> int:
        """How many batches there are."""
        return -(-len(self.labels) // self.batch_size)

    def __iter__(
        self,
    ) -> Iterator[tuple[UInt8[np.ndarray, "b h w c"], Int32[np.ndarray, " b"]]]:
        grain = _grain()
        ahead = grain.ReadOptions(
            num_threads=self.workers,
            prefetch_buffer_size=max(2 * self.batch_size, self.workers),
        )
        # Threads rather than processes: Pillow decodes outside Python's lock.
        images = grain.MapDataset.range(len(self.labels)).map(self._decoded)
        return iter(images.to_iter_dataset(ahead).batch(self.batch_size))

    def _decoded(self, index: int) -> tuple[UInt8[np.ndarray, "h w c"], np.int32]:
        i = int(self.numbers[index])
        _, read, decode, describe = self.samples
        image = pixels.named(decode, describe(i), *read(range(i, i + 1)))
        return image, self.labels[index]


def stream(
    path: str | os.PathLike | Any,
    split: str | Any,
    *,
    batch_size: int | Any,
    size: tuple[int, int] | Any | None = None,
    seed: int | Any = 0,
    workers: int | Any = 16,
    process: tuple[int, int] | Any | None = None,
) -> Stream:
    """The images of a folder that does not fit into memory, in batches.

    What it yields, end to end, is `load(path, split, seed=seed, size=size)`: class
    after class, not shuffled, for statistics rather than for training. Every pass is
    the same, so that it may stand for the images of `second_moments`, and for those of
    `class_moments` with labels=None.

    Args:
      path: a folder of images, as `load` takes it.
      split: "train", "validation" or "test".
      batch_size: images in each batch; the last one may have fewer.
      size: (h, w) to resize to; needed where the images differ in size.
      seed: which samples are for validation, as in `load`.
      workers: threads that decode ahead.
      process: (index, count): only every `count`-th image, from the `index`-th on. None
        is this process among those of JAX.

    Raises:
      ImportError: the package grain is not there.
      ValueError: what `load` refuses of a folder; the batch size or the number of
        workers is not positive.

    >>> import tempfile
    >>> from PIL import Image
    >>> temporary = tempfile.TemporaryDirectory()
    >>> folder = Path(temporary.name)
    >>> for name in ("cats", "dogs"):
    ...     (folder / name).mkdir()
    ...     for i in range(5):
    ...         Image.new("RGB", (8, 6)).save(folder / name / f"{i}.png")
    >>> [images.shape for images, _ in stream(folder, "train", batch_size=5)]
    [(5, 6, 8, 3), (3, 6, 8, 3)]
    >>> temporary.cleanup()
    """
    batch_size = check_count("batch_size", batch_size)
    workers = check_count("workers", workers)
    check_split(split, seed, size)
    if not isinstance(path, str | os.PathLike) or not Path(path).is_dir():
        place = path if isinstance(path, os.PathLike) else short(path)
        msg = f"There is no folder {place}; only folders of images can be streamed."
        raise FileNotFoundError(msg)
    if process is None:
        shard = _grain().sharding.ShardByJaxProcess()
        process = shard.shard_index, shard.shard_count
    pair = list(map(as_integer, process)) if isinstance(process, tuple | list) else []
    if len(pair) != 2 or None in pair or not 0 <= pair[0] < pair[1]:
        msg = (
            "process must be (index, count) with index below count; it is "
            f"{short(process)}."
        )
        raise ValueError(msg)
    index, count = pair
    source = folders.source(Path(path))
    part, chosen, labels = select(source, split, seed)
    samples = source.samples(part, chosen, size)
    held = batch_size * math.prod(samples.shape)
    pixels.check_memory(f"Batches of {batch_size} images {samples.shape}", 2 * held)
    mine = np.arange(index, len(labels), count)
    return Stream(samples, mine, labels[mine], batch_size, workers)


def _grain():
    try:
        import grain
    except ImportError as error:
        msg = "Streams need the package grain: pip install grain"
        raise ImportError(msg) from error
    return grain
