"""The parts of README.md that scripts write."""

from __future__ import annotations

from pathlib import Path


def put(path: Path, script: str, body: str) -> None:
    """Put body between the marks of a script."""
    begin, end = f"<!-- measured by {script} -->", "<!-- end of measured -->"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    _, after = rest.split(end, maxsplit=1)
    path.write_text(f"{before}{begin}\n{body}\n{end}{after}", encoding="utf-8")
