"""The networks of `jaxunlearn.models` in PyTorch, under the names that others use.

Only layers that have weights, activations, pooling and what fills a numbered place are
here: they run in evaluation mode alone.
"""

import pytest

# Doctests are looked for here too, also where there is no PyTorch.
torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install torch"
)

nn, F = torch.nn, torch.nn.functional


def conv(before, after, side, stride=1, *, bias=False):
    padding = side // 2
    return nn.Conv2d(before, after, side, stride, padding=padding, bias=bias)


def pooled(x):
    return x.mean(dim=(2, 3))


class Residual(nn.Module):
    """A block in torchvision's names."""

    def __init__(self, before, channels, stride, bottleneck):
        super().__init__()
        sizes = [(channels, 3, stride), (channels, 3, 1)]
        if bottleneck:
            sizes = [(channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)]
        self.count, width = len(sizes), before
        for i, (after, side, step) in enumerate(sizes, start=1):
            setattr(self, f"conv{i}", conv(width, after, side, step))
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))
            width = after
        self.downsample = None
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(
                conv(before, width, 1, stride), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResidualUNSC(nn.Module):
    """A block in UNSC's names."""

    def __init__(self, before, channels, stride, bottleneck):
        super().__init__()
        sizes = [(channels, 3, stride), (channels, 3, 1)]
        if bottleneck:
            sizes = [(channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)]
        layers, width = [], before
        for after, side, step in sizes:
            layers += [conv(width, after, side, step), nn.BatchNorm2d(after), nn.ReLU()]
            width = after
        self.residual_function = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            self.shortcut.append(conv(before, width, 1, stride))
            self.shortcut.append(nn.BatchNorm2d(width))

    def forward(self, x):
        return (self.residual_function(x) + self.shortcut(x)).relu()


def stages(block, blocks, bottleneck, width):
    """The four stages, and how many channels they end with."""
    found, before = [], width
    for number, count in enumerate(blocks):
        layers = []
        for i in range(count):
            stride = 2 if number and i == 0 else 1
            layers.append(block(before, width * 2**number, stride, bottleneck))
            before = width * 2**number * (4 if bottleneck else 1)
        found.append(nn.Sequential(*layers))
    return found, before


class ResNet(nn.Module):
    def __init__(self, blocks, *, bottleneck=False, width, classes, stem="cifar"):
        super().__init__()
        small = stem == "cifar"
        self.conv1 = conv(3, width, 3) if small else conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        found, after = stages(Residual, blocks, bottleneck, width)
        self.layer1, self.layer2, self.layer3, self.layer4 = found
        self.fc = nn.Linear(after, classes)

    def forward(self, x):
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(pooled(x))


class ResNetUNSC(nn.Module):
    def __init__(self, blocks, *, bottleneck=False, width, classes):
        super().__init__()
        found, after = stages(ResidualUNSC, blocks, bottleneck, width)
        stem = [conv(3, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*stem, *found)
        self.fc = nn.Linear(after, classes)

    def forward(self, x):
        return self.fc(pooled(self.features(x)))


class VGG(nn.Module):
    """Names are torchvision's, or UNSC's where the head is "fc"."""

    def __init__(
        self,
        convolutions,
        *,
        width,
        features,
        classes,
        pool=1,
        norm=True,
        head="classifier",
    ):
        super().__init__()
        layers, before = [], 3
        for stage, count in enumerate(convolutions):
            for _ in range(count):
                after = width * min(2**stage, 8)
                layers.append(conv(before, after, 3, bias=True))
                layers += [nn.BatchNorm2d(after)] if norm else []
                layers.append(nn.ReLU())
                before = after
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(pool)
        self.head = head
        linear = nn.Sequential(
            nn.Linear(before * pool**2, features),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(features, features),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(features, classes),
        )
        setattr(self, head, linear)

    def forward(self, x):
        x = self.avgpool(self.features(x)).flatten(1)
        return getattr(self, self.head)(x)


class AllCNN(nn.Module):
    def __init__(self, *, few, many, classes):
        super().__init__()
        sizes = [(3, few, 3, 1), (few, few, 3, 1), (few, many, 3, 2), None]
        sizes += [(many, many, 3, 1), (many, many, 3, 1), (many, many, 3, 2), None]
        sizes += [(many, many, 3, 1), (many, many, 1, 1)]
        layers = [
            nn.Identity()
            if size is None
            else nn.Sequential(conv(*size), nn.BatchNorm2d(size[1]), nn.ReLU())
            for size in sizes
        ]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(many, classes))

    def forward(self, x):
        return self.fc(pooled(self.features(x)))


class AlexNet(nn.Module):
    """`rows`: elements of the map that is flattened."""

    def __init__(self, *, channels, rows, features, classes):
        super().__init__()
        layers, before = [], channels
        for after, side in ((64, 4), (128, 3), (256, 2)):
            layers.append(nn.Conv2d(before, after, side, bias=False))
            layers += [nn.BatchNorm2d(after), nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2)]
            before = after
        self.features = nn.Sequential(*layers)
        layers, before = [], rows
        for _ in range(2):
            layers.append(nn.Linear(before, features, bias=False))
            layers += [nn.BatchNorm1d(features), nn.ReLU(), nn.Dropout()]
            before = features
        self.fc = nn.Sequential(*layers, nn.Linear(before, classes, bias=False))

    def forward(self, x):
        return self.fc(self.features(x).flatten(1))


class Attention(nn.Module):
    def __init__(self, features, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, x):
        n, t, d = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, t, d))


class Encoder(nn.Module):
    def __init__(self, features, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(features, eps=1e-6)
        self.attn = Attention(features, heads)
        self.norm2 = nn.LayerNorm(features, eps=1e-6)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(features, 4 * features)
        self.mlp.fc2 = nn.Linear(4 * features, features)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, *, patches, patch, depth, classes, features=192, heads=3):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, features))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, features))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, features, patch, patch)
        self.blocks = nn.Sequential(*[Encoder(features, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(features, eps=1e-6)
        self.head = nn.Linear(features, classes)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.blocks(x + self.pos_embed)
        return self.head(self.norm(x)[:, 0])


def draw(module, seed=0):
    """Weights of unit gain, and statistics far from those of fresh layers."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(17)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.ndim > 1 and "." in name:
            gain = tensor[0].numel() ** -0.5
            tensor.normal_(0, gain, generator=generator)
        else:
            tensor.normal_(0, 0.3, generator=generator)
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor.add_(1)
    return module.eval()
