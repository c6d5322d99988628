"""AMX kernels: exact when their tile instructions run as plain C, and made of the real ones when compiled."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import ir, tirx
from tvm.target.codegen import llvm_lookup_intrinsic_id

from tests.schedule.isa_cases import ISA, target_of
from tests.schedule.linear_cases import EPILOGUES, SMALL, random_case
from tests.schedule.pool import pool_of
from tvmq.schedule.linear_spec import LinearSpec
from tvmq.schedule.x86_amx_linear import amx_linear_prim_func, supports, tile_configuration

VBMI = ISA["avx512_vbmi"]
LLVM_INTRINSIC = ir.Op.get("tirx.call_llvm_intrin")
NAMES = ("ldtilecfg", "tilerelease", "tilezero", "tileloadd64", "tilestored64", "tdpbusd")
NUMBERED = {llvm_lookup_intrinsic_id(f"llvm.x86.{name}"): name for name in NAMES}
SPEC = LinearSpec(rows=50, inputs=128, outputs=64, out_dtype="uint8", table=True)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Return the emulated instructions, loaded so that compiled kernels find them."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the emulated tile instructions")
    library = tmp_path_factory.mktemp("amx") / "tiles.so"
    source = Path(__file__).with_name("amx_tiles.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def emulated(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return func with calls of C functions in place of the tile instructions."""

    def call(node: ir.Call) -> ir.Call:
        if not node.op.same_as(LLVM_INTRINSIC):
            return node
        return tirx.call_extern("int32", f"amx_{NUMBERED[int(node.args[0])]}", *node.args[1:])

    return func.with_body(tvm_ffi.structural_map(func.body, (ir.Call, call)))


def check(tiles: ctypes.CDLL, spec: LinearSpec, threads: int = 1) -> None:
    func = emulated(amx_linear_prim_func(spec, VBMI, threads))
    kernel = tvm.compile(tvm.IRModule({"main": func}), target_of(VBMI))
    arguments, expected = random_case(spec)
    out = tvm.runtime.tensor(np.full(expected.shape, 77, expected.dtype))
    kernel(*map(tvm.runtime.tensor, arguments), out)
    np.testing.assert_array_equal(out.numpy(), expected)
    assert tiles.amx_wrong() == 0


@pytest.mark.isa(*VBMI.features)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_every_epilogue_is_exact(tiles: ctypes.CDLL, epilogue: str) -> None:
    check(tiles, LinearSpec(rows=37, inputs=64, outputs=96, **EPILOGUES[epilogue]))


@pytest.mark.isa(*VBMI.features)
@pytest.mark.parametrize("rows", [16, 17, 31, 32, 33, 48, 63, 197])
def test_every_number_of_rows_is_exact(tiles: ctypes.CDLL, rows: int) -> None:
    check(tiles, replace(SPEC, rows=rows))


@pytest.mark.isa(*VBMI.features)
@pytest.mark.parametrize("threads", [1, 2])
def test_both_thread_counts_give_the_same_bytes(tiles: ctypes.CDLL, threads: int) -> None:
    with pool_of(threads):
        check(tiles, replace(SPEC, rows=197, outputs=320), threads=2)


def test_the_compiled_kernel_is_made_of_tile_instructions() -> None:
    func = amx_linear_prim_func(replace(SPEC, rows=64), VBMI, 1)
    target = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "sapphirerapids"})
    text = tvm.compile(tvm.IRModule({"main": func}), target).mod.inspect_source("asm")
    found = Counter(word for line in text.splitlines() for word in line.split()[:1])
    assert found["ldtilecfg"] == found["tilerelease"] > 0
    assert found["tdpbusd"] == found["tileloadd"] > 0  # 2 x 2 products of 2 + 2 tiles
    assert found["tilezero"] == found["tilestored"] > 0


def test_the_configuration_is_that_of_palette_1() -> None:
    raw = tile_configuration()
    assert len(raw) == 64
    assert (raw[0], raw[16:32], raw[48:56]) == (1, bytes([64, 0] * 8), bytes([16] * 8))
    assert sum(raw) == 1 + 8 * 64 + 8 * 16


def test_what_the_kernel_cannot_do_is_said() -> None:
    assert supports(SPEC) is None
    assert supports(SMALL) == "8 inputs are not a multiple of 64"
    assert supports(replace(SPEC, rows=15)) == "15 rows do not fill a tile of 16"
    assert supports(replace(SPEC, outputs=48)) == "48 outputs are not a multiple of 32"
    with pytest.raises(ValueError, match="ask supports"):
        amx_linear_prim_func(SMALL, VBMI, 1)
