"""The released procedure's statistics and subspaces, timed on some classes.

Its time for a class depends on the classes before only through the size of the basis.
Timed are the first, the second and the last; those in between are interpolated linearly
by their place. The last one starts from the bases that the procedure has then, which
`bases_by_moments` finds sooner.
"""

import statistics
import time
from typing import Any

from ..pytorch_baseline.released import (
    ALLCNN_COUNTS,
    bases_by_moments,
    released_subspaces,
)


def timed(network, images, labels) -> dict[str, Any]:
    """Seconds of the classes that are timed, and of all.

    Args:
      network: in PyTorch, in evaluation mode.
      images: of the retained classes, as the network takes them.
      labels: theirs.
    """
    count = max(ALLCNN_COUNTS)
    classes = labels.unique().tolist()
    batches = {c: images[labels == c][:count] for c in classes}
    if any(len(batch) < count for batch in batches.values()):
        raise ValueError(f"The released procedure takes {count} images of a class.")
    first, second, *_, last = classes
    seconds = {}
    start, bases = time.perf_counter(), {}
    for c in (first, second):
        bases = released_subspaces(network, {c: batches[c]}, ALLCNN_COUNTS, start=bases)
        now = time.perf_counter()
        seconds[c], start = now - start, now
        ranks = {name: basis.shape[1] for name, basis in bases.items()}
        print(f"released, class {c}: {seconds[c]:.1f} s", flush=True)
    before = {c: batches[c] for c in classes[:-1]}
    late = bases_by_moments(network, before, ALLCNN_COUNTS)
    start = time.perf_counter()
    bases = released_subspaces(
        network, {last: batches[last]}, ALLCNN_COUNTS, start=late
    )
    seconds[last] = time.perf_counter() - start
    return {
        "seconds_by_class": seconds,
        "seconds": extrapolated(list(seconds.values()), len(classes)),
        "extrapolation": "linear by place between the second class and the last",
        "ranks_after_second": ranks,
        "ranks_after_last": {n: basis.shape[1] for n, basis in bases.items()},
        "images_by_layer": dict(zip(ranks, ALLCNN_COUNTS, strict=True)),
    }


def extrapolated(timed: list[float], classes: int) -> float:
    """Seconds of all classes, of which the first, the second and the last are timed."""
    first, *others = timed
    return first + (classes - 1) * statistics.mean(others)
