"""How time and memory grow with images, classes, requests and width.

    python -m benchmarks.cost_growth

Second moments of an All-CNN on random images of CIFAR-10's shape, made batch by batch
so that the data themselves take no memory. Every call is made once before the one that
is timed; on a CPU "peak" is by how much the resident memory of the process rose, on a
GPU what JAX held at most. Requests share one data pass: each is subspaces of what is
retained, and an unlearning. Appends JSON lines to `--results`, prints them as a table
and draws them.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import jaxunlearn as ju
from benchmarks.compare import memory
from benchmarks.compare.report import machine
from jaxunlearn import parallel
from jaxunlearn.models.files import versions

SHAPE = (32, 32, 3)
COMPILED = "/jax/core/compile/backend_compile_duration"


class Images:
    """A stream of random images that is never in memory as a whole."""

    def __init__(self, count: int, batch: int, classes: int | None = None):
        self.count, self.batch, self.classes = count, batch, classes

    def __iter__(self) -> Iterator[Any]:
        draw = np.random.default_rng(0)
        for start in range(0, self.count, self.batch):
            size = min(self.batch, self.count - start)
            images = draw.integers(0, 256, (size, *SHAPE), dtype=np.uint8)
            labels = (start + np.arange(size)) % (self.classes or 1)
            yield images if self.classes is None else (images, labels)


def classifier(width: float, classes: int = 10) -> ju.Classifier:
    """An untrained All-CNN."""
    model = ju.models.create("allcnn", num_classes=classes, width=width)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    return ju.freeze(model, variables, preprocess=ju.datasets.preprocess("cifar10"))


def peak_bytes(base: int) -> int:
    """The most that was held since `base`, above it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return memory.resident("VmHWM") - base


def measured(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a first and of a further call, its peak memory, what it compiled."""
    seen = []

    def listen(event, duration, **_):
        if event == COMPILED:
            seen.append(duration)

    started = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - started
    base = memory.reset_peak()
    jax.monitoring.register_event_duration_secs_listener(listen)
    started = time.perf_counter()
    jax.block_until_ready(call())
    seconds = time.perf_counter() - started
    jax.monitoring.unregister_event_duration_listener(listen)
    return {
        "first_seconds": first,
        "seconds": seconds,
        "peak_bytes": peak_bytes(base),
        "compilations": len(seen),
    }


def by_images(options) -> Iterator[tuple[int, dict]]:
    """Moments of more and more images."""
    network = classifier(options.width)
    for count in options.images:
        stream = Images(count, options.batch)
        call = lambda s=stream: ju.second_moments(network, s, batch_size=options.batch)  # noqa: E731
        yield count, measured(call)


def by_classes(options) -> Iterator[tuple[int, dict]]:
    """Moments of as many images, class by class."""
    count = max(options.images)
    for classes in options.classes:
        network = classifier(options.width, classes)
        stream = Images(count, options.batch, classes)

        def call(network=network, stream=stream, classes=classes):
            return ju.class_moments(
                network,
                stream,
                None,
                num_classes=classes,
                batch_size=options.batch,
            )

        yield classes, measured(call)


def by_width(options) -> Iterator[tuple[float, dict]]:
    """Moments of wider and wider networks."""
    stream = Images(min(options.images), options.batch)
    for width in options.widths:
        network = classifier(width)
        call = lambda n=network: ju.second_moments(n, stream, batch_size=options.batch)  # noqa: E731
        yield width, measured(call)


def by_requests(options) -> Iterator[tuple[int, dict]]:
    """Requests one after the other, after a single pass over the data."""
    network, classes = classifier(options.width), 10
    stream = Images(min(options.images), options.batch, classes)
    moments = ju.class_moments(
        network, stream, None, num_classes=classes, batch_size=options.batch
    )
    forget = next(iter(Images(64, 64)))

    def request(forgotten: int):
        retained = [c for c in range(classes) if c != forgotten]
        kept = ju.sum_classes(moments, retained)
        basis = ju.subspaces(kept, protected_fraction=0.75)
        targets = ju.nearest_retained_labels(network(forget), [forgotten])
        chain = optax.chain(optax.sgd(0.1), ju.project_to_null_space(basis))
        key = jax.random.key(forgotten)
        result = ju.unlearn(network, forget, targets, chain, steps=4, key=key)
        return result.classifier.params

    for count in options.requests:
        found = measured(lambda count=count: [request(c) for c in range(count)])
        yield count, found | {"data_passes": 1}


AXES = {
    "images": by_images,
    "classes": by_classes,
    "requests": by_requests,
    "width": by_width,
}


def draw(records: list[dict], path: Path) -> None:
    """Seconds and peak memory along each axis, both from zero."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(AXES), 3.2), layout="constrained")
    for place, axis in zip(figure.subplots(1, len(AXES)), AXES, strict=True):
        points = [r for r in records if r["axis"] == axis]
        where = [r["value"] for r in points]
        place.plot(where, [r["seconds"] for r in points], "o-", label="seconds")
        place.set(xlabel=axis, ylabel="seconds", ylim=(0, None), xlim=(0, None))
        beside = place.twinx()
        used = [r["peak_bytes"] / 2**20 for r in points]
        beside.plot(where, used, "s--", color="tab:red", label="peak MiB")
        beside.set(ylim=(0, 1.1 * max(used) + 1))
        beside.set_ylabel("peak MiB", color="tab:red")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure along every axis."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--images", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 5, 10, 20])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument(
        "--widths", type=float, nargs="+", default=[0.125, 0.25, 0.375, 0.5]
    )
    parser.add_argument("--width", type=float, default=0.25, help="of the other axes")
    parser.add_argument("--batch", type=int, default=64)
    results = Path(__file__).parent / "results"
    parser.add_argument("--results", type=Path, default=results / "cost_growth.jsonl")
    options = parser.parse_args()
    table = Table("axis", "value", "seconds", "first", "peak MiB", "compiled")
    about = machine() | {"versions": versions(), "device": parallel.device_kind()}
    records = []
    for axis in options.axes:
        for value, found in AXES[axis](options):
            records.append({"axis": axis, "value": value, **found, **about})
            table.add_row(
                axis,
                f"{value:g}",
                f"{found['seconds']:.2f}",
                f"{found['first_seconds']:.2f}",
                f"{found['peak_bytes'] / 2**20:.0f}",
                str(found["compilations"]),
            )
    lines = "".join(json.dumps(record) + "\n" for record in records)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(lines)
    if set(options.axes) == set(AXES):
        draw(records, options.results.with_suffix(".png"))
    Console().print(table)


if __name__ == "__main__":
    main()
