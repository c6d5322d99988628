#!/usr/bin/env bash
# How accurate tvmq and its rivals (ONNX Runtime, OpenVINO with NNCF) are on real models and labelled data:
# bash scripts/accuracy.sh [--smoke] [--beds a,b] [--columns name]... [--threads n] [--cache folder]
# What it downloads, trains probes on and measures is kept in out/accuracy; hours the first time, started again it goes on
# where it was ended.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh test
PYTHONPATH=$PWD:$PWD/scripts/shared exec .venv/bin/python scripts/accuracy/accuracy.py "$@"
