#!/usr/bin/env bash
# Measure this machine's peaks, bandwidths and clock, and write a target profile: bash scripts/machine.sh NAME [PROFILE.toml]
# Needs gcc and, for a minute, an idle core.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh compile
PYTHONPATH=$PWD exec .venv/bin/python scripts/bench/machine.py "$@"
