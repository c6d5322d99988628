"""The instructions compute what their plain descriptions say, at the ends of every range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tests.schedule.isa_cases import ISA, NAMES, VNNI_NAMES, target_of
from tests.schedule.linear_cases import SMALL, compiled_once, random_case
from tvmq.schedule import x86_intrinsics


@pytest.mark.parametrize(
    ("x", "weight", "bias"), [(255, -127, -(2**20)), (255, 127, 2**20), (0, 127, 0), (1, -128, 7)]
)
@pytest.mark.parametrize("isa", VNNI_NAMES)
def test_extreme_operands_do_not_saturate_on_the_way(isa: str, x: int, weight: int, bias: int) -> None:
    spec = replace(SMALL, inputs=512, out_dtype="float32")
    arguments, _ = random_case(spec)
    for argument, value in zip(arguments, (x, weight, bias, 1), strict=True):
        argument[...] = value
    out = tvm.runtime.tensor(np.zeros((spec.rows, spec.outputs), "float32"))
    compiled_once(spec, isa)(*map(tvm.runtime.tensor, arguments), out)
    np.testing.assert_array_equal(out.numpy(), np.float32(512 * x * weight + bias))


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
                T.buffer_store(out, x86_intrinsics.lookup(ISA[isa], table, index[at], lanes), [at])
        func = builder.get()
    lookup = tvm.compile(func, target_of(ISA[isa]))
    values, indices = (np.random.default_rng(seed).permutation(entries).astype("uint8") for seed in (0, 1))
    found = tvm.runtime.tensor(np.zeros(entries, "uint8"))
    lookup(tvm.runtime.tensor(values), tvm.runtime.tensor(indices), found)
    np.testing.assert_array_equal(found.numpy(), values[indices])


def test_registering_twice_is_registering_once() -> None:
    x86_intrinsics.register()
    x86_intrinsics.register()
