"""The parts of README.md that scripts write, and files that are there whole or as before."""

from __future__ import annotations

import os
from pathlib import Path


def put(path: Path, script: str, body: str) -> None:
    """Put body between the marks of a script."""
    begin, end = f"<!-- measured by {script} -->", "<!-- end of measured -->"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    _, after = rest.split(end, maxsplit=1)
    write_whole(path, f"{before}{begin}\n{body}\n{end}{after}")


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step: who ends the script leaves no half of one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
