"""Inversion of a classifier: `jaxunlearn.inversion.invert` and the same in PyTorch.

    python benchmarks/inversion_speed.py --batch 64 --steps 20 --repeats 5

Both sides get the same weights, labels and starting images. First five losses without
jitter must agree; then whole calls are timed in turns, checks and copies to the host
included, and child processes measure the peak memory of each side. Appends one JSON
line a network to `--results` and prints it. On a GPU, PyTorch runs as it is and
compiled.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from pytorch_baseline import inversion as baseline
from pytorch_baseline import networks

import jaxunlearn as ju
from jaxunlearn import inversion, parallel
from jaxunlearn.models.torch_weights import to_torch

CLASSES, SIDE = 10, 32
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
PRIOR = inversion.ImagePrior(total_variation=1e-3, l2=1e-1, feature=1e-1)
CHECKED_STEPS, CHECKED_IMAGES = 5, 4
TOLERANCE = 1e-3


def pair(name: str, **options) -> tuple[ju.Classifier, torch.nn.Module]:
    """A network with random weights and statistics, and its twin in PyTorch.

    Args:
      name: "resnet18" or "allcnn".
      **options: `width`.
    """
    model = ju.models.create(name, num_classes=CLASSES, **options)
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    draw = np.random.default_rng(0)
    leaves = {
        path: _drawn(path, leaf.shape, draw).astype(np.float32)
        for path, leaf in flatten_dict(shapes, sep="/").items()
    }
    variables = unflatten_dict(leaves, sep="/")
    twin = getattr(networks, name)(CLASSES, **options)
    arrays = to_torch(model, variables)
    twin.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()})
    variables = jax.tree.map(jnp.asarray, variables)
    return ju.freeze(model, variables, preprocess=ju.Preprocess(MEAN, STD)), twin


def _drawn(path: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """Kernels of unit gain, and statistics far from those of fresh layers."""
    if path.endswith("/kernel"):
        return draw.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
    if path.endswith("/var"):
        return draw.uniform(0.5, 2, shape)
    return draw.normal(float(path.endswith("/scale")), 0.3, shape)


def twin_objective(twin: torch.nn.Module) -> baseline.Objective:
    """The objective in PyTorch, with the weights of `PRIOR`."""
    weights = PRIOR.total_variation, PRIOR.l2, PRIOR.feature
    return baseline.Objective(twin, MEAN, STD, weights)


def start_images(count: int, side: int = SIDE) -> np.ndarray:
    """Noise that both sides start from, pixels in [0, 1]."""
    return np.random.default_rng(1).random((count, side, side, 3), np.float32)


def in_torch(images: np.ndarray, device: str | torch.device = "cpu") -> torch.Tensor:
    """Images as [n, c, h, w]."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)


def library_run(
    classifier: ju.Classifier, labels: np.ndarray, start: np.ndarray, **options
) -> np.ndarray:
    """`invert` with its own defaults, but for what is given."""
    return inversion.invert(
        classifier,
        labels,
        image_shape=start.shape[1:],
        key=jax.random.key(1),
        prior=PRIOR,
        optimizer=ju.ImageAdam(0.05),
        start=start,
        batch_size=len(labels),
        **options,
    )


def library_losses(
    classifier: ju.Classifier, labels: np.ndarray, start: np.ndarray, steps: int
) -> list[float]:
    """The total at each of the first steps, without jitter."""
    losses = []
    library_run(
        classifier,
        labels,
        start,
        steps=steps,
        jitter=0,
        callback=lambda _, terms: losses.append(terms["total"]),
    )
    return losses


def twin_losses(
    objective: baseline.Objective, labels: np.ndarray, start: np.ndarray, steps: int
) -> list[float]:
    """Likewise in PyTorch."""
    device = objective.mean.device
    wanted = torch.from_numpy(labels).long().to(device)
    images = in_torch(start, device)
    return baseline.invert(objective, images, wanted, steps=steps, jitter=0)[1].tolist()


