"""Subspaces as the notebooks released with UNSC find them: slow, and not correct.

Follows the description of that procedure, flaws included: patches have stride 1 and no
padding whatever their layer does, each class adds to the basis of those before, and
ranks count energies strictly below a threshold that grows with the number of the class.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from .statistics import watched

# Images of a class, for each layer of All-CNN.
ALLCNN_COUNTS = (24, 100, 100, 125, 125, 250, 250, 256, 256)


def released_subspaces(
    network: nn.Module,
    images: Mapping[int, torch.Tensor],
    counts: Sequence[int],
    *,
    start: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The bases of all layers after these classes, one class after the other.

    Args:
      network: in evaluation mode, its layers called in the order of `counts`.
      images: a batch of each class, in the order of the classes.
      counts: how many of the batch are used, for each layer.
      start: bases that classes before these left behind.

    Returns:
      For each layer float64 `[d, rank]`.
    """
    bases = dict(start or {})
    for number, batch in images.items():
        inputs = layer_inputs(network, batch)
        for (name, (layer, values)), count in zip(inputs.items(), counts, strict=True):
            columns = input_columns(layer, values[:count])
            bases[name] = extended(bases.get(name), columns, threshold(number))
    return bases


def threshold(number: int) -> float:
    """The share of the energy of class `number` that bounds its rank."""
    return 0.97 + 0.003 * number


@torch.no_grad()
def layer_inputs(
    network: nn.Module, images: torch.Tensor
) -> dict[str, tuple[nn.Module, np.ndarray]]:
    """Each layer and what reaches it, in the order of the calls."""
    found = {}

    def keep(name, layer, inputs):
        found[name] = layer, inputs.cpu().numpy()

    with watched(network, keep):
        network(images)
    return found


def input_columns(layer: nn.Module, values: np.ndarray) -> np.ndarray:
    """Float64 `[d, positions]`: patches cut by a loop, without padding, at stride 1."""
    if isinstance(layer, nn.Linear):
        return values.T.astype(np.float64)
    n, c, h, w = values.shape
    kh, kw = layer.kernel_size
    high, wide = max(h - kh + 1, 0), max(w - kw + 1, 0)
    columns = np.zeros((c * kh * kw, n * high * wide))
    at = 0
    for image in range(n):
        for i in range(high):
            for j in range(wide):
                columns[:, at] = values[image, :, i : i + kh, j : j + kw].reshape(-1)
                at += 1
    return columns


def extended(basis: np.ndarray | None, columns: np.ndarray, share: float) -> np.ndarray:
    """The basis, and the directions that it lacks to hold this share of the energy.

    The energy of the columns is taken from their norm; one more SVD for it, as some
    write it, would only be slower.
    """
    whole = np.sum(columns**2)
    if basis is None:
        basis = np.zeros((len(columns), 0))
    if whole == 0:
        return basis  # not one patch fits into the map: the layer stays unprotected
    residual = columns - basis @ (basis.T @ columns) if basis.shape[1] else columns
    vectors, sigma, _ = np.linalg.svd(residual, full_matrices=False)
    return with_directions(basis, vectors, sigma**2, whole, share)


def with_directions(
    basis: np.ndarray,
    vectors: np.ndarray,
    energies: np.ndarray,
    whole: float,
    share: float,
) -> np.ndarray:
    """As many more columns as there are sums strictly below the share of the whole."""
    held = 1 - energies.sum() / whole if basis.shape[1] else 0.0
    count = int(np.sum(held + np.cumsum(energies) / whole < share))
    return np.hstack([basis, vectors[:, :count]])[:, : len(basis)]


def bases_by_moments(
    network: nn.Module,
    images: Mapping[int, torch.Tensor],
    counts: Sequence[int],
) -> dict[str, np.ndarray]:
    """What `released_subspaces` finds, up to rounding, without its SVDs.

    The left singular vectors of columns are the eigenvectors of their second moment.
    For the bases from which a late class starts, so that it can be timed by itself.
    """
    bases: dict[str, np.ndarray] = {}
    for number, batch in images.items():
        inputs = layer_inputs(network, batch)
        for (name, (layer, values)), count in zip(inputs.items(), counts, strict=True):
            moment = _moment(layer, values[:count])
            basis = bases.setdefault(name, np.zeros((len(moment), 0)))
            if not moment.any():
                continue
            off = np.eye(len(moment)) - basis @ basis.T
            energies, vectors = np.linalg.eigh(off @ moment @ off)
            bases[name] = with_directions(
                basis,
                vectors[:, ::-1],
                np.maximum(energies[::-1], 0),
                np.trace(moment),
                threshold(number),
            )
    return bases


def _moment(layer: nn.Module, values: np.ndarray) -> np.ndarray:
    """Of `input_columns`, whose loop it avoids."""
    inputs = torch.from_numpy(values).double()
    if isinstance(layer, nn.Linear):
        return (inputs.T @ inputs).numpy()
    d = layer.weight[0].numel()
    moment = torch.zeros(d, d, dtype=torch.float64)
    if min(np.subtract(values.shape[2:], layer.kernel_size)) < 0:
        return moment.numpy()
    for part in inputs.split(32):
        columns = nn.functional.unfold(part, layer.kernel_size)
        columns = columns.transpose(0, 1).flatten(1)
        moment += columns @ columns.T
    return moment.numpy()
