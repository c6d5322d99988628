"""Both halves of scripts/gpu_bench.sh on an emulated GPU: python -m tests.emulated_gpu_bench FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.schedule.cuda.emulator import EmulatedCompiler, load_driver
from tvmq import pipeline
from tvmq.schedule.cuda import toolkit

SCRIPTS = Path(__file__).parents[1] / "scripts"


def main(folder: Path) -> int:
    os.environ["TVMQ_EMULATED_CAPABILITY"] = "80"
    load_driver(folder)
    os.environ["LD_PRELOAD"] = f"{folder / 'libcuda.so.1'} {folder / 'libcudart.so.13'}"  # for the engines
    for module in (toolkit, pipeline):
        module.require_cuda = EmulatedCompiler  # type: ignore[attr-defined]
    toolkit.whole = lambda generated: generated
    sys.path[:0] = [str(SCRIPTS / name) for name in ("gpu", "bench", "shared", "arm")]
    import gpu_bench
    import gpu_peak
    import gpu_tiles

    gpu_peak.prepare = lambda folder, architecture: None
    gpu_peak.measured = lambda folder, architecture: gpu_peak.Peak(1000.0, {"emulated": 1000.0})
    made = folder / "prepared"
    python = "{}.{}".format(*sys.version_info)
    gpu_bench.prepare(made, ["small_vit"], [1], "a100", python)
    gpu_tiles.prepare(made, "a100", {"small": (16, 64, 32, True)}, [1, 2])
    gpu_tiles.LAUNCHES = 1
    gpu_bench.measure(made, (), [1], 1, tiles=True)
    return gpu_bench.measure(made, (), [1], rounds=1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
