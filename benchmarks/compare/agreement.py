"""Whether both sides compute the same, as numbers beside their bounds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

BOUNDS = {"moments": 1e-5, "projectors": 1e-4, "logits": 1e-3}

Arrays = Mapping[str, np.ndarray]


def compared(ours: Arrays, theirs: Arrays) -> dict[str, Any]:
    """The greatest differences of what `agreement` of both sides returned.

    - moments: `|A - B| / |A|`, Frobenius norms, the greatest over classes and layers;
    - projectors: `|U UT - V VT|`, spectral norm, the greatest over layers. Both sides
      decompose the same moments (ours), by the same rank rule: an eigenvector is as
      sensitive to its moment as its eigenvalue is near to the next one, so that of
      rounded moments no two computations have the same. How far bases of either side's
      own moments are apart is told too, without a bound;
    - logits: `|a - b| / |a|` after the request, each side with its own moments and
      bases, and beside it how far the request has moved them.
    """
    layers = [n.removeprefix("bases/") for n in ours if n.startswith("bases/")]
    pairs = [(ours[f"moments/{n}"], theirs[f"moments/{n}"]) for n in layers]
    moments = max(relative(a, b) for pair in pairs for a, b in zip(*pair, strict=True))
    same = [distance(ours[f"bases/{n}"], theirs[f"same/{n}"]) for n in layers]
    own = [distance(ours[f"bases/{n}"], theirs[f"bases/{n}"]) for n in layers]
    found = {
        "moments": moments,
        "projectors": max(same),
        "logits": relative(ours["after"], theirs["after"]),
    }
    return {
        **{
            name: {
                "difference": value,
                "bound": BOUNDS[name],
                "agrees": value <= BOUNDS[name],
            }
            for name, value in found.items()
        },
        "projectors_of_own_moments": max(own),
        "ranks": {n: ours[f"bases/{n}"].shape[1] for n in layers},
        "ranks_in_torch": {n: theirs[f"bases/{n}"].shape[1] for n in layers},
        "logits_before": relative(ours["before"], theirs["before"]),
        "logits_moved_by": relative(ours["before"], ours["after"]),
    }


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """`|a - b| / |a|`, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def distance(U: np.ndarray, V: np.ndarray) -> float:
    """`|U UT - V VT|`, spectral norm; 1 where the ranks differ."""
    if U.shape != V.shape:
        return 1.0
    U, V = (np.linalg.qr(np.asarray(x, np.float64))[0] for x in (U, V))
    off = V - U @ (U.T @ V)
    # Of equal ranks: the sine of the greatest angle.
    return float(np.sqrt(np.linalg.norm(off.T @ off, 2))) if off.size else 0.0
