"""Tune a small net on a board with an emulated GPU and on this machine's, in one process.

    python -m tests.tune.emulated_gpu

The board is a process of its own, `tvmq serve`. Of its two GPUs only the second fits the target.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvmq
from tests import tiny_transformer
from tests.schedule.cuda.emulator import EmulatedCompiler, load_driver
from tvmq import pipeline
from tvmq.cli import main as command
from tvmq.compiled import CompiledModel
from tvmq.device import Device
from tvmq.errors import DeviceError
from tvmq.schedule.cuda import toolkit

WIDTH = tiny_transformer.WIDTH
LITTLE = 24 << 10  # bytes of shared memory, which larger tiles of the search space are over
TRIALS = 7


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        driver = Path(folder)
        os.environ["TVMQ_EMULATED_CAPABILITY"], os.environ["TVMQ_EMULATED_DEVICES"] = "75", "2"
        load_driver(driver)
        os.environ["LD_PRELOAD"] = f"{driver / 'libcuda.so.1'} {driver / 'libcudart.so.13'}"  # of processes
        for module in (toolkit, pipeline):
            module.require_cuda = EmulatedCompiler  # type: ignore[attr-defined]
        toolkit.whole = lambda generated: generated
        plain = compiled()
        with board() as device:
            on_the_board = tuned(driver / "board.jsonl", plain, device=device)
            path = driver / "model.tvmq"
            on_the_board.save(path)
            for arguments in (["verify"], ["bench", "--repeat", "2"]):
                assert command([arguments[0], str(path), "--device", device, *arguments[1:], "--json"]) == 0
        tuned(driver / "here.jsonl", plain)
        before = (driver / "here.jsonl").read_text()
        again = compiled(tune=tvmq.Tune(trials=0, database=driver / "here.jsonl"))
        assert (driver / "here.jsonl").read_text() == before
        assert {row["trials"] for row in again.manifest.description.recipe["tuned"]} == {TRIALS}
        lose_the_gpu(driver / "lost.jsonl")


def compiled(**options: object) -> CompiledModel:
    """Return a product for a T4, compiled in seconds: its one kernel has a hundred tiles."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()).eval()
    return tiny_transformer.compiled(net, target="t4", preset="fast", **options)


def tuned(database: Path, plain: CompiledModel, **options: object) -> CompiledModel:
    """Tune; check the bits and what was written down. Tiles that the GPU has no memory for are broken."""
    os.environ["TVMQ_EMULATED_SHARED_BYTES"] = str(LITTLE)
    model = compiled(tune=tvmq.Tune(trials=TRIALS, database=database), **options)
    del os.environ["TVMQ_EMULATED_SHARED_BYTES"]
    x = tiny_transformer.inputs(1, seed=5)[0]
    np.testing.assert_array_equal(model(x), plain(x))
    model.verify().require()
    rows = [json.loads(line) for line in database.read_text().splitlines()]
    assert {(row["setting"]["cpu"], row["setting"]["threads"]) for row in rows} == {("emulated", 1)}
    events = [row["event"] for row in rows]
    counted = {event: events.count(event) for event in sorted(set(events))}
    print(database.stem, counted, {row["why"] for row in rows if row["event"] == "failed"})
    assert counted["measured"] + counted["failed"] == TRIALS == counted["began"]
    assert counted["chosen"] == 1
    for row in rows:
        memory = 2 * (row["decisions"]["rows"] + row["decisions"]["columns"]) * row["decisions"]["depth"]
        if row["event"] in ("measured", "failed"):
            assert (row["event"] == "failed") == (memory > LITTLE), row
    return model


def lose_the_gpu(database: Path) -> None:
    """Tune where even the default kernel cannot be launched: no kernel is to blame, and none is noted."""
    os.environ["TVMQ_EMULATED_SHARED_BYTES"] = "1"
    with pytest.raises(DeviceError, match=r"the GPU does not run the default kernel \(") as found:
        compiled(tune=tvmq.Tune(trials=1, database=database))
    print(found.value)
    del os.environ["TVMQ_EMULATED_SHARED_BYTES"]
    assert '"failed"' not in database.read_text()


@contextmanager
def board() -> Iterator[str]:
    """Serve as a board; yields its device."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    environment = os.environ | {"TVMQ_EMULATED_SHARED_BYTES": str(LITTLE)}
    serve = [sys.executable, "-m", "tvmq", "serve", "--port", str(port)]
    process = subprocess.Popen(serve, env=environment, stderr=subprocess.DEVNULL)
    try:
        device = Device("127.0.0.1", port)
        for _ in range(100):
            try:
                machine = device.machine()
                break
            except DeviceError:
                time.sleep(0.2)
        assert [gpu.capability for gpu in machine.gpus] == [(6, 1), (7, 5)]
        yield str(device)
    finally:
        process.terminate()
        process.communicate(timeout=30)


if __name__ == "__main__":
    main()
