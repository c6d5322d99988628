"""The least time that a machine's peak and its memory leave a kernel: for machines that are not at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tvmq.cost.works import Work
from tvmq.plan.hardware import Signature
from tvmq.target import Machine, TargetProfile

CALL_US = 0.45  # what the virtual machine needs for one call of a kernel
RUN_US = 9.0  # what one run of a model takes besides: its inputs and outputs are handed over
DEFAULT_L3_BYTES = 32 << 20  # where a profile does not say
# Bandwidths that a profile leaves out, as multiples of the next slower one's: what today's cores have.
STEPS = {"l3": 4.0, "l2": 1.2, "l1": 2.0}
L1_BYTES = 32 << 10
GPU_L2 = 2.0  # the same of a GPU's second level
GPU_KERNEL_US = 2.0  # the least that a kernel takes in a CUDA graph


def features(work: Work, threads: int) -> dict[str, float]:
    """Return the size of a kernel: operations, and bytes of its constants, inputs and outputs."""
    shapes = [(tuple(int(d) for d in p.shape), str(p.ty.dtype)) for p in work.use.kernel.function().params]
    sizes = [math.prod(shape) * _itemsize(dtype) for shape, dtype in shapes]
    given = work.use.arguments
    inputs = sum(s for s, a in zip(sizes, given, strict=False) if a is None)
    outputs = sizes[len(given) :]
    dtype = next((d for (_, d), a in zip(shapes, given, strict=False) if a is None), "float32")
    return {
        "macs": float(work.macs),
        "constant_bytes": float(work.constant_bytes),
        "input_bytes": float(inputs),
        "output_bytes": float(sum(outputs)),
        "elements": float(max((math.prod(s) for s, _ in shapes), default=1)),
        "integer": float(not dtype.startswith("float")),
        "threads": float(threads),
    }


def roofline_us(found: Mapping[str, float], profile: TargetProfile, constants_from: str) -> float:
    """Return the microseconds that the multiplications or the bytes take, whichever is more.

    found: see features. constants_from: "l3" or "dram". Values come from the cache that holds them.
    """
    machine, threads = profile.machine, profile.units(int(found["threads"]))
    peak = (
        threads * machine.clock_ghz * 1e3 * macs_per_cycle(profile, integer=bool(found["integer"]))
    )  # per us
    rates = bandwidths(machine)
    moved = found["input_bytes"] + found["output_bytes"]
    if profile.capability is not None:  # processors share all memory but registers
        fits = moved + found["constant_bytes"] <= machine.l2_bytes
        copied = (moved + found["constant_bytes"]) / (machine.dram_gb_per_s * (GPU_L2 if fits else 1.0))
        return max(found["macs"] / peak, copied / 1e3, GPU_KERNEL_US)
    # Cores share what lies behind the second level.
    fetched = found["constant_bytes"] / rates[constants_from] / (threads if constants_from == "l3" else 1)
    passed = moved / rates[level_of(moved, machine)] / threads
    lanes = 64.0 if found["integer"] else 16.0
    computed = max(found["macs"] / peak, found["elements"] / (lanes * machine.clock_ghz * 1e3 * threads))
    return max(computed, (fetched + passed) / 1e3, 0.05)


def macs_per_cycle(profile: TargetProfile, *, integer: bool) -> float:
    """Return the most that any product of the profile of this kind does on one core."""
    kinds = [kernel for kernel in profile.kernels if Signature.of(kernel).integer is integer]
    return max(kernel.macs_per_cycle for kernel in kinds or profile.kernels)


def bandwidths(machine: Machine) -> dict[str, float]:
    """Return 10**9 bytes a second of one core by cache level; what is not known follows from the next."""
    rates = {"dram": float(machine.dram_gb_per_s)}
    slower = "dram"
    for level, known in (
        ("l3", machine.l3_gb_per_s),
        ("l2", machine.l2_gb_per_s),
        ("l1", machine.l1_gb_per_s),
    ):
        rates[level] = float(known) if known else STEPS[level] * rates[slower]
        slower = level
    return rates


def level_of(size: float, machine: Machine) -> str:
    """Return the nearest cache that holds so many bytes."""
    if size <= L1_BYTES:
        return "l1"
    if size <= machine.l2_bytes:
        return "l2"
    return "l3" if size <= (machine.l3_bytes or DEFAULT_L3_BYTES) else "dram"


def constants_from(total_bytes: float, machine: Machine) -> str:
    """Return where the constants of a model of this size are when a kernel wants its own again."""
    return "l3" if total_bytes <= (machine.l3_bytes or DEFAULT_L3_BYTES) else "dram"


def _itemsize(dtype: str) -> int:
    return 1 if dtype == "bool" else int("".join(c for c in dtype if c.isdigit()) or 8) // 8
