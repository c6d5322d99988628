"""The test-beds of the accuracy table: a float model, inputs to calibrate on, test inputs and their labels.

`load(name)` makes a bed the first time (pretrained ones: 10 to 20 minutes on two cores) and keeps it in the
cache. A kept bed loads with NumPy alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from data import CACHE, CIFAR_MEAN, CIFAR_STD

Array = np.ndarray[Any, Any]
CALIBRATION_SAMPLES = 128
BATCH = 50  # of the second model, for quick evaluation in float; a last batch is filled up


@dataclass(frozen=True)
class Recipe:
    """What a bed is made of; images are resized to side and become (pixel - mean) / std, pixels 0 to 255."""

    title: str
    transformer: bool  # quantizers that have settings for transformers use them
    train: int  # inputs that the probe is fitted to; 0: the net has its own head
    test: int
    classes: int = 10
    side: int = 32
    mean: tuple[float, ...] = CIFAR_MEAN
    std: tuple[float, ...] = CIFAR_STD


IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
RECIPES = {
    "vit_s": Recipe("ViT-S/14, CIFAR-10 probe", True, 20_000, 10_000, side=112, **IMAGENET),
    "lite0": Recipe(
        "EfficientNet-Lite0, CIFAR-10 probe",
        False,
        20_000,
        10_000,
        side=112,
        mean=(127.0,) * 3,
        std=(128.0,) * 3,
    ),
    "resnet20": Recipe("ResNet-20, CIFAR-10", False, 0, 10_000),
    "small_vit": Recipe("small ViT, CIFAR-10", True, 0, 10_000),
    "minilm_tweets": Recipe("MiniLM, sentiment of tweets", True, 2_096, 2_100, classes=2),
}
SMOKE = {"tiny": Recipe("net of noise", False, 0, 64)}


@dataclass(frozen=True)
class Bed:
    """One prepared bed."""

    name: str
    recipe: Recipe
    folder: Path

    @property
    def model(self) -> Path:
        """Return the ONNX file with batch 1; its output holds the scores of the classes [1, classes]."""
        return self.folder / "model.onnx"

    @property
    def batch_model(self) -> Path:
        """Return the same model with batches of BATCH."""
        return self.folder / "model_batch.onnx"

    @cached_property
    def labels(self) -> Array:
        """Return the classes of the test inputs, int64 [N]."""
        return np.load(self.folder / "labels.npy")

    @cached_property
    def calibration(self) -> dict[str, Array]:
        """Return training inputs as the model takes them, by its inputs' names: [128, ...] each."""
        with np.load(self.folder / "calibration.npz") as file:
            return self.prepared({name: file[name] for name in file.files})

    @cached_property
    def about(self) -> dict[str, Any]:
        """Return what is known of the making, as JSON."""
        found: dict[str, Any] = json.loads((self.folder / "about.json").read_text("utf-8"))
        return found

    def test(self, start: int, stop: int) -> dict[str, Array]:
        """Return test inputs as the model takes them."""
        return self.prepared({name: array[start:stop] for name, array in self._test.items()})

    def batches(self, size: int = 1) -> Iterator[dict[str, Array]]:
        """Yield all test inputs, size at a time; the last batch may be smaller."""
        for start in range(0, len(self.labels), size):
            yield self.test(start, start + size)

    @cached_property
    def _test(self) -> dict[str, Array]:
        names = self.about["inputs"]
        return {name: np.load(self.folder / f"test_{name}.npy", mmap_mode="r") for name in names}

    def prepared(self, stored: dict[str, Array]) -> dict[str, Array]:
        """Return stored inputs as the model takes them: images normalized, [N, 3, side, side]."""
        return {
            name: self._image(array) if array.dtype == np.uint8 else np.asarray(array)
            for name, array in stored.items()
        }

    def _image(self, pixels: Array) -> Array:
        mean, std = np.float32(self.recipe.mean), np.float32(self.recipe.std)
        scaled = (np.asarray(pixels).astype(np.float32) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def load(name: str, cache: Path = CACHE) -> Bed:
    """Return a bed, made now if it is not there."""
    recipe = (RECIPES | SMOKE)[name]
    folder = cache / "beds" / name
    if not (folder / "about.json").exists():
        import make_bed

        make_bed.make(name, recipe, folder, cache)
    return Bed(name, recipe, folder)


def main() -> None:
    """Make the beds named on the command line, all by default: python beds.py [CACHE] [NAME ...]"""
    cache, *names = sys.argv[1:] or [str(CACHE)]
    for name in names or RECIPES:
        bed = load(name, Path(cache))
        print(name, json.dumps(bed.about), flush=True)


if __name__ == "__main__":
    main()
