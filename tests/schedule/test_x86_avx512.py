"""The vector operations of AVX-512 kernels, where the CPU has them."""

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tests.schedule.test_x86_attention import CPUS, runs_here
from tvmq.schedule import x86_avx512
from tvmq.schedule.vectors import load, splat, store

RNG = np.random.default_rng(0)


def run(cpu: str, body, *arrays: np.ndarray, out: str) -> np.ndarray:
    if not runs_here(cpu):
        pytest.skip(f"this machine cannot run code for {cpu}")
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            buffers = [T.arg(f"a{i}", T.buffer(a.shape, str(a.dtype))) for i, a in enumerate(arrays)]
            body(*buffers, T.arg("out", T.buffer((64,), out)))
        func = builder.get().with_attr("global_symbol", "main")
    result = tvm.runtime.tensor(np.zeros(64, out))
    compiled = tvm.compile(func, tvm.target.Target({"kind": "llvm", "mcpu": cpu}))
    compiled(*(tvm.runtime.tensor(a) for a in arrays), result)
    return result.numpy()


@pytest.mark.parametrize("cpu", CPUS)
def test_a_table_of_128_bytes_is_looked_up(cpu):
    table, index = RNG.integers(0, 256, 128).astype(np.uint8), RNG.permutation(128)[:64].astype(np.uint8)

    def body(t, i, out):
        store(out, 0, x86_avx512.lookup128(t, T.bind(load(i, 0, 64)), vbmi=CPUS[cpu]))

    np.testing.assert_array_equal(run(cpu, body, table, index, out="uint8"), table[index])


def test_packed_numbers_come_back_in_order_and_saturated():
    numbers = RNG.integers(0, 2**31, 64, dtype=np.int32)
    numbers[::2] = RNG.integers(0, 300, 32)

    def body(a, out):
        packed = x86_avx512.clipped_bytes([T.bind(load(a, 16 * m, 16)) for m in range(4)])
        store(out, 0, T.reinterpret("uint8x64", x86_avx512.in_order(packed)))

    np.testing.assert_array_equal(run("cascadelake", body, numbers, out="uint8"), np.minimum(numbers, 255))


def test_dots_of_a_repeated_quad():
    unsigned, signed = (
        RNG.integers(0, 256, (2, 8)).astype(np.uint8),
        RNG.integers(-128, 128, 64).astype(np.int8),
    )

    def body(a, b, out):
        quad = x86_avx512.broadcast_quad(a, 1, 1)
        store(out, 0, x86_avx512.dot(splat(5, "int32x16"), quad, load(b, 0, 64)))

    expected = signed.reshape(16, 4).astype(int) @ unsigned[1, 4:] + 5
    np.testing.assert_array_equal(run("cascadelake", body, unsigned, signed, out="int32")[:16], expected)


@pytest.mark.parametrize("count", [1, 37, 64])
def test_valid_bytes_are_the_first(count):
    def body(out):
        store(out, 0, T.reinterpret("uint8x64", x86_avx512.valid_bytes(count)))

    found = run("cascadelake", body, out="uint8")
    np.testing.assert_array_equal(found, np.where(np.arange(64) < count, 255, 0))


def test_dwords_are_transposed_inside_groups_of_four():
    rows = RNG.integers(0, 2**31, (4, 16), dtype=np.int32)

    def body(a, out):
        for i, row in enumerate(x86_avx512.transpose_dwords([T.bind(load(a, (j, 0), 16)) for j in range(4)])):
            store(out, 16 * i, row)

    expected = rows.reshape(4, 4, 4).transpose(2, 1, 0)
    np.testing.assert_array_equal(run("cascadelake", body, rows, out="int32").reshape(4, 4, 4), expected)
