"""The tutorials run from top to bottom as they stand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted((ROOT / "tutorials").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_tutorial_runs(path: Path, tmp_path: Path, vit_s_path: Path, photo_paths: list[Path]):
    # A copy of what the tutorial reads, so that the results of the user's own quickstart stay.
    (tmp_path / "pyproject.toml").touch()
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "quickstart.py", "photos", tmp_path / "out" / "quickstart"],
        check=True,
    )
    shutil.copy(path, tmp_path)
    notebook = nbformat.read(tmp_path / path.name, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
