"""Training with SGD, as `jaxunlearn.training` does it by default."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn


def train(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    rate: float,
    rows: Iterable[torch.Tensor],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> torch.Tensor:
    """One step for each entry of `rows`, with Nesterov's momentum.

    Returns:
      The loss before every step.
    """
    network.train().requires_grad_(True)
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": weight_decay}, {"params": others}],
        lr=rate,
        momentum=momentum,
        nesterov=True,
    )
    losses = []
    for chosen in rows:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)
