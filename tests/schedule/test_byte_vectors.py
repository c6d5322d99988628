"""Bytes in registers are saturated, permuted and looked up alike on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tests.schedule.isa_cases import ISA, NAMES, built
from tvmq.schedule.byte_vectors import lookup, pack_bytes, pack_words, permute
from tvmq.schedule.vectors import load, store


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("lanes", [16, 32, 64])
@pytest.mark.parametrize("entries", [128, 256])
def test_every_byte_finds_its_entry(isa: str, lanes: int, entries: int) -> None:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            table, index, out = (T.arg(n, T.buffer((entries,), "uint8")) for n in ("table", "index", "out"))
            with T.serial(entries // lanes) as i:
                at = T.ramp(i * lanes, 1, lanes)
                T.buffer_store(out, lookup(ISA[isa], table, index[at], lanes), [at])
        func = builder.get()
    kernel = built(func, isa)
    values, indices = (np.random.default_rng(seed).permutation(entries).astype("uint8") for seed in (0, 1))
    found = tvm.runtime.tensor(np.zeros(entries, "uint8"))
    kernel(tvm.runtime.tensor(values), tvm.runtime.tensor(indices), found)
    np.testing.assert_array_equal(found.numpy(), values[indices])


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_sums_are_saturated_and_permuted_inside_128_bits(isa: str, dtype: str) -> None:
    sums = np.random.default_rng(0).integers(-(2**17), 2**17, 16, dtype=np.int32)
    sums[::2] //= 2**9
    order = np.random.default_rng(1).permutation(16).astype("uint8")
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            a, index = T.arg("a", T.buffer((16,), "int32")), T.arg("index", T.buffer((16,), "uint8"))
            out = T.arg("out", T.buffer((16,), dtype))
            words = [pack_words(ISA[isa], *(load(a, at + n, 4) for n in (0, 4))) for at in (0, 8)]
            packed = pack_bytes(ISA[isa], dtype, *words)
            store(out, 0, permute(ISA[isa], packed, T.reinterpret(f"{dtype}x16", load(index, 0, 16))))
        func = builder.get()
    found = tvm.runtime.tensor(np.zeros(16, dtype))
    built(func, isa)(*map(tvm.runtime.tensor, (sums, order)), found)
    limits = np.iinfo(dtype)
    np.testing.assert_array_equal(found.numpy(), sums.clip(limits.min, limits.max).astype(dtype)[order])
