"""From encoded images to arrays of bytes."""

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxunlearn import parallel
from jaxunlearn.checks import short
from jaxunlearn.datasets.splits import Samples

MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# Read and decoded at a time: images, and bytes.
BATCH = 512
_AT_A_TIME = 2**28

# Encoded bytes of an image from which on threads decode faster than one after the
# other: with 1 KB (CIFAR-10) two threads took 1.8 times as long as none.
_LARGE = 16_384


def decode(
    encoded: bytes | Path, channels: int, size: tuple[int, ...] | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """An image file, or its content, by Pillow.

    Pillow rather than whatever decoder is at hand: two decoders of JPEG may differ.
    """
    from PIL import Image, ImageOps

    source = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with Image.open(source) as image:
        mode = MODES[channels]
        ImageOps.exif_transpose(image, in_place=True)  # upright, as viewers show it
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow asks for it
        if image.mode != mode:
            image = image.convert(mode)
        if size is not None:
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(image.height, image.width, channels)


def resize(
    image: UInt8[np.ndarray, "_ _ c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "_ _ c"]:
    """Bilinear resizing, plane by plane; shrinking averages over all pixels."""
    # Pillow rather than jax.image: integer arithmetic, the same on every machine.
    from PIL import Image

    def resized(plane):
        # Pillow wants rows without gaps between pixels.
        plane = Image.fromarray(np.ascontiguousarray(plane))
        return plane.resize((size[1], size[0]), Image.Resampling.BILINEAR)

    return np.stack([resized(plane) for plane in np.moveaxis(image, -1, 0)], -1)


def of_array(
    images: UInt8[np.ndarray, "n h w c"], size: tuple[int, int] | None
) -> Samples:
    """Samples of what is in memory already."""
    h, w, c = images.shape[1:]
    same = size is None or size == (h, w)
    return Samples(
        (*(size or (h, w)), c),
        lambda numbers: images[numbers.start : numbers.stop],
        (lambda image: image) if same else partial(resize, size=size),
        str,
    )


def in_batches(samples: Samples, n: int) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    """Decode `n` images, a few hundred at a time, fewer of large ones."""
    shape, read, decode, describe = samples
    check_memory(f"Images of shape {shape}", math.prod(shape))
    step = min(BATCH, max(1, _AT_A_TIME // math.prod(shape)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, n, step):
            numbers = range(start, min(start + step, n))
            encoded = read(numbers)
            names = map(describe, numbers)
            run = pool.map if _length(encoded[0]) >= _LARGE else map
            batch = np.empty((len(numbers), *shape), np.uint8)
            for i, image in enumerate(run(partial(named, decode), names, encoded)):
                if image.shape != shape:
                    check_sizes(
                        [shape[:2], image.shape[:2]], [describe(0), describe(start + i)]
                    )
                batch[i] = image
            yield batch


def named(
    decode: Callable[[Any], UInt8[np.ndarray, "_ _ _"]], name: str, encoded: Any
) -> UInt8[np.ndarray, "_ _ _"]:
    """Decode an image; if it is broken, say which one it is."""
    try:
        return decode(encoded)
    except Exception as error:  # of broken files Pillow raises a dozen kinds
        msg = f"{name} cannot be decoded: remove or replace it ({short(str(error))})."
        raise ValueError(msg) from error


def check_sizes(sizes: Sequence[tuple[int, ...]], names: Sequence[str]) -> None:
    """Refuse images of different sizes."""
    for (h, w), name in zip(sizes, names, strict=True):
        if (h, w) != sizes[0]:
            msg = (
                f"Images must be of one size: {names[0]} is {sizes[0][0]} x "
                f"{sizes[0][1]} (height x width) and {name} is {h} x {w}. Give "
                "size=(height, width), to which each is resized."
            )
            raise ValueError(msg)


def collect(samples: Samples, n: int) -> UInt8[np.ndarray, "n h w c"]:
    """All images in one array, none of them kept twice.

    Refused where that would fill more than half of the free memory.
    """
    check_memory(f"{n} images of shape {samples.shape}", n * math.prod(samples.shape))
    images, start = np.empty((n, *samples.shape), np.uint8), 0
    for batch in in_batches(samples, n):
        images[start : start + len(batch)] = batch
        start += len(batch)
    return images


def check_memory(what: str, needed: int) -> None:
    """Refuse what would fill more than half of the memory that is free."""
    free = parallel.free_host_memory()
    if needed > free / 2:
        msg = (
            f"{what} take {needed / 1e9:.1f} GB, and this machine has {free / 1e9:.1f} "
            "GB of free memory: give a smaller size=(height, width), or read the "
            "images of a folder in batches with datasets.stream."
        )
        raise ValueError(msg)


def mean_and_std(
    batches: Iterable[UInt8[np.ndarray, "_ _ _ c"]],
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Mean and standard deviation per channel, in units of [0, 1] pixels.

    Counts how often each of the 256 values occurs, so that nothing is lost to rounding.
    """
    counts = np.zeros((1, 256), np.int64)
    for batch in batches:
        planes = np.moveaxis(batch, -1, 0).reshape(batch.shape[-1], -1)
        counts = counts + [np.bincount(plane, minlength=256) for plane in planes]
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    return mean, np.sqrt(variance)


def _length(encoded):
    if isinstance(encoded, Path):
        return encoded.stat().st_size
    return len(encoded) if isinstance(encoded, bytes) else 0
