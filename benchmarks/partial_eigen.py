"""Leading eigenvectors by the block Krylov method, against full decompositions.

    python benchmarks/partial_eigen.py [--sizes 1024 2304] [--repeats 2]

Moments are those of the hidden features of a random two-layer ReLU network, or have
eigenvalues that fall like a power. For every size and rank rule, on the same float32
moment in one process: seconds of both (least), the rank as a share of `d`, the distance
of the two projectors beside what rounding the moment allows, `eps s_1 / gap`, and the
difference of the captured energies, as JSON lines. The limits on ranks and bases are
lifted, to show where the full decomposition is the faster one.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxunlearn import parallel
from jaxunlearn.nullspace import linalg, partial_eigen
from jaxunlearn.nullspace.rank_rules import Rule

EPS = float(np.finfo(np.float32).eps)


def powers(d: int, power: float) -> np.ndarray:
    """A float32 moment with eigenvalues `1 / i^power`."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))
    return ((basis * np.arange(1, d + 1.0) ** -power) @ basis.T).astype(np.float32)


def relu_features(d: int) -> np.ndarray:
    """The float32 moment of `d` ReLU features of inputs with a decaying spectrum."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4 * d, d // 4)) / np.arange(1, d // 4 + 1)
    hidden = np.maximum(inputs @ rng.normal(size=(d // 4, d)), 0)
    features = np.maximum(hidden @ rng.normal(size=(d, d)) / np.sqrt(d), 0)
    features = features.astype(np.float32)
    return features.T @ features


MOMENTS: dict[str, Callable[[int], np.ndarray]] = {
    "relu features": relu_features,
    "power 1": lambda d: powers(d, 1.0),
    "power 2": lambda d: powers(d, 2.0),
}


def rules(d: int) -> list[Rule]:
    """One of each kind, and ranks around where the full decomposition takes over."""
    shares = (0.05, 0.1, 0.2, 0.3)
    ranks = [Rule("rank", int(share * d)) for share in shares]
    return [*ranks, Rule("energy", 0.97), Rule("energy", 0.99), Rule("rtol", 0.03)]


def least(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Seconds of the fastest of some calls, and what the last one returned."""
    times, found = [], None
    for _ in range(repeats):
        begun = time.perf_counter()
        found = call()
        times.append(time.perf_counter() - begun)
    return min(times), found


def compare(name: str, d: int, repeats: int) -> None:
    """Print a line for every rule."""
    gram = MOMENTS[name](d)
    whole = float(np.trace(gram, dtype=np.float64))
    full, (values, vectors) = least(lambda: linalg.eigenpairs(gram), repeats)
    for rule in rules(d):
        # The first call compiles.
        partial, found = least(
            lambda rule=rule: partial_eigen.leading_eigenpairs(gram, rule, EPS),
            repeats + 1,
        )
        rank = rule.rank(values, EPS)
        line = {
            "moment": name,
            "d": d,
            "rule": rule.name,
            "value": rule.value,
            "rank_share": round(rank / d, 4),
            "full_s": round(full, 4),
            "partial_s": round(partial, 4),
            "ratio": round(full / partial, 2),
            "converged": found is not None,
        }
        if found is not None:
            line |= accuracy(gram, whole, values, vectors[:, :rank], found[1])
        line |= {"device": parallel.device_kind(), "jax": jax.__version__}
        print(json.dumps(line), flush=True)


def accuracy(gram, whole, values, ours, partial) -> dict[str, Any]:
    """How far apart the two bases are."""
    rank = ours.shape[1]
    line = {"rank": rank, "partial_rank": partial.shape[1]}
    energies = [float(np.sum(u * (gram @ u))) / whole for u in (ours, partial)]
    line["energy_difference"] = energies[1] - energies[0]
    if partial.shape[1] == rank:
        # Of equal ranks, the distance of projectors is the sine of the largest angle.
        outside = partial - ours @ (ours.T @ partial)
        line["projector_distance"] = float(np.linalg.norm(outside, 2))
        gap = float(values[rank - 1] - values[rank])
        line["rounding_allows"] = EPS * float(values[0]) / gap
    return line


def main() -> None:
    """Compare every moment at every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2304])
    parser.add_argument("--moments", nargs="+", choices=list(MOMENTS), default=MOMENTS)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    partial_eigen.LARGEST_RANK, partial_eigen.LARGEST_BASIS = 0.5, 0.95
    for d in arguments.sizes:
        for name in arguments.moments:
            compare(name, d, arguments.repeats)


if __name__ == "__main__":
    main()
