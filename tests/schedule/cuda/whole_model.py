"""Compile a small transformer for a GPU; save, load, run and verify it on an emulated one, in one process."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import tvmq
from tests import tiny_transformer
from tests.schedule.cuda.emulator import EmulatedCompiler, load_driver
from tvmq import pipeline
from tvmq.schedule.cuda import toolkit
from tvmq.target import load_profile


def main(target: str) -> None:
    profile = load_profile(target)
    assert profile.capability is not None
    os.environ["TVMQ_EMULATED_CAPABILITY"] = "{}{}".format(*profile.capability)
    with tempfile.TemporaryDirectory() as folder:
        load_driver(Path(folder))
        for module in (toolkit, pipeline):
            module.require_cuda = EmulatedCompiler  # type: ignore[attr-defined]
        toolkit.whole = lambda generated: generated  # the emulator adds the device functions itself
        model = tiny_transformer.compiled(target=target, preset="fast")
        model.verify().require()
        x = tiny_transformer.inputs(1, seed=5)[0]
        model.verify(x).require()
        path = Path(folder) / "model.tvmq"
        model.save(path)
        loaded = tvmq.load(path)
        loaded.verify().require()
        np.testing.assert_array_equal(loaded(x), model(x))
        measured = model.benchmark(repeat=2, warmup=0)
        print(f"{len(model.trace(x))} sites, {model.manifest.description.features}\n{measured.breakdown}")


if __name__ == "__main__":
    main(sys.argv[1])
