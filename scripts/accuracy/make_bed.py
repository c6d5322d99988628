"""Make a test-bed: read the data, fit the probe, export the float model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
import nets
import numpy as np
import pretrained
import torch
from beds import BATCH, CALIBRATION_SAMPLES, Array, Bed, Recipe
from onnx_graph import fold
from probe import fitted
from torch import Tensor, nn

SEED = 0
OPSET = 17
CHUNK = 100  # inputs that features are computed of at a time
TWEET_TOKENS = 48  # of 4,200 tweets 16 are longer


class Split:
    """Stored inputs (uint8 images [N, side, side, 3], tokens as they are) and labels of train and test."""

    def __init__(self, train: dict[str, Array], labels: Array, test: dict[str, Array], wanted: Array) -> None:
        self.train, self.train_labels = train, labels
        self.test, self.test_labels = test, wanted


def make(name: str, recipe: Recipe, folder: Path, cache: Path) -> None:
    """Write a bed's files into folder, all or none."""
    import tvmq

    tvmq.mend_torchvision()  # timm and transformers import it
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    torch.manual_seed(SEED)
    split = SPLITS[name](recipe, cache)
    bed = Bed(name, recipe, part)
    random = np.random.default_rng(SEED)
    chosen = drawn(split.train_labels, CALIBRATION_SAMPLES, random)
    np.savez(part / "calibration.npz", **{key: array[chosen] for key, array in split.train.items()})
    for key, array in split.test.items():
        np.save(part / f"test_{key}.npy", array)
    np.save(part / "labels.npy", split.test_labels)
    about: dict[str, Any] = {"inputs": list(split.train), "train": recipe.train}
    net = NETS[name](cache)
    if recipe.train:
        found = features(net, bed, split.train, name)
        probe = fitted(found, split.train_labels, recipe.classes, SEED)
        about |= {"decay": probe.decay, "held_out": probe.held_out}
        net = Headed(net, probe.layer)
    (part / "about.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    export(net.eval(), bed.calibration, bed)
    part.rename(folder)


class Headed(nn.Module):
    """A model and the probe on its features."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.head(self.body(*inputs))


def drawn(labels: Array, number: int, random: np.random.Generator) -> Array:
    """Return so many places, drawn at random and from every class alike (up to one)."""
    classes = np.unique(labels)
    shares = [number // len(classes) + (i < number % len(classes)) for i in range(len(classes))]
    places = [
        random.choice(np.flatnonzero(labels == c), n, False) for c, n in zip(classes, shares, strict=True)
    ]
    return random.permutation(np.concatenate(places))


def cifar(recipe: Recipe, cache: Path) -> Split:
    """Return CIFAR-10, resized; of the training images as many as the recipe says, from all classes alike."""
    whole = data.cifar10(cache)
    places = drawn(whole.train_labels, recipe.train or 1_000, np.random.default_rng(SEED))
    train, test = (resized(images, recipe.side) for images in (whole.train[places], whole.test))
    return Split({"pixels": train}, whole.train_labels[places], {"pixels": test}, whole.test_labels)


def resized(images: Array, side: int) -> Array:
    """Return square images in another size, bicubic."""
    from PIL import Image

    if images.shape[1] == side:
        return images
    bicubic = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), bicubic)) for image in images])


def tweets(recipe: Recipe, cache: Path) -> Split:
    """Return the tweets that people found positive (1) or negative (0), split at random."""
    texts, ratings = data.tweets(cache)
    tokens = pretrained.minilm_tokens(texts, TWEET_TOKENS, cache)
    order = np.random.default_rng(SEED).permutation(np.flatnonzero(ratings != 0))
    train, test = order[: -recipe.test], order[-recipe.test :]
    labels = (ratings > 0).astype(np.int64)
    halves = [{name: array[part] for name, array in tokens.items()} for part in (train, test)]
    return Split(halves[0], labels[train], halves[1], labels[test])


def noise(recipe: Recipe, _cache: Path) -> Split:
    """Return images of noise and classes at random, for the smoke test."""
    random = np.random.default_rng(SEED)

    def images(n: int) -> dict[str, Array]:
        return {"pixels": random.integers(0, 256, (n, recipe.side, recipe.side, 3), np.uint8)}

    def labels(n: int) -> Array:
        return np.arange(n) % recipe.classes

    return Split(images(256), labels(256), images(recipe.test), labels(recipe.test))


def tiny_net(_cache: Path) -> nn.Module:
    """Return a net of three layers with random weights."""
    pool, head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)
    return nn.Sequential(nets.conv(3, 16, 2), nets.Residual(16, 16, 1), pool, nn.Flatten(), head)


@torch.inference_mode()
def features(net: nn.Module, bed: Bed, stored: dict[str, Array], name: str) -> Array:
    """Return what a backbone gives for all inputs, [N, features]."""
    from rich.progress import track

    total = len(next(iter(stored.values())))
    found = []
    for start in track(range(0, total, CHUNK), description=f"features of {name}"):
        chunk = bed.prepared({key: array[start : start + CHUNK] for key, array in stored.items()})
        found.append(net(*(torch.from_numpy(array) for array in chunk.values())).numpy())
    return np.concatenate(found)


def export(net: nn.Module, samples: dict[str, Array], bed: Bed) -> None:
    """Write the net with both batch sizes, their shapes fixed."""
    import onnx

    for path, size in ((bed.model, 1), (bed.batch_model, BATCH)):
        inputs = {name: array[:size] for name, array in samples.items()}
        torch.onnx.export(
            net,
            tuple(torch.from_numpy(array) for array in inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["scores"],
            opset_version=OPSET,
            dynamo=False,
            verbose=False,
        )
        onnx.save(fold(onnx.load(path), inputs), path)


Makers = dict[str, Callable[[Path], nn.Module]]
NETS: Makers = {
    "vit_s": pretrained.vit_s,
    "lite0": pretrained.lite0,
    "resnet20": lambda _cache: nets.trained("resnet20"),
    "small_vit": lambda _cache: nets.trained("small_vit"),
    "minilm_tweets": pretrained.minilm,
    "tiny": tiny_net,
}
SPLITS = dict.fromkeys(NETS, cifar) | {"minilm_tweets": tweets, "tiny": noise}
