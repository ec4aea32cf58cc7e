"""A weight in closed form, from where its outputs are and where they should be."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxunlearn.capture.residuals import Residuals

# Halvings of the ratio between a weight that is too large and one that is not.
_HALVINGS = 40
_SMALLEST = 1e-8


@dataclasses.dataclass(frozen=True)
class TargetMoments:
    """Means over the rows of one set, in float64; see `Residuals`."""

    gram: Float[np.ndarray, "g d d"]
    cross: Float[np.ndarray, "g d o"]
    outputs: float
    misses: float

    @classmethod
    def of(cls, batches: Iterable[Residuals]) -> "TargetMoments":
        """Of the sums of all batches, added up on the host in float64."""
        total: Any = None
        for sums in batches:
            new = [np.asarray(x, np.float64) for x in jax.device_get(sums)]
            total = new if total is None else list(map(np.add, total, new))
        *sums, rows = total
        gram, cross, outputs, misses = (x / max(float(rows), 1.0) for x in sums)
        return cls(gram, cross, float(outputs), float(misses))

    def drift(self, change: Float[np.ndarray, "g d o"]) -> float:
        """How far outputs lie from the original's once a weight changes so.

        sqrt(E |x (W + change) - z|^2 / E |z|^2)
        """
        moved = np.einsum("gio,gij,gjo", change, self.gram, change, optimize=True)
        square = moved - 2 * np.sum(change * self.cross) + self.misses
        scale = self.outputs if self.outputs > 0 else 1.0
        return float(np.sqrt(max(square, 0.0) / scale))


def change_toward(
    retained: TargetMoments,
    forgotten: TargetMoments,
    *,
    mu: float,
    damping: float,
) -> Float[np.ndarray, "g d o"]:
    """The change of a weight that brings outputs nearest to both sets' targets.

        argmin E_r |x (W + D) - t|^2 + mu E_f |x (W + D) - t|^2 + eps |D|^2
        = (C_r + mu C_f + eps I)^-1 (E_r[x (t - x W)T] + mu E_f[x (t - x W)T])

    with `eps = damping tr(C_r + mu C_f) / d`, in float64 on the host; zero where no
    input is.
    """
    gram = retained.gram + mu * forgotten.gram
    cross = retained.cross + mu * forgotten.cross
    width = gram.shape[-1]
    eps = damping * np.trace(gram, axis1=1, axis2=2) / width
    gram = gram + np.where(eps > 0, eps, 1)[:, None, None] * np.eye(width)
    return np.linalg.solve(gram, cross)


def strongest_within(
    retained: TargetMoments,
    forgotten: TargetMoments,
    *,
    mu: float,
    damping: float,
    budget: float,
) -> float:
    """The largest weight of the forgotten set, up to `mu`, whose drift is in budget.

    Zero where none is. The drift of retained outputs grows with the weight.
    """

    def fits(value: float) -> bool:
        given = {"mu": value, "damping": damping}
        return retained.drift(change_toward(retained, forgotten, **given)) <= budget

    if fits(mu):
        return mu
    low, high = mu * _SMALLEST, mu
    if not fits(low):
        return 0.0
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        if high / low < 1 + 1e-3:
            break
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
