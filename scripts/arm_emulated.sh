#!/usr/bin/env bash
# Compile models for Raspberry Pi 4 and 5 and run them on emulated cores: the bits of this machine and of the reference,
# and no instruction that a Cortex-A72 lacks.
#     bash scripts/arm_emulated.sh [--folder FOLDER] [MODEL...]     of tiny deit_tiny mobilenetv2 resnet18 vit_s
# FOLDER (default out/arm) gets, once, a Python for aarch64 and TVM's wheels for it (200 MB). Needs Debian 12 or what
# else has Python 3.11 for arm64, qemu-aarch64 (Debian: qemu-user-static) and ziglang or a cross gcc.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh test
PYTHONPATH=scripts/bench:scripts/shared:. OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 exec .venv/bin/python scripts/arm/emulate.py "$@"
