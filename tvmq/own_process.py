"""Do what a request asks in a process of its own: a crash there, or no end, is an answer like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

LIMIT = 600.0  # seconds, where a request says nothing
# A request is done in a folder of its own: paths from here would lead nowhere.
GIVEN = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
PATHS = [str(Path(__file__).parents[1]), *map(os.path.abspath, GIVEN)]


def answer(request: str, folder: str | None = None) -> str:
    """Return in JSON what board_worker.py answers to a request in JSON, in a folder with its files.

    Ctrl-C in the terminal does not reach that process: what it measures is none of its own failures.
    """
    limit = float(json.loads(request).get("limit", LIMIT))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tvmq.board_worker"],
            input=request, capture_output=True, text=True, errors="replace", timeout=limit, check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(PATHS)}, cwd=folder, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return json.dumps({"crash": f"no end within {limit:g} s"})
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    words = done.stderr.strip()[-500:]
    if done.returncode < 0:
        return json.dumps({"crash": f"ended by {signal.Signals(-done.returncode).name} {words}".strip()})
    return json.dumps({"crash": f"exit code {done.returncode}: {words}"})
