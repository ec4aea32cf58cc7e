"""Inversion of a classifier in PyTorch: the objective of `jaxunlearn.inversion`."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Terms(NamedTuple):
    """The unweighted terms of the objective, and its weighted total."""

    total: torch.Tensor
    cross_entropy: torch.Tensor
    total_variation: torch.Tensor
    l2: torch.Tensor
    feature: torch.Tensor


class Objective(nn.Module):
    """The terms for images that are pixels in [0, 1].

    Args:
      network: takes standardised images; put into evaluation mode, its parameters
        frozen.
      mean: of pixels, per channel.
      std: likewise.
      weights: of the total variation, the norm and the feature term.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        weights: tuple[float, float, float],
    ):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.weights = weights
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.distances: list[torch.Tensor] = []
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_pre_hook(self._compare_statistics)

    def _compare_statistics(self, layer, inputs):
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        self.distances.append(
            torch.linalg.vector_norm(mean - layer.running_mean)
            + torch.linalg.vector_norm(variance - layer.running_var)
        )

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> Terms:
        """The terms for `images` `[n, c, h, w]` and `labels` `[n]`."""
        self.distances.clear()
        logits = self.network((images - self.mean) / self.std)
        cross_entropy = F.cross_entropy(logits, labels)
        variation = (images[:, :, 1:] - images[:, :, :-1]).abs().mean() + (
            images[:, :, :, 1:] - images[:, :, :, :-1]
        ).abs().mean()
        norms = (images.square().sum(dim=1) + 1e-12).sqrt().mean()
        feature = sum(self.distances, start=torch.zeros_like(norms))
        for_variation, for_norm, for_feature = self.weights
        total = (
            cross_entropy
            + for_variation * variation
            + for_norm * norms
            + for_feature * feature
        )
        return Terms(total, cross_entropy, variation, norms, feature)


def invert(
    objective: Callable[[torch.Tensor, torch.Tensor], Terms],
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int,
    rate: float = 0.05,
    decay_steps: int | None = None,
    jitter: int = 2,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Optimise `images` by Adam at a rate that a cosine decays to zero.

    Args:
      objective: an `Objective`, or what `torch.compile` made of one, on the device of
        the images.
      images: `[n, c, h, w]`, the start.
      labels: `[n]`.
      steps: how many.
      rate: of the first step.
      decay_steps: over how many steps the rate is decayed; None is `steps`.
      jitter: pixels by which a batch is rolled at most, anew at every step.

    Returns:
      The images, and the total before every step.
    """
    images = images.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=decay_steps or steps
    )
    totals = []
    for _ in range(steps):
        seen = images
        if jitter:
            shifts = torch.randint(-jitter, jitter + 1, (2,)).tolist()
            seen = torch.roll(images, shifts, dims=(2, 3))
        optimizer.zero_grad()
        total = objective(seen, labels).total
        total.backward()
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            images.clamp_(0, 1)
        totals.append(total.detach())
    return images.detach(), torch.stack(totals)
