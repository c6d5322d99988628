#!/usr/bin/env bash
# tvmq on an NVIDIA GPU beside torch: exactness, latency, share of the GPU's peak. Two halves, so that the machine with
# the GPU needs neither compiler nor network:
#     bash scripts/gpu_bench.sh --prepare FOLDER [--target h100] [--python 3.12]   on any machine: compiles the models
#     bash scripts/gpu_bench.sh --run FOLDER            on the machine with the GPU: checks and measures them
#     bash scripts/gpu_bench.sh --table FOLDER          takes the results in FOLDER into README.md
# --models a,b and --batches 1,8 name a part; --tiles, in both halves, is about products alone: which tile is best. --run makes an environment in out/gpu; PYTHON=python3 takes one that is there
# and has NumPy (torch and timm, too, else only tvmq is measured): TVM's runtime is in FOLDER. --smoke checks all that
# needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
if [ "${1:-}" = --run ]; then
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        python=out/gpu/bin/python
        [ -x "$python" ] || python3 -m venv out/gpu
        "$python" -m pip install --quiet --disable-pip-version-check -c requirements/tested.txt -e ".[gpu]" torch timm
    fi
else
    bash scripts/install.sh test
fi
PYTHONPATH=$PWD:$PWD/scripts/shared:$PWD/scripts/bench:$PWD/scripts/arm exec "$python" scripts/gpu/gpu_bench.py "$@"
