"""New labels, and descent on them whose updates keep off the protected directions."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .subspaces import Bases


@torch.no_grad()
def logits(
    network: nn.Module, images: torch.Tensor, batch_size: int = 256
) -> torch.Tensor:
    """Of all images."""
    return torch.cat([network(batch) for batch in images.split(batch_size)])


def nearest_retained_labels(
    outputs: torch.Tensor, forget_classes: Sequence[int]
) -> torch.Tensor:
    """The likeliest retained class: UNSC's pseudo-labels."""
    outputs = outputs.clone()
    outputs[:, list(forget_classes)] = -torch.inf
    return outputs.argmax(1)


def runner_up_labels(
    outputs: torch.Tensor, labels: torch.Tensor, forget_classes: Sequence[int]
) -> torch.Tensor:
    """The likeliest class that is neither the label nor forgotten: CovarNav's."""
    others = outputs.scatter(1, labels[:, None], -torch.inf)
    return nearest_retained_labels(others, forget_classes)


class ProjectedSGD(torch.optim.Optimizer):
    """SGD with momentum; updates lose their part in the protected subspaces.

        v <- momentum v + g,   D = -rate v,   W <- W + D - D U UT

    Args:
      weights: parameters, and for each the bases of its groups, `[g, d, r]` of its own
        type; columns of zeros fill up.
      rate: the learning rate.
      momentum: in [0, 1).
    """

    def __init__(
        self,
        weights: Iterable[tuple[nn.Parameter, torch.Tensor]],
        rate: float,
        momentum: float = 0.0,
    ):
        groups = [{"params": [weight], "basis": basis} for weight, basis in weights]
        super().__init__(groups, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One update of all weights that have a gradient."""
        for group in self.param_groups:
            weight = group["params"][0]
            if weight.grad is None:
                continue
            update = weight.grad
            if group["momentum"]:
                state = self.state[weight]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(weight)
                update = state["velocity"].mul_(group["momentum"]).add_(update)
            weight.add_(project(update, group["basis"]), alpha=-group["lr"])


def project(update: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """`D - D U UT` for an update `[out, ...]`."""
    if basis.shape[-1] == 0:
        return update
    rows = update.reshape(len(basis), -1, basis.shape[1])
    return (rows - (rows @ basis) @ basis.mT).reshape(update.shape)


def projected_weights(
    network: nn.Module, bases: Bases
) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """What `ProjectedSGD` takes: the weights of layers that have bases."""
    found = []
    for name, groups in bases.items():
        weight = network.get_parameter(f"{name}.weight")
        width = max(basis.shape[1] for basis in groups)
        padded = [F.pad(basis, (0, width - basis.shape[1])) for basis in groups]
        found.append((weight, torch.stack(padded).to(weight)))
    return found


def unlearn(
    network: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    bases: Bases,
    *,
    rate: float,
    rows: Iterable[torch.Tensor],
    momentum: float = 0.0,
) -> torch.Tensor:
    """Descend on the targets, in evaluation mode; only weights with bases move.

    Args:
      network: is modified.
      images: of the forget set.
      targets: their new labels.
      bases: protected directions.
      rate: the learning rate.
      rows: which images each step takes.
      momentum: of SGD.

    Returns:
      The loss before every step.
    """
    network.eval().requires_grad_(False)
    weights = projected_weights(network, bases)
    for weight, _ in weights:
        weight.requires_grad_(True)
    optimizer = ProjectedSGD(weights, rate, momentum)
    losses = []
    for chosen in rows:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images[chosen]), targets[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)
