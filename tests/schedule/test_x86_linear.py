"""The linear kernels equal numerics bit for bit, for any shape and epilogue, inside their buffers."""

from __future__ import annotations

import ctypes
import functools
import mmap
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tvmq import numerics
from tvmq.schedule.linear_spec import (
    LANES,
    LinearSpec,
    buffers,
    pack_weight,
    pad_channels,
    supports,
    unpack_weight,
)
from tvmq.schedule.register_tiles import Decision, choose_tiles
from tvmq.schedule.x86_linear import (
    default_decision,
    linear_prim_func,
    plain_decision,
    schedule_linear,
    schedule_linear_plain,
)

VNNI = pytest.mark.isa("avx512_vnni", "avx512bw")
VBMI = pytest.mark.isa("avx512_vnni", "avx512vbmi")
CPUS = [
    pytest.param("znver4", marks=VBMI),
    pytest.param("cascadelake", marks=VNNI),
    pytest.param("haswell", marks=pytest.mark.isa("avx2")),
]
EPILOGUES: dict[str, dict[str, Any]] = {
    "uint8": {"out_dtype": "uint8"},
    "table": {"out_dtype": "uint8", "table": True},
    "int8": {"out_dtype": "int8", "low": -127},
    "trunk": {"out_dtype": "int16", "residual": True},
    "fixed point": {"out_dtype": "uint8", "fixed_point": True, "zero_point": 128},
    "float32": {"out_dtype": "float32"},
}
SMALL = LinearSpec(rows=5, inputs=8, outputs=20, out_dtype="uint8")


def compiled(spec: LinearSpec, cpu: str, decision: Decision | None = None, threads: int = 1) -> Any:
    func = linear_prim_func(spec, vbmi=cpu == "znver4")
    if cpu == "haswell":
        func = schedule_linear_plain(func, spec, decision or plain_decision(spec, threads))
    else:
        func = schedule_linear(func, spec, decision or default_decision(spec, threads))
    return tvm.compile(tvm.IRModule({"main": func}), tvm.target.Target({"kind": "llvm", "mcpu": cpu}))


compiled_once = functools.cache(compiled)


