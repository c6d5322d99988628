#!/usr/bin/env bash
# What bits="auto" finds for ViT-S/14 beside uniform bits and beside a ranking by SQNR, at the same sizes, on labelled
# images: bash scripts/plan.sh [--smoke] [--rows a,b] [--images n] [--preset name] [--threads n] [--cache folder]
# Uses the test-bed of scripts/accuracy.sh; what is measured is kept in scripts/plan.json and not measured again. An hour;
# kernels are timed for the first plan alone, which wants an idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh test
PYTHONPATH=$PWD:$PWD/scripts/shared:$PWD/scripts/accuracy exec .venv/bin/python scripts/plan/plan.py "$@"
