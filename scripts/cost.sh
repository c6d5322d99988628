#!/usr/bin/env bash
# What the cost model predicts of whole models beside what they take: bash scripts/cost.sh [--models a,b] [--threads 1,2]
# [--sites n] [--store file] [--output rows.json]. Needs an idle machine for some minutes; models are those of bench.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh test
PYTHONPATH=$PWD:$PWD/scripts/shared exec .venv/bin/python scripts/bench/costs.py "$@"