class Case:
    """One network on both sides, and calls to time.

    Args:
      name: of the network.
      arguments: of the command line.
    """

    def __init__(self, name: str, arguments: argparse.Namespace):
        self.arguments = arguments
        self.on_gpu = jax.default_backend() == "gpu"
        self.device = "cuda" if self.on_gpu else "cpu"
        self.labels = np.arange(arguments.batch, dtype=np.int32) % CLASSES
        self.classifier, twin = pair(name)
        if arguments.channels_last:
            twin = twin.to(memory_format=torch.channels_last)
        self.objective = twin_objective(twin).to(self.device)

    def sides(self, steps: int) -> dict[str, Callable[[], np.ndarray]]:
        """What is compared, by name: whole calls that return images."""
        start = start_images(len(self.labels))
        images = in_torch(start, self.device)
        if self.arguments.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        wanted = torch.from_numpy(self.labels).long().to(self.device)

        def library():
            return library_run(self.classifier, self.labels, start, steps=steps)

        def twin(objective):
            found, _ = baseline.invert(objective, images, wanted, steps=steps)
            return found.cpu().numpy()

        found = {"jax": library, "torch": lambda: twin(self.objective)}
        if self.on_gpu or self.arguments.compile:
            compiled = torch.compile(self.objective)
            found["torch_compiled"] = lambda: twin(compiled)
        return found

    def check(self) -> float:
        """The greatest relative difference of the first losses; ends if too great.

        With full float32 products also on a GPU.
        """
        labels = self.labels[:CHECKED_IMAGES]
        given = labels, start_images(len(labels)), CHECKED_STEPS
        tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        with jax.default_matmul_precision("highest"):
            ours = library_losses(self.classifier, *given)
        theirs = twin_losses(self.objective, *given)
        torch.backends.cudnn.allow_tf32 = tf32
        worst = float(np.max(np.abs(np.divide(ours, theirs) - 1)))
        if not worst < TOLERANCE:
            raise SystemExit(f"The losses differ: {ours} here, {theirs} in PyTorch.")
        return worst

    def temporary_bytes(self) -> int:
        """What the compiled gradient of the objective asks for besides its results."""

        def total(images, classifier, labels):
            terms = inversion.inversion_terms(classifier, images, labels, PRIOR)
            return terms["total"]

        images = jax.ShapeDtypeStruct((len(self.labels), SIDE, SIDE, 3), jnp.float32)
        lowered = jax.jit(jax.grad(total)).lower(images, self.classifier, self.labels)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    def peak_bytes(self, side: str) -> int:
        """Memory of a call after a first one; for a process that did nothing else."""
        if self.on_gpu:
            self.sides(2)[side]()
            if side == "jax":
                return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
            return torch.cuda.max_memory_allocated()
        call, before = self.sides(2)[side], resident("VmRSS")
        call()
        # What compiling left behind goes back to the system, where that is possible,
        # and the high-water mark counts anew.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        call()
        return resident("VmHWM") - before


def resident(kind: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at most (VmHWM); Linux."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{kind}:\s+(\d+) kB", status)[1])


def measure(
    sides: dict[str, Callable[[], np.ndarray]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of calls of each side, taking turns, after a first call of each."""
    for call in sides.values():
        call()
    found = {name: [] for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return found


def summary(values: list[float]) -> dict[str, float]:
    """Least, median, greatest."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
    }


def peak_in_child(name: str, side: str, arguments: argparse.Namespace) -> int:
    """`Case.peak_bytes` in a process of its own."""
    command = [sys.executable, __file__, "--model", name, "--memory-of", side]
    command += ["--batch", str(arguments.batch)]
    command += ["--compile"] * arguments.compile
    command += ["--channels-last"] * arguments.channels_last
    if arguments.threads is not None:
        command += ["--threads", str(arguments.threads)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(answer.stdout.split()[-1])


def report(name: str, arguments: argparse.Namespace) -> dict:
    """Everything that is measured of a network."""
    case = Case(name, arguments)
    worst = case.check()
    print(f"{name}: first losses differ by {worst:.1e} at most", flush=True)
    steps, sides = arguments.steps, case.sides(arguments.steps)
    calls = measure(sides, arguments.repeats)
    # Tells how much of a call is not steps, but checks and copies.
    single = measure(case.sides(1), arguments.repeats)
    medians = {side: statistics.median(found) for side, found in calls.items()}
    return {
        "model": name,
        "batch": arguments.batch,
        "steps": steps,
        "repeats": arguments.repeats,
        "channels_last_in_torch": arguments.channels_last,
        "greatest_relative_difference_of_losses": worst,
        "seconds_per_step": {
            n: summary([s / steps for s in found]) for n, found in calls.items()
        },
        "seconds_of_one_step_call": {n: summary(s) for n, s in single.items()},
        "images_per_second_and_step": {
            n: summary([arguments.batch * steps / s for s in found])
            for n, found in calls.items()
        },
        "ratio_to_jax": {n: medians[n] / medians["jax"] for n in sides if n != "jax"},
        "peak_bytes": {n: peak_in_child(name, n, arguments) for n in sides},
        "peak_bytes_are": "the allocator's peak on the device"
        if case.on_gpu
        else "the process's resident peak in a second call, less that before the first",
        "jax_temporary_bytes": case.temporary_bytes(),
        "device": parallel.device_kind(),
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("resnet18", "allcnn")
    parser.add_argument("--model", nargs="+", choices=names, default=names)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--channels-last", action="store_true", help="in PyTorch")
    parser.add_argument("--threads", type=int, help="cores to use; default is all")
    parser.add_argument("--results", type=Path, help="a file to append to")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        # The thread pools of both sides do not exist yet.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in arguments.model:
        if arguments.memory_of is not None:
            print(Case(name, arguments).peak_bytes(arguments.memory_of))
            continue
        line = json.dumps(report(name, arguments))
        print(line, flush=True)
        if arguments.results is not None:
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    # Both sides share a GPU: JAX is not to take all of its memory beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    main()
