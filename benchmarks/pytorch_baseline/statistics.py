"""Second moments of layer inputs, collected by forward hooks.

Moments are called by their layer, and their axes are those of its weight, flattened:
`weight.flatten(1)` is `[out, d]`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

Moments = dict[str, torch.Tensor]


def input_rows(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What meets the weight of a layer: columns `[groups, d, rows]`.

    Patches are cut with the layer's own padding, stride and dilation.

    Raises:
      ValueError: a padding that `F.unfold` does not know.
    """
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2).T[None]
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ValueError(
            f"padding must be zeros, given by numbers; it is {layer.padding!r} "
            f"({layer.padding_mode})."
        )
    patches = F.unfold(
        inputs,
        layer.kernel_size,
        dilation=layer.dilation,
        padding=layer.padding,
        stride=layer.stride,
    )
    # [n, c kh kw, positions], channels first, so that groups are contiguous.
    patches = patches.unflatten(1, (layer.groups, -1))
    return patches.permute(1, 2, 0, 3).flatten(2)


@contextlib.contextmanager
def watched(
    network: nn.Module, see: Callable[[str, nn.Module, torch.Tensor], None]
) -> Iterator[None]:
    """Hand every input of a convolution or linear layer to `see`."""

    def hook(name):
        return lambda layer, inputs: see(name, layer, inputs[0])

    handles = [
        layer.register_forward_pre_hook(hook(name))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def second_moments(
    network: nn.Module, images: torch.Tensor, *, batch_size: int = 256
) -> Moments:
    """`sum(x xT)` over the rows of each layer: float64 `[groups, d, d]`.

    Args:
      network: in evaluation mode.
      images: as the network takes them.
      batch_size: images at a time.
    """
    moments: Moments = {}

    def add(name, layer, inputs):
        columns = input_rows(layer, inputs)
        gram = (columns @ columns.mT).double()
        if name in moments:
            moments[name] += gram
        else:
            moments[name] = gram

    with watched(network, add):
        for batch in images.split(batch_size):
            network(batch)
    return moments


def class_moments(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[int],
    *,
    batch_size: int = 256,
) -> dict[int, Moments]:
    """`second_moments` of each of these classes."""
    return {
        c: second_moments(network, images[labels == c], batch_size=batch_size)
        for c in classes
    }
