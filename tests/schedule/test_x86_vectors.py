"""The vector operations of the attention kernels, on every instruction set."""

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tests.schedule.isa_cases import ISA, NAMES, target_of
from tvmq.schedule import x86_vectors
from tvmq.schedule.vectors import load, splat, store

RNG = np.random.default_rng(0)

pytestmark = pytest.mark.parametrize("isa", NAMES)


def run(isa: str, body, *arrays: np.ndarray, out: str) -> np.ndarray:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            buffers = [T.arg(f"a{i}", T.buffer(a.shape, str(a.dtype))) for i, a in enumerate(arrays)]
            body(ISA[isa], *buffers, T.arg("out", T.buffer((64,), out)))
        func = builder.get().with_attr("global_symbol", "main")
    result = tvm.runtime.tensor(np.zeros(64, out))
    compiled = tvm.compile(func, target_of(ISA[isa]))
    compiled(*(tvm.runtime.tensor(a) for a in arrays), result)
    return result.numpy()


def test_packed_numbers_are_saturated_in_order(isa):
    numbers = RNG.integers(0, 2**31, 64, dtype=np.int32)
    numbers[::2] = RNG.integers(0, 300, 32)

    def body(isa, a, out):
        store(out, 0, x86_vectors.clipped_bytes(isa, [T.bind(load(a, 16 * m, 16)) for m in range(4)]))

    np.testing.assert_array_equal(run(isa, body, numbers, out="uint8"), np.minimum(numbers, 255))


def test_dots_of_a_repeated_word(isa):
    depth = x86_vectors.depth(ISA[isa])
    first = RNG.integers(0, 256, (2, 2 * depth)).astype(x86_vectors.left(ISA[isa]))
    second = RNG.integers(-128, 128, 16 * depth).astype(x86_vectors.right(ISA[isa]))

    def body(isa, a, b, out):
        word = x86_vectors.broadcast_word(isa, a, 1, 1)
        store(out, 0, x86_vectors.dot(isa, splat(5, "int32x16"), word, load(b, 0, 16 * depth)))
        store(out, 16, x86_vectors.dot(isa, splat(0, "int32x16"), word, x86_vectors.ones(isa)))

    found = run(isa, body, first, second, out="int32")
    np.testing.assert_array_equal(found[:16], second.reshape(16, depth).astype(int) @ first[1, depth:] + 5)
    np.testing.assert_array_equal(found[16:32], [first[1, depth:].sum()] * 16)


def test_pieces_are_four_words_of_a_row(isa):
    row = RNG.integers(-128, 128, 16).astype("int8")

    def body(isa, a, out):
        for number, piece in enumerate(x86_vectors.pieces(isa, load(a, 0, 16))):
            store(
                out, number * 4 * x86_vectors.depth(isa), T.cast(piece, f"int32x{4 * x86_vectors.depth(isa)}")
            )

    np.testing.assert_array_equal(run(isa, body, row, out="int32")[:16], row)


@pytest.mark.parametrize("count", [1, 37, 64])
def test_valid_bytes_are_the_first(isa, count):
    def body(_isa, out):
        store(out, 0, T.reinterpret("uint8x64", x86_vectors.valid_bytes(count)))

    found = run(isa, body, out="uint8")
    np.testing.assert_array_equal(found, np.where(np.arange(64) < count, 255, 0))


def test_dwords_are_transposed_inside_groups_of_four(isa):
    rows = RNG.integers(0, 2**31, (4, 16), dtype=np.int32)

    def body(_isa, a, out):
        loads = [T.bind(load(a, (j, 0), 16)) for j in range(4)]
        for i, row in enumerate(x86_vectors.transpose_dwords(loads)):
            store(out, 16 * i, row)

    expected = rows.reshape(4, 4, 4).transpose(2, 1, 0)
    np.testing.assert_array_equal(run(isa, body, rows, out="int32").reshape(4, 4, 4), expected)
