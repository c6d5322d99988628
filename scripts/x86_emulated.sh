#!/usr/bin/env bash
# Run artifacts for older x86 CPUs under emulation: they use no instruction that those lack, and give the same bits.
# Needs qemu-x86_64 (Debian: qemu-user-static), which emulates nothing beyond AVX2.
set -euo pipefail
cd "$(dirname "$0")/.."
qemu=$(command -v qemu-x86_64-static || command -v qemu-x86_64) || {
    echo "x86_emulated: no qemu-x86_64 found; install qemu-user-static" >&2
    exit 5
}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.venv/bin/python - "$folder" x86_baseline x86_avx2 <<'EOF'
import sys

import torch

import tvmq
from tests import tiny_transformer

folder, *targets = sys.argv[1:]
stem = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, 2), torch.nn.ReLU6(), torch.nn.Conv2d(32, 32, 3, groups=32))
image = torch.randn(1, 3, 17, 17)
for target in targets:
    for name, model, batches in (
        ("transformer", tiny_transformer.transformer(), tiny_transformer.inputs()),
        ("convolutions", stem.eval(), [image, torch.randn(1, 3, 17, 17)]),
    ):
        compiled = tvmq.compile(model, example_inputs=(torch.as_tensor(batches[0]),), calibration=batches, target=target)
        compiled.save(f"{folder}/{name}.{target}.tvmq")
EOF

verify() { "$qemu" -cpu "$1" .venv/bin/python -m tvmq verify "$folder/$2.tvmq" 2>&1 | grep -v "TCG doesn't support"; }

for model in transformer convolutions; do
    for pair in "Nehalem x86_baseline" "Haswell x86_avx2"; do
        read -r cpu target <<<"$pair"
        echo "== $model for $target on $cpu"
        verify "$cpu" "$model.$target"
    done
done

echo "== code for x86_avx2 must not run on Nehalem"
if verify Nehalem transformer.x86_avx2 >"$folder/refused"; then
    echo "x86_emulated: it ran, so the emulation proves nothing" >&2
    exit 1
fi
grep "Illegal instruction" "$folder/refused"
