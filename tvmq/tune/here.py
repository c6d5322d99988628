"""This machine in the place of a board, for kernels of its GPU: one that fails takes its process with it."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvmq import own_process
from tvmq.device import PATIENCE, Files, answered


class ThisMachine:
    """Answers requests as a board does, each in a process of its own, one after the other."""

    def __init__(self) -> None:
        self._free = threading.Lock()

    def boards(self) -> tuple[str, ...]:
        """Return the one that there is: kernels that share a GPU would be timed together."""
        return ("this machine",)

    def ask(self, request: Mapping[str, Any], files: Files | None = None, limit: float = PATIENCE) -> Any:
        """Return the answer; raises ProgramCrashError and what the request meets, as Device.ask."""
        with self._free, tempfile.TemporaryDirectory(prefix="tvmq-") as folder:
            for name, data in (files or {}).items():
                (Path(folder) / name).write_bytes(data)
            text = own_process.answer(json.dumps({**request, "limit": limit}), folder)
        return answered(json.loads(text), "here")
