#!/usr/bin/env bash
# Everything that a change must pass. FAST=1 leaves out the slow tests.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (at %d s)\n' "$*" "$SECONDS"; }

workers=$(nproc)
workers=$((workers < 4 ? workers : 4)) # each holds TVM and PyTorch, a gigabyte

step install
bash scripts/install.sh test

step ruff
.venv/bin/ruff check .
.venv/bin/ruff format --check .

step mypy
.venv/bin/mypy

step fast tests
export OMP_NUM_THREADS=1 # PyTorch's threads of several processes would wait for each other
.venv/bin/python -m pytest -q -m "not slow" -n "$workers" --durations=5

if [ "${FAST:-}" != 1 ]; then
    step slow tests
    .venv/bin/python -m pytest -q -m slow -n "$workers" --durations=10
fi

step passed
