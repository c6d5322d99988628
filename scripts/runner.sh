#!/usr/bin/env bash
# Build tvmq-run, which runs artifacts without Python: bash scripts/runner.sh TARGET FOLDER   (TARGET: native, rpi4, rpi5, ...)
# FOLDER gets the program and TVM's two runtime libraries (6 MB), from the wheels for that machine; copy the folder there.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."
bash scripts/install.sh cross
PYTHONPATH=. exec .venv/bin/python scripts/arm/runner.py "$@"
