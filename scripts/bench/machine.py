"""Measure the numbers of this machine's profile: bash scripts/machine.sh NAME [PROFILE.toml]

Peaks in int8 and fp32, bandwidths of the caches and of memory, clock: all of one core, the best of many short
runs. They take the place of the numbers in the profile that fits this CPU, and the result is written as
NAME.toml or to the path given; `tvmq compile --target PROFILE.toml` takes it.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tvmq.environment import cpu_name
from tvmq.plan.hardware import Signature
from tvmq.target import Machine, TargetProfile, native_profile, parse_profile

HERE = Path(__file__).parent
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20}


def measured(program: str, arguments: Sequence[object] = ()) -> dict[str, Any]:
    """Compile a C program of this folder, run it, and return the JSON that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program"
        subprocess.run(["gcc", "-O3", "-march=native", "-o", path, HERE / program], check=True)
        done = subprocess.run([path, *map(str, arguments)], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cache_bytes(level: int) -> int | None:
    """Return the size of a cache that holds data, None where the system does not say."""
    for folder in sorted(CACHES.glob("index*")):
        kind = (folder / "type").read_text().strip()
        if int((folder / "level").read_text()) == level and kind in ("Unified", "Data"):
            size = (folder / "size").read_text().strip()
            return int(size[:-1]) * UNITS[size[-1]]
    return None


def with_numbers(
    profile: TargetProfile, name: str, memory: dict[str, float], peaks: dict[str, Any], source: str
) -> TargetProfile:
    """Return profile with what was measured; peaks are those of peak.c."""
    l2, l3 = cache_bytes(2) or profile.machine.l2_bytes, cache_bytes(3)
    machine = Machine(**memory, l2_bytes=l2, l3_bytes=l3, source=source)
    kernels = []
    for kernel in profile.kernels:
        peak = peaks["int8" if Signature.of(kernel).integer else "fp32"]
        per_cycle = round(peak["gmacs"] / memory["clock_ghz"], 1)
        said = f"{source}: {peak['gmacs']} GMAC/s on one core ({peak['instructions']})"
        kernels.append(replace(kernel, macs_per_cycle=per_cycle, source=said))
    summary = f"{profile.summary}, with numbers measured on {cpu_name()}"
    return replace(profile, name=name, aliases=(), summary=summary, machine=machine, kernels=tuple(kernels))


def main(arguments: Sequence[str]) -> None:
    """Measure, and write the profile."""
    if not arguments:
        raise SystemExit("machine: give the name of the new profile, e.g. bash scripts/machine.sh my_server")
    name = arguments[0]
    path = Path(arguments[1] if len(arguments) > 1 else f"{name}.toml")
    profile = native_profile()
    sizes = [
        cache_bytes(2) or profile.machine.l2_bytes,
        cache_bytes(3) or profile.machine.l3_bytes or 32 << 20,
    ]
    memory, peaks = measured("memory.c", sizes), measured("peak.c")
    source = f"measured {datetime.date.today().isoformat()} by scripts/machine.sh on {cpu_name()}"
    text = with_numbers(profile, name, memory, peaks, source).to_toml()
    parse_profile(text, path.name)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {json.dumps(memory | {k: peak['gmacs'] for k, peak in peaks.items()})}")


if __name__ == "__main__":
    main(sys.argv[1:])
