"""ResNet-18 for small images and All-CNN in PyTorch, twins of `jaxunlearn.models`.

Layers are named as `jaxunlearn.models.torch_weights.to_torch` names them.
"""

import torch
from torch import nn


def resnet18(classes: int, width: int = 64) -> nn.Module:
    """The twin of `models.create("resnet18", num_classes=classes, width=width)`."""
    return ResNet18(classes, width)


def allcnn(classes: int, width: float = 0.5) -> nn.Module:
    """The twin of `models.create("allcnn", num_classes=classes, width=width)`."""
    return AllCNN(classes, width)


class Standardised(nn.Module):
    """A network that takes pixels: bytes, or floats in [0, 1].

    Args:
      network: takes standardised images.
      mean: of pixels, per channel.
      std: likewise.
    """

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]
    ):
        super().__init__()
        self.network, self.means, self.stds = network, mean, std
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of pixels `[n, c, h, w]`."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return self.network((images - self.mean) / self.std)


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, before: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or before != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's outputs."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(y + shortcut)


class ResNet18(nn.Module):
    """Four stages of two blocks behind one 3 x 3 convolution."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.fc = nn.Linear(8 * width, classes)

    @staticmethod
    def _stage(before, channels, stride):
        return nn.Sequential(
            Block(before, channels, stride), Block(channels, channels, 1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of standardised images `[n, c, h, w]`."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


class AllCNN(nn.Module):
    """Eight convolutions, two of them of stride 2, and a linear head."""

    def __init__(self, classes: int, width: float):
        super().__init__()
        few, many = max(1, int(96 * width)), max(1, int(192 * width))
        self.features = nn.Sequential(
            self._layer(3, few),
            self._layer(few, few),
            self._layer(few, many, stride=2),
            nn.Identity(),  # where dropout may stand
            self._layer(many, many),
            self._layer(many, many),
            self._layer(many, many, stride=2),
            nn.Identity(),
            self._layer(many, many),
            self._layer(many, many, side=1),
        )
        self.fc = nn.Sequential(nn.Linear(many, classes))

    @staticmethod
    def _layer(before, channels, side=3, stride=1):
        return nn.Sequential(
            nn.Conv2d(before, channels, side, stride, padding=side // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of standardised images `[n, c, h, w]`."""
        return self.fc(self.features(images).mean(dim=(2, 3)))
