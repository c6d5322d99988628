"""Train the two small nets of the accuracy table on CIFAR-10: python scripts/accuracy/train.py NET [THREADS]

Writes weights/NET.npz, which is committed. Seeded; ResNet-20 takes 15 minutes on two idle cores, the ViT 30.
After every epoch all is kept in out/accuracy/train: ended and started again, it goes on from there.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from data import CACHE, SIDE, cifar10
from nets import NETS, WEIGHTS, normalized, save, trained
from torch import Tensor, nn

SEED = 0
PAD = 4  # pixels that a training image is shifted by at most
WARM = 0.2  # share of the steps in which the rate rises
SMOOTHING = 0.1


@dataclass(frozen=True)
class Recipe:
    """How one net is trained."""

    epochs: int
    batch: int
    peak_rate: float
    decay: float
    adam: bool

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """Return what changes the net's weights."""
        if self.adam:
            return torch.optim.AdamW(net.parameters(), lr=self.peak_rate, weight_decay=self.decay)
        rate, decay = self.peak_rate, self.decay
        return torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=decay, nesterov=True)


RECIPES = {
    "resnet20": Recipe(epochs=12, batch=128, peak_rate=0.4, decay=5e-4, adam=False),
    "small_vit": Recipe(epochs=8, batch=128, peak_rate=1e-3, decay=0.05, adam=True),
}


def train(name: str) -> None:
    """Train one net, write its weights, and say how many test images those get right."""
    torch.manual_seed(SEED)
    recipe, data = RECIPES[name], cifar10()
    images, labels = normalized(data.train), torch.from_numpy(data.train_labels)
    net = NETS[name]().to(memory_format=torch.channels_last)
    optimizer = recipe.optimizer(net)
    kept = CACHE / "train" / f"{name}.pt"
    first = 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epochs"]
    for epoch in range(first, recipe.epochs):
        began = time.perf_counter()
        loss = train_epoch(net, optimizer, recipe, epoch, images, labels)
        spent = time.perf_counter() - began
        print(f"{name} epoch {epoch + 1} of {recipe.epochs}: loss {loss:.3f}, {spent:.0f} s", flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
        torch.save(state, part)
        part.replace(kept)
    net.to(memory_format=torch.contiguous_format)
    save(net.eval(), WEIGHTS / f"{name}.npz")
    correct = accuracy(trained(name), normalized(data.test), torch.from_numpy(data.test_labels))
    print(f"{name}: {100 * correct:.2f} % of the test images")


def train_epoch(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    epoch: int,
    images: Tensor,
    labels: Tensor,
) -> float:
    """Train on every image once; return the mean loss."""
    random = np.random.default_rng((SEED, epoch))
    steps = len(images) // recipe.batch
    order = random.permutation(len(images))[: steps * recipe.batch].reshape(steps, recipe.batch)
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    total = 0.0
    net.train()
    for step, chosen in enumerate(order):
        rate = recipe.peak_rate * share_of_peak((epoch + step / steps) / recipe.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        x = varied(images[chosen], random).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion(net(x), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / steps


def share_of_peak(done: float) -> float:
    """Return the rate at a share of the training: a rise, then half a cosine."""
    if done < WARM:
        return max(done / WARM, 0.01)
    return 0.5 + 0.5 * math.cos(math.pi * (done - WARM) / (1 - WARM))


def varied(images: Tensor, random: np.random.Generator) -> Tensor:
    """Return images shifted, each by its own number of pixels, and half of them mirrored."""
    n = len(images)
    wide = nn.functional.pad(images, (PAD,) * 4, mode="reflect")
    tops, lefts = (torch.from_numpy(random.integers(0, 2 * PAD + 1, n)) for _ in range(2))
    rows, columns = (start[:, None] + torch.arange(SIDE) for start in (tops, lefts))
    mirrored = torch.from_numpy(random.random(n) < 0.5)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    which = torch.arange(n)[:, None, None]
    return wide[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that a net names right."""
    found = torch.cat([net(part).argmax(1) for part in images.split(500)])
    return float((found == labels).float().mean())


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3 or sys.argv[1] not in RECIPES:
        raise SystemExit(__doc__)
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) == 3 else 2)
    train(sys.argv[1])
