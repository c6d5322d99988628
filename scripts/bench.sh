#!/usr/bin/env bash
# tvmq and its rivals (ONNX Runtime, OpenVINO with NNCF) measured in turns: bash scripts/bench.sh [--smoke] [--models a,b]
# [--threads 1,2] [--rounds n]. What it installs, exports and quantizes is kept in out/bench; needs gcc, and an idle
# machine for 40 minutes, the first time for 80.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh test
PYTHONPATH=$PWD:$PWD/scripts/shared exec .venv/bin/python scripts/bench/run.py "$@"
