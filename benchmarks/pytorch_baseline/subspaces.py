"""Which input directions of a layer are to be protected.

Subspaces are called by their layer: one basis `[d, rank]`, float64, for each group.
"""

from collections.abc import Sequence

import torch

from .statistics import Moments

Bases = dict[str, list[torch.Tensor]]

_FLOAT32 = torch.finfo(torch.float32).eps
_FLOAT64 = torch.finfo(torch.float64).eps


def rank(spectrum: torch.Tensor, energy: float, resolution: float = _FLOAT32) -> int:
    """The fewest eigenvalues that reach this share of their sum.

    Args:
      spectrum: float64 `[d]`, descending.
      energy: in (0, 1].
      resolution: what is at most this times the largest is taken for zero.
    """
    resolved = spectrum.where(spectrum > resolution * spectrum[0], 0)
    if spectrum[0] <= 0 or energy == 1:
        return int(resolved.count_nonzero())
    shares = resolved.cumsum(0) / resolved.sum()
    # Shares are sums of rounded terms.
    noise = 4 * len(spectrum) * _FLOAT64
    return int((shares < energy - noise).sum()) + 1


def leading(gram: torch.Tensor, energy: float) -> torch.Tensor:
    """The leading eigenvectors of a moment `[d, d]`."""
    values, vectors = torch.linalg.eigh(gram.double())
    return vectors.flip(1)[:, : rank(values.flip(0).clamp(min=0), energy)]


def subspaces(moments: Moments, energy: float) -> Bases:
    """Those of each layer and group."""
    return {
        name: [leading(group, energy) for group in gram]
        for name, gram in moments.items()
    }


def merge(several: Sequence[Bases], energy: float) -> Bases:
    """One subspace for several: the SVD of their bases side by side."""

    def merged(bases):
        vectors, sigma, _ = torch.linalg.svd(torch.cat(bases, 1), full_matrices=False)
        return vectors[:, : rank(sigma.square(), energy)]

    return {
        name: [
            merged(groups) for groups in zip(*(s[name] for s in several), strict=True)
        ]
        for name in several[0]
    }


def class_subspaces(
    moments: dict[int, Moments], *, energy: float, merge_energy: float
) -> Bases:
    """Truncated for each class, then merged."""
    return merge([subspaces(m, energy) for m in moments.values()], merge_energy)
