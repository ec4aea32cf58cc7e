"""CovarNav (arXiv 2311.12999), end to end."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from .inversion import Objective, invert
from .networks import Standardised
from .statistics import second_moments
from .subspaces import Bases, subspaces
from .unlearning import logits, runner_up_labels, unlearn


def covarnav(
    network: Standardised,
    forget: tuple[torch.Tensor, torch.Tensor],
    forget_classes: Sequence[int],
    retained_labels: torch.Tensor,
    *,
    weights: tuple[float, float, float],
    inversion_steps: int,
    inversion_rate: float,
    rate: float,
    rows: Iterable[torch.Tensor],
    energy: float = 0.99,
    jitter: int = 2,
    batch_size: int = 256,
) -> tuple[nn.Module, Bases]:
    """Forget classes without any retained data.

    Args:
      network: is not modified.
      forget: images and labels of these classes.
      forget_classes: what to forget.
      retained_labels: of the images to invert.
      weights: of the terms of the inversion, see `Objective`.
      inversion_steps: how many.
      inversion_rate: of Adam.
      rate: of SGD.
      rows: which images each step takes.
      energy: of the protected subspaces.
      jitter: of the inversion.
      batch_size: images at a time.

    Returns:
      The unlearned network, and what was protected.
    """
    network = copy.deepcopy(network).eval()
    # A copy of its own, on which it leaves its hooks.
    inverted = copy.deepcopy(network.network)
    objective = Objective(inverted, network.means, network.stds, weights)
    device, side = retained_labels.device, forget[0].shape[-1]
    objective = objective.to(device)
    proxies = []
    for labels in retained_labels.split(batch_size):
        start = torch.rand(len(labels), 3, side, side, device=device)
        found, _ = invert(
            objective,
            start,
            labels,
            steps=inversion_steps,
            rate=inversion_rate,
            jitter=jitter,
        )
        proxies.append(found)
    bases = subspaces(second_moments(network, torch.cat(proxies)), energy)
    images, labels = forget
    targets = runner_up_labels(logits(network, images), labels, forget_classes)
    unlearn(network, images, targets, bases, rate=rate, rows=rows)
    return network, bases
