"""Parts that a measurement is made from: environments, and folders that are made once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TESTED, RIVALS = ROOT / "requirements" / "tested.txt", ROOT / "requirements" / "rivals.txt"


class NotMeasuredError(Exception):
    """A part could not be made or run; the text is the reason in one line."""


def part(folder: Path, name: str, made: str, make: Callable[[Path], None]) -> Path:
    """Return the folder name.made in folder, made now if it is not there; older ones go."""
    folder = folder / f"{name}.{made}"
    if not folder.is_dir():
        for old in folder.parent.glob(f"{name}.*"):
            shutil.rmtree(old)
        unfinished = folder.with_name(f"{name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(folder)
    return folder


def python_with(folder: Path, packages: Sequence[Any], made_from: Iterable[Path]) -> Path:
    """Return the interpreter of an environment in folder with these packages, what pip takes for one."""
    stamp, made = folder / ".made", key(made_from, [sys.version])
    if not stamp.exists() or stamp.read_text() != made:
        venv.create(folder, clear=True, with_pip=True)
        run(
            [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"],
            packages,
        )
        stamp.write_text(made)
    return folder / "bin" / "python"


def rivals_python() -> Path:
    """Return the interpreter of the environment with OpenVINO, NNCF and ONNX Runtime."""
    return python_with(ROOT / "out" / "rivals", ["-c", TESTED, "-r", RIVALS], [TESTED, RIVALS])


def key(files: Iterable[Path], words: Iterable[str] = ()) -> str:
    """Return a name for these files' contents and these words."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    digest.update("\n".join(words).encode())
    return digest.hexdigest()[:12]


def run(command: Sequence[Any], more: Sequence[Any] = ()) -> None:
    """Run a program; raise NotMeasuredError with its last words if it fails."""
    done = subprocess.run(
        [*map(str, command), *map(str, more)],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(),
    )
    if done.returncode:
        raise NotMeasuredError(reason_in(done.stderr or done.stdout) or f"exit code {done.returncode}")


def reason_in(text: str) -> str:
    """Return the last line that names an error, or else says anything, cut to the length of a note."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("tvmq: ") or "Error: " in line]
    return (named or lines or [""])[-1][:300]


def environment() -> dict[str, str]:
    """Return this process's environment with tvmq to import, and without what sets an engine's threads.

    Python keeps compiled bytecode, as it does of packages that pip installed.
    """
    unwanted = ("OMP_", "TVM_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return kept | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
