"""UNSC (arXiv 2404.13588), end to end."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from .statistics import class_moments
from .subspaces import Bases, class_subspaces
from .unlearning import logits, nearest_retained_labels, unlearn


def unsc(
    network: nn.Module,
    forget: torch.Tensor,
    retain: tuple[torch.Tensor, torch.Tensor],
    forget_classes: Sequence[int],
    *,
    rate: float,
    rows: Iterable[torch.Tensor],
    energy: float = 0.99,
    merge_energy: float = 0.99,
    batch_size: int = 256,
) -> tuple[nn.Module, Bases]:
    """Forget classes, with the retained data at hand.

    Args:
      network: is not modified.
      forget: images of these classes.
      retain: images and labels of the others.
      forget_classes: what to forget.
      rate: of SGD.
      rows: which images each step takes.
      energy: of a class's subspace.
      merge_energy: of the merged one.
      batch_size: images at a time, of the moments.

    Returns:
      The unlearned network, and what was protected.
    """
    network = copy.deepcopy(network).eval()
    images, labels = retain
    classes = labels.unique().tolist()
    moments = class_moments(network, images, labels, classes, batch_size=batch_size)
    bases = class_subspaces(moments, energy=energy, merge_energy=merge_energy)
    targets = nearest_retained_labels(logits(network, forget), forget_classes)
    unlearn(network, forget, targets, bases, rate=rate, rows=rows)
    return network, bases
