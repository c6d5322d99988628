#!/usr/bin/env bash
# How well ARM kernels' inner loops fill the cores' multipliers, by static analysis: bash scripts/arm_model.sh [--print].
# Needs llvm-mca of LLVM 17 or later (Debian: llvm-19); no ARM machine. Without --print it writes the table in README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh compile
PYTHONPATH=$PWD:$PWD/scripts/shared exec .venv/bin/python scripts/arm_model/arm_model.py "$@"
