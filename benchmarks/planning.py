"""What `plan` says, against what happens.

    python benchmarks/planning.py [--models allcnn resnet18 vit] [--batch 64]
    python benchmarks/planning.py --large --batch 64      # for a GPU

For each network: seconds of a plan that timed three runs of each stage's program,
against those of the library's own functions on as many random images, in a second
call, whose programs are compiled; and memory from shapes against what XLA asks for the
compiled programs, of subspaces, which are several programs, against the process's peak
(on a CPU, under Linux). Prints JSON lines with the ratio of the plan to the
measurement. `--large`: one pass of second moments of ResNet-50 and ViT-B/16 at
224 x 224 beside its plan.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from compare import memory

import jaxunlearn as ju
from jaxunlearn import models, parallel
from jaxunlearn.nullspace.rank_rules import RankRule
from jaxunlearn.planning import Workload, plan

# Name, options, number of classes; images are 32 x 32 x 3.
NETWORKS = {
    "allcnn": {"width": 0.5},
    "resnet18": {"width": 16},
    "vit": {"depth": 4},
}
SHAPE, CLASSES = (32, 32, 3), 10
LARGE = {
    "resnet50": {"stem": "imagenet"},
    "vit": {"size": "base", "patch": 16},
}
LARGE_SHAPE, LARGE_CLASSES = (224, 224, 3), 1000
STEPS, INVERSION_STEPS = 4, 3


def seconds(call: Callable[[], Any]) -> float:
    """Of the faster of two calls after a first one."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def classifier_of(name: str) -> ju.Classifier:
    """Freshly drawn."""
    model = models.create(name, num_classes=CLASSES, **NETWORKS[name])
    images = jnp.zeros((1, *SHAPE))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    return ju.freeze(model, variables, preprocess=ju.Preprocess(0.5, 0.25))


def measured(
    classifier: ju.Classifier, workload: Workload
) -> tuple[dict[str, float], int | None]:
    """Seconds of every stage as the library runs it, and bytes of subspaces."""
    size, key = workload.batch_size, jax.random.key(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (workload.images, *SHAPE), dtype=np.uint8)
    labels = np.arange(workload.images, dtype=np.int32) % CLASSES
    rule = {workload.rule.name: workload.rule.value}
    moments = ju.second_moments(classifier, images, batch_size=size)
    found = ju.subspaces(moments, **rule)
    chain = optax.chain(optax.sgd(0.01), ju.project_to_null_space(found))

    def invert(steps):
        return ju.invert(
            classifier,
            labels[:size],
            image_shape=SHAPE,
            key=key,
            steps=steps,
            jitter=0,
            batch_size=size,
        )

    def unlearn(steps):
        given = (classifier, images, labels, chain)
        done = ju.unlearn(*given, steps=steps, key=key, batch_size=size)
        return done.classifier.params

    # What a call does besides its steps, as checks, is not part of a plan.
    found = {
        "inversion": seconds(lambda: invert(1 + INVERSION_STEPS))
        - seconds(lambda: invert(1)),
        "statistics": seconds(
            lambda: ju.second_moments(classifier, images, batch_size=size)
        ),
        "subspaces": seconds(lambda: ju.subspaces(moments, **rule)),
        "steps": seconds(lambda: unlearn(1 + STEPS)) - seconds(lambda: unlearn(1)),
    }
    if jax.default_backend() != "cpu":
        return found, None
    # The moments are there before, and part of the estimate.
    given = sum(leaf.nbytes for leaf in jax.tree.leaves(moments))
    before = memory.reset_peak()
    jax.block_until_ready(ju.subspaces(moments, **rule))
    return found, given + memory.resident("VmHWM") - before


def report(name: str, batch: int) -> None:
    """One line for every stage."""
    classifier = classifier_of(name)
    workload = Workload(
        images=4 * batch,
        batch_size=batch,
        rule=RankRule("protected_fraction", 0.5),
        inverted=batch,
        inversion_steps=INVERSION_STEPS,
        inversion_batch_size=batch,
        steps=STEPS,
        step_batch_size=batch,
    )
    begun = time.perf_counter()
    asked = plan(classifier, SHAPE, workload, measure=True)
    taken = time.perf_counter() - begun
    estimated = plan(classifier, SHAPE, workload)
    found, peak = measured(classifier, workload)
    for stage, exact in zip(estimated.stages, asked.stages, strict=True):
        compiled = peak if stage.name == "subspaces" else exact.bytes
        line = {
            "model": name,
            "batch": batch,
            "stage": stage.name,
            "flops": stage.flops,
            "planned_s": exact.seconds,
            "measured_s": found[stage.name],
            "seconds_ratio": round(exact.seconds / found[stage.name], 2),
            "estimated_bytes": stage.bytes,
            "compiled_or_peak_bytes": compiled,
            "bytes_ratio": compiled and round(stage.bytes / compiled, 2),
            "plan_s": round(taken, 1),
            "device": parallel.device_kind(),
            "jax": jax.__version__,
        }
        print(json.dumps(line), flush=True)


def report_large(name: str, batch: int) -> None:
    """One line for one pass over four batches of large images."""
    model = models.create(name, num_classes=LARGE_CLASSES, **LARGE[name])
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *LARGE_SHAPE)))
    classifier = ju.freeze(model, variables, preprocess=ju.Preprocess(0.5, 0.25))
    workload = Workload(images=4 * batch, batch_size=batch, steps=0)
    stages = plan(classifier, LARGE_SHAPE, workload).stages
    planned = next(stage for stage in stages if stage.name == "statistics")
    shape = (workload.images, *LARGE_SHAPE)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = seconds(lambda: ju.second_moments(classifier, images, batch_size=batch))
    held = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    line = {
        "model": name,
        "batch": batch,
        "images": workload.images,
        "stage": "statistics",
        "flops": planned.flops,
        "flops_per_second": planned.flops / found,
        "measured_s": found,
        "estimated_bytes": planned.bytes,
        "peak_bytes_in_use": held,
        "device": parallel.device_kind(),
        "jax": jax.__version__,
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    """Report on each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--large", action="store_true", help="ResNet-50 and ViT-B/16")
    arguments = parser.parse_args()
    if arguments.large:
        for name in LARGE:
            report_large(name, arguments.batch)
        return
    for name in arguments.models:
        report(name, arguments.batch)


if __name__ == "__main__":
    main()
