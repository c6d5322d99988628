"""Which instruction set a profile's kernels are written for."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import tvm

from tests.schedule.isa_cases import ISA, PROFILES
from tvmq.schedule.isa import ISAS, TILE_PRODUCT, isa_of
from tvmq.schedule.kernels import find
from tvmq.target import load_profile


@pytest.mark.parametrize(("isa", "profile"), PROFILES.items())
def test_a_profile_gets_the_fastest_set_it_has(isa: str, profile: str) -> None:
    assert isa_of(load_profile(profile)) is ISA[isa]


def test_every_set_has_a_profile_and_a_profile_without_one_has_none() -> None:
    assert set(ISA) == set(PROFILES)
    assert isa_of(replace(load_profile("x86_baseline"), features=frozenset({"sse", "sse2"}))) is None


def test_tiles_are_taken_only_where_the_profile_names_them() -> None:
    amx = load_profile("x86_amx")
    others = tuple(kernel for kernel in amx.kernels if kernel.intrinsic != TILE_PRODUCT)
    assert isa_of(replace(amx, kernels=others)) is ISA["avx512_vbmi"]


def test_a_dot_is_named_after_its_instruction_and_width() -> None:
    names = {isa.dot for isa in ISAS}
    assert "vpdpbusd512_dot_16x4_u8s8s32" in names
    assert "pmaddubsw128_dot_16x4_u8s8s32" in names
    assert "sdot128_dot_16x4_u8s8s32" in names
    assert len(names) == 8  # the three with 512-bit vpdpbusd share it


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")),
    reason="qemu-x86_64 is not installed (Debian: qemu-user-static)",
)
def test_artifacts_for_older_cpus_run_there_with_the_same_bits() -> None:
    script = Path(__file__).parents[2] / "scripts" / "x86_emulated.sh"
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("all equal") == 4


LINEAR = {
    "kernel": "linear", "in_dtype": "uint8", "out_dtype": "uint8", "residual": False, "table": True,
    "fixed_point": False, "gain": False, "zero_point": 0, "low": 0, "high": 255,
}  # fmt: skip
# Instruction of the products, and what no CPU of the kind has: wider registers, other encodings.
CODE = [
    ("amx", "tdpbusd", ()),
    ("avx512_vbmi", "vpdpbusd", ()),
    ("avx512_vnni", "vpdpbusd", ("vpermi2b",)),
    ("avx_vnni", "{vex} vpdpbusd", ("%zmm", "%ymm16", "%k1")),
    ("avx512", "vpmaddubsw", ("vpdpbusd",)),
    ("avx2", "vpmaddubsw", ("%zmm", "%ymm16", "%k1", "vpdpbusd")),
    ("sse4", "pmaddubsw", ("%ymm", "vpmadd")),
    ("i8mm", "usmmla", ("\tz", "whilelo")),
    ("dotprod", "sdot", ("usdot", "usmmla")),
    ("neon", "smull", ("sdot",)),
]


@pytest.mark.parametrize(("isa", "wanted", "unwanted"), CODE)
def test_code_for_a_profile_multiplies_by_its_instruction_and_uses_nothing_newer(
    isa: str, wanted: str, unwanted: tuple[str, ...]
) -> None:
    profile = load_profile(PROFILES[isa])
    kernel = find(LINEAR, [(64, 64), (64, 64), (64,), (64,), (256,)], profile, threads=1)
    assert kernel is not None
    compiled = tvm.compile(tvm.IRModule({"main": kernel.function()}), profile.tvm())
    lines = compiled.mod.inspect_source("asm").splitlines()
    code = "\n".join(" ".join(line.split()) for line in lines)
    assert wanted in code
    assert [word for word in unwanted if word in code] == []
