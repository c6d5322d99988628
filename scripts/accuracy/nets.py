"""Two small nets for CIFAR-10 that train.py trains from nothing: a ResNet-20 and a ViT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from data import CIFAR_MEAN, CIFAR_STD, NoDataError
from torch import Tensor, nn

CLASSES = 10
WEIGHTS = Path(__file__).parent / "weights"


class Residual(nn.Module):
    """Two convolutions and what went in, through a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return convolution, normalization, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def resnet20() -> nn.Module:
    """Return the ResNet-20 of CIFAR-10 (0.27 M parameters): images [N, 3, 32, 32] to scores [N, 10]."""
    layers: list[nn.Module] = [conv(3, 16, 1)]
    width = 16
    for outputs, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(3):
            layers.append(Residual(width, outputs, stride if block == 0 else 1))
            width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside the trunk."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(seen.transpose(1, 2).reshape(n, tokens, width))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class SmallVit(nn.Module):
    """A ViT of 64 tokens and a class token, whose patches two convolutions embed."""

    def __init__(self, width: int = 128, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, width // 2, 2), nn.Conv2d(width // 2, width, 3, 2, 1))
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.stem(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


NETS = {"resnet20": resnet20, "small_vit": SmallVit}


def normalized(images: np.ndarray) -> Tensor:  # type: ignore[type-arg]
    """Return uint8 images [N, 32, 32, 3] as the nets take them."""
    pixels = (images.astype(np.float32) - np.float32(CIFAR_MEAN)) / np.float32(CIFAR_STD)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def save(net: nn.Module, path: Path) -> None:
    """Write weights in 16 bits."""
    arrays = {k: v.numpy() for k, v in net.state_dict().items() if v.is_floating_point()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: array.astype(np.float16) for name, array in arrays.items()})


def trained(name: str) -> nn.Module:
    """Return a net with its committed weights, ready to evaluate; NoDataError where they are not there."""
    net, path = NETS[name](), WEIGHTS / f"{name}.npz"
    if not path.exists():
        raise NoDataError(
            f"{name}: weights/{path.name} is not there; train it: scripts/accuracy/train.py {name}"
        )
    with np.load(path) as file:
        state = {key: torch.from_numpy(file[key].astype(np.float32)) for key in file.files}
    net.load_state_dict(state, strict=False)
    return net.eval()
