"""How well ARM kernels' inner loops fill the cores' multipliers, by llvm-mca.

That runs a loop on a model of a core without its caches: what memory costs is not in the numbers, nor what
happens once per register tile (but for depthwise convolutions, whose inner loop has all of it).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import readme
import tvm

from tvmq.schedule.isa import isa_of
from tvmq.target import load_profile

README = Path(__file__).parents[2] / "README.md"
SCRIPT = "scripts/arm_model.sh"
ITERATIONS = 200
OLDEST = 17  # LLVM's first with models of Neoverse N1 and V1
# Instruction -> multiply-accumulates of one.
MULTIPLIES = {
    "sdot": 16,
    "udot": 16,
    "usmmla": 32,
    "smull": 8,
    "smull2": 8,
    "umull": 8,
    "umull2": 8,
    "fmla": 4,
}
LABEL, BRANCH = re.compile(r"^(\.L\w+):"), re.compile(r"^\t(?:b|b\.\w+|cbn?z|tbn?z)\t.*?(\.L\w+)$")


@dataclass(frozen=True, slots=True)
class Core:
    """A core, the profile that its code is compiled for, and LLVM's model that stands for it."""

    name: str
    profile: str
    model: str


CORES = (
    Core("Cortex-A72", "arm_neon", "cortex-a72"),  # which LLVM has the numbers of Cortex-A57 for
    Core("Cortex-A76", "arm_dotprod", "neoverse-n1"),  # the same design; LLVM has no numbers of its own
    Core("Neoverse V1", "neoverse_v1", "neoverse-v1"),
)


def loops(assembly: str) -> Iterator[list[str]]:
    """Yield the instructions of each loop that holds no other, without its branch."""
    lines = [line.partition("//")[0].rstrip() for line in assembly.splitlines()]
    labels = {found[1]: at for at, line in enumerate(lines) if (found := LABEL.match(line))}
    for at, line in enumerate(lines):
        branch = BRANCH.match(line)
        if branch and labels.get(branch[1], at) < at:
            body = [text for text in lines[labels[branch[1]] + 1 : at] if re.match(r"^\t[a-z]", text)]
            if not any(BRANCH.match(text) for text in body):
                yield body


def multiplied(body: Sequence[str]) -> int:
    """Return the multiply-accumulates of one iteration."""
    return sum(MULTIPLIES.get(line.split()[0], 0) for line in body)


def cycles(body: Sequence[str], model: str) -> float:
    """Return the cycles of an iteration on a model of LLVM's."""
    command = [
        llvm_mca(),
        "-mtriple=aarch64",
        f"-mcpu={model}",
        "-mattr=+dotprod,+i8mm",
        f"-iterations={ITERATIONS}",
    ]
    done = subprocess.run(command, input="\n".join(body), capture_output=True, text=True, check=True)
    found = re.search(r"^Total Cycles:\s+(\d+)", done.stdout, re.M)
    assert found is not None
    return int(found[1]) / ITERATIONS


def llvm_mca() -> str:
    """Return the newest llvm-mca; the process ends where none is new enough."""
    for version in range(OLDEST + 20, OLDEST - 1, -1):
        if program := shutil.which(f"llvm-mca-{version}"):
            return program
    sys.exit(f"arm_model: no llvm-mca of LLVM {OLDEST} or later found; install one (Debian: llvm-19)")


def rate(build: Any, core: Core) -> float:
    """Return the multiply-accumulates per cycle of the loop of a kernel that has most of them."""
    profile = load_profile(core.profile)
    isa = isa_of(profile)
    assert isa is not None
    executable = tvm.compile(tvm.IRModule({"main": build(isa)}), profile.tvm())
    body = max(loops(executable.mod.inspect_source("asm")), key=multiplied)
    return multiplied(body) / cycles(body, core.model)


def table() -> str:
    """Return the table of README.md."""
    peaks = [load_profile(core.profile).kernels[0].macs_per_cycle for core in CORES]
    heads = [f"{core.name}, peak {peak:g}" for core, peak in zip(CORES, peaks, strict=True)]
    lines = [f"| modelled MAC/cycle, one core | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(CORES)}"]
    for name, (build, filled) in families.FAMILIES.items():
        rates = [filled * rate(build, core) for core in CORES]
        cells = [f"{each:.1f}, {100 * each / peak:.0f} %" for each, peak in zip(rates, peaks, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    floats = [f"{rate(families.float_linear, core):.1f}" for core in CORES]
    lines.append(f"| tvmq's float linear, the same sizes | {' | '.join(floats)} |")
    models = ", ".join(f"{core.name} by the model of {core.model}" for core in CORES)
    note = f"Inner loops, by {Path(llvm_mca()).name}: {models}, without memory. Nothing was measured."
    return "\n".join([*lines, "", note])


def main() -> None:
    """Write the table, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="only print the table")
    found = table()
    print(found)
    if not parser.parse_args().print:
        readme.put(README, SCRIPT, found)


if __name__ == "__main__":
    main()