def random_case(spec: LinearSpec, seed: int = 0) -> tuple[list[Any], Any]:
    """Return the kernel's arguments without out, and the output that numerics gives."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (spec.rows, spec.inputs), "uint8")
    weight = random.integers(-127, 128, (spec.inputs, spec.outputs), "int8")
    bias = random.integers(-5000, 5000, spec.outputs, "int32")
    acc = x.astype("int64") @ weight.astype("int64") + bias
    per_channel, values = [bias], acc
    if spec.out_dtype == "float32":
        per_channel.append(random.random(spec.outputs, "float32"))
        return _arguments(spec, x, weight, per_channel), acc.astype("float32") * per_channel[-1]
    if spec.fixed_point:
        per_channel.append(random.integers(2**30, 2**31, spec.outputs).astype("int32"))
        per_channel.append(random.integers(34, 46, spec.outputs, "int32"))
        values = numerics.round_shift_wide(acc * per_channel[1].astype("int64"), per_channel[2])
        values = values + spec.zero_point
    else:
        per_channel.append(random.integers(0, 14, spec.outputs, "int32"))
        values = acc >> per_channel[1]
    arguments = _arguments(spec, x, weight, per_channel)
    if spec.residual:
        arguments.append(random.integers(-32768, 32768, (spec.rows, spec.outputs)).astype("int16"))
        values = values + arguments[-1]
    values = np.clip(values, *spec.clip).astype(spec.out_dtype)
    if spec.table:
        arguments.append(random.permutation(256).astype("uint8"))
        values = arguments[-1][values]
    return arguments, values


def _arguments(spec: LinearSpec, x: Any, weight: Any, per_channel: list[Any]) -> list[Any]:
    padded = spec.groups * LANES
    return [x, pack_weight(weight), *(pad_channels(values, padded) for values in per_channel)]


def check(kernel: Any, spec: LinearSpec) -> None:
    arguments, expected = random_case(spec)
    assert [(a.shape, a.dtype) for a in arguments] == list(buffers(spec).values())[:-1]
    out = tvm.runtime.tensor(np.full(expected.shape, 77, spec.out_dtype))
    kernel(*map(tvm.runtime.tensor, arguments), out)
    np.testing.assert_array_equal(out.numpy(), expected)


@settings(max_examples=9, deadline=None)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 40).map(lambda k: 4 * k),
    outputs=st.integers(1, 200),
    epilogue=st.sampled_from(sorted(EPILOGUES)),
    threads=st.sampled_from([1, 2, 3]),
)
@example(rows=1, inputs=4, outputs=1, epilogue="uint8", threads=1)
@example(rows=37, inputs=24, outputs=256, epilogue="table", threads=2)  # four groups in one lookup
@example(rows=13, inputs=24, outputs=249, epilogue="table", threads=2)  # the same with a short last step
@example(rows=50, inputs=52, outputs=65, epilogue="trunk", threads=2)  # one channel in the last group
@VBMI
def test_any_shape_is_exact(rows: int, inputs: int, outputs: int, epilogue: str, threads: int) -> None:
    spec = LinearSpec(rows=rows, inputs=inputs, outputs=outputs, **EPILOGUES[epilogue])
    check(compiled(spec, "znver4", threads=threads), spec)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("cpu", CPUS)
def test_every_epilogue_is_exact_on_every_cpu(cpu: str, epilogue: str) -> None:
    spec = LinearSpec(rows=23, inputs=36, outputs=75, **EPILOGUES[epilogue])
    check(compiled(spec, cpu), spec)


@VNNI
@pytest.mark.parametrize(
    "decision",
    [
        Decision(row_tile=5, column_tile=2, outer="rows", parallel=False),
        Decision(row_tile=4, column_tile=3, outer="rows", row_chunks=3),
        Decision(row_tile=12, column_tile=1, row_chunks=7),
        Decision(row_tile=1, column_tile=12),
    ],
)
def test_no_decision_changes_the_numbers(decision: Decision) -> None:
    spec = LinearSpec(rows=41, inputs=28, outputs=100, out_dtype="int16", residual=True)
    check(compiled(spec, "cascadelake", decision), spec)


@pytest.mark.parametrize(
    ("x", "weight", "bias"), [(255, -127, -(2**20)), (255, 127, 2**20), (0, 127, 0), (1, -128, 7)]
)
@pytest.mark.parametrize("cpu", CPUS)
def test_extreme_operands_do_not_saturate_on_the_way(cpu: str, x: int, weight: int, bias: int) -> None:
    spec = replace(SMALL, inputs=512, out_dtype="float32")
    arguments, _ = random_case(spec)
    for argument, value in zip(arguments, (x, weight, bias, 1), strict=True):
        argument[...] = value
    out = tvm.runtime.tensor(np.zeros((spec.rows, spec.outputs), "float32"))
    compiled_once(spec, cpu)(*map(tvm.runtime.tensor, arguments), out)
    np.testing.assert_array_equal(out.numpy(), np.float32(512 * x * weight + bias))


@VBMI
@pytest.mark.parametrize("threads", [1, 2])
def test_both_thread_counts_give_the_same_bytes(threads: int) -> None:
    configure = tvm.get_global_func("runtime.config_threadpool")
    configure(1, threads)
    try:
        spec = LinearSpec(rows=197, inputs=96, outputs=320, out_dtype="uint8", table=True)
        assert default_decision(spec, threads=2).parallel
        check(compiled(spec, "znver4", threads=2), spec)
    finally:
        configure(1, 0)


def guarded(array: Any) -> Any:
    """Return a copy that ends where the readable memory ends; its size is a multiple of 64 bytes."""
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert array.nbytes % 64 == 0
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, 0) == 0
    copy = np.frombuffer(memory, array.dtype, array.size, offset=size - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("cpu", CPUS)
def test_nothing_is_touched_past_the_end(cpu: str) -> None:
    # 32 rows of 17 outputs: no tile below divides them, and all sizes are multiples of 64 bytes.
    spec = LinearSpec(rows=32, inputs=36, outputs=17, out_dtype="int16", residual=True)
    kernel = compiled(spec, cpu, Decision(row_tile=5, column_tile=2, parallel=False))
    arguments, expected = random_case(spec)
    out = guarded(np.zeros_like(expected))
    kernel(*(tvm.runtime.from_dlpack(guarded(a)) for a in arguments), tvm.runtime.from_dlpack(out))
    np.testing.assert_array_equal(out, expected)


@VNNI
@pytest.mark.parametrize("outputs", [1, 3, 15, 17])
def test_a_row_does_not_spill_into_the_next(outputs: int) -> None:
    # Rows stored first to last hide an overrun, except that of the last row.
    spec = LinearSpec(rows=1, inputs=4, outputs=outputs, out_dtype="uint8")
    arguments, expected = random_case(spec)
    room = np.full((64 + 63,), 77, "uint8")
    room = room[-room.ctypes.data % 64 :][:64]
    out = room[:outputs].reshape(1, outputs)
    kernel = compiled(spec, "cascadelake")
    kernel(*map(tvm.runtime.tensor, arguments), tvm.runtime.from_dlpack(out))
    np.testing.assert_array_equal(out, expected)
    assert (room[outputs:] == 77).all()


@given(inputs=st.integers(1, 20).map(lambda k: 4 * k), outputs=st.integers(1, 70), seed=st.integers(0, 99))
def test_packing_has_a_way_back(inputs: int, outputs: int, seed: int) -> None:
    weight = np.random.default_rng(seed).integers(-127, 128, (inputs, outputs)).astype("int8")
    packed = pack_weight(weight)
    assert packed.shape == (-(-outputs // 16), inputs // 4, 16, 4)
    np.testing.assert_array_equal(unpack_weight(packed, inputs, outputs), weight)
    assert np.count_nonzero(packed) == np.count_nonzero(weight)  # the padding is zeros


def test_default_tiles_waste_little() -> None:
    for rows, outputs in [(197, 384), (197, 1000), (257, 768), (50, 96), (1, 1000), (3136, 288)]:
        decision = choose_tiles(rows, -(-outputs // 16), 96)
        done = [
            -(-n // t) * t for n, t in ((rows, decision.row_tile), (-(-outputs // 16), decision.column_tile))
        ]
        assert done[0] * done[1] <= 1.03 * rows * -(-outputs // 16)
    # 5 column tiles do not share out between 2 threads, 66 row tiles do.
    assert choose_tiles(197, 20, 96, threads=2).row_chunks == 2
    assert choose_tiles(197, 24, 96, threads=2).row_chunks == 1
    assert not choose_tiles(1, 1, 96, threads=2).parallel


def test_what_the_kernel_cannot_do_is_said() -> None:
    assert supports(SMALL) is None
    odd = replace(SMALL, inputs=6)
    assert supports(odd) == "6 inputs are not a multiple of 4, which one instruction multiplies"
    with pytest.raises(ValueError, match="ask supports"):
        linear_prim_func(odd)
    with pytest.raises(ValueError, match="a table takes uint8"):
        replace(SMALL, out_dtype="int8", table=True)
    tabled = replace(SMALL, outputs=64, table=True)
    with pytest.raises(ValueError, match="column_tile is 3, a multiple of 4 is wanted"):
        schedule_linear(linear_prim_func(tabled, vbmi=True), tabled, Decision(row_tile=4, column_tile=3))
