"""The vector operations of the attention kernels, on every instruction set."""

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tests.schedule.isa_cases import ISA, NAMES, built
from tvmq.schedule import attention_vectors
from tvmq.schedule.attention_spec import pair_order
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
    compiled = built(func, isa)
    compiled(*(tvm.runtime.tensor(a) for a in arrays), result)
    return result.numpy()


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("vectors", [1, 3, 4])
def test_packed_numbers_are_saturated_and_come_back_in_order(isa, vectors, dtype):
    numbers = RNG.integers(-(2**31), 2**31, 64, dtype=np.int32)
    numbers[::2] = RNG.integers(-300, 300, 32)

    def body(isa, a, out):
        given = [T.bind(load(a, 16 * m, 16)) for m in range(4)]
        words = [T.bind(attention_vectors.packed_words(isa, *given[m : m + 2])) for m in (0, 2)]
        packed = T.bind(attention_vectors.packed_bytes(isa, *words, dtype))
        natural = attention_vectors.natural_order(packed, vectors)
        store(out, 0, T.reinterpret(f"{dtype}x{16 * vectors}", natural))

    found = run(isa, body, numbers, out=dtype)[: 16 * vectors]
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    np.testing.assert_array_equal(found, np.clip(numbers[: 16 * vectors], low, high))


def test_packed_words_are_in_pair_order_and_their_sums_saturate(isa):
    numbers = RNG.integers(-(2**17), 2**17, 32, dtype=np.int32)

    def body(isa, a, out):
        words = T.bind(attention_vectors.packed_words(isa, load(a, 0, 16), load(a, 16, 16)))
        store(out, 0, attention_vectors.saturating("add", words, splat(9999, "int16x32")))
        store(out, 32, attention_vectors.saturating("sub", words, splat(9999, "int16x32")))

    words = np.clip(numbers, -(2**15), 2**15 - 1)[pair_order(32)].astype(int)
    expected = np.clip([words + 9999, words - 9999], -(2**15), 2**15 - 1).ravel()
    np.testing.assert_array_equal(run(isa, body, numbers, out="int16"), expected)


def test_four_rows_are_reduced_together(isa):
    rows = RNG.integers(-(2**20), 2**20, (4, 16), dtype=np.int32)

    def body(_isa, a, out):
        given = [T.bind(load(a, (row, 0), 16)) for row in range(4)]
        store(out, 0, attention_vectors.reduce_rows(given, lambda x, y: x + y))
        store(out, 4, attention_vectors.reduce_rows(given, T.max))

    found = run(isa, body, rows, out="int32")[:8]
    np.testing.assert_array_equal(found, np.concatenate([rows.sum(1), rows.max(1)]))


def test_dots_of_a_repeated_word(isa):
    depth = attention_vectors.depth(ISA[isa])
    first = RNG.integers(0, 256, (2, 2 * depth)).astype(attention_vectors.weight_type(ISA[isa]))
    second = RNG.integers(-128, 128, 16 * depth).astype(attention_vectors.value_type(ISA[isa]))

    def body(isa, a, b, out):
        word = attention_vectors.broadcast_word(isa, a, 1, 1)
        store(out, 0, attention_vectors.dot(isa, splat(5, "int32x16"), word, load(b, 0, 16 * depth)))
        store(out, 16, attention_vectors.dot(isa, splat(0, "int32x16"), word, attention_vectors.ones(isa)))

    found = run(isa, body, first, second, out="int32")
    np.testing.assert_array_equal(found[:16], second.reshape(16, depth).astype(int) @ first[1, depth:] + 5)
    np.testing.assert_array_equal(found[16:32], [first[1, depth:].sum()] * 16)


def test_pieces_are_four_words_of_a_row(isa):
    row = RNG.integers(-128, 128, 16).astype("int8")

    def body(isa, a, out):
        for number, piece in enumerate(attention_vectors.pieces(isa, load(a, 0, 16))):
            store(
                out,
                number * 4 * attention_vectors.depth(isa),
                T.cast(piece, f"int32x{4 * attention_vectors.depth(isa)}"),
            )

    np.testing.assert_array_equal(run(isa, body, row, out="int32")[:16], row)


@pytest.mark.parametrize("count", [1, 37, 64])
def test_valid_bytes_are_where_the_first_numbers_are_packed(isa, count):
    def body(_isa, out):
        store(out, 0, attention_vectors.natural_order(attention_vectors.valid_bytes(count), 4))

    found = run(isa, body, out="int32")[:16].view(np.uint8)
    np.testing.assert_array_equal(found, np.where(np.arange(64) < count, 255, 0))


def test_dwords_are_transposed_inside_groups_of_four(isa):
    rows = RNG.integers(0, 2**31, (4, 16), dtype=np.int32)

    def body(_isa, a, out):
        loads = [T.bind(load(a, (j, 0), 16)) for j in range(4)]
        for i, row in enumerate(attention_vectors.transpose_dwords(loads)):
            store(out, 16 * i, row)

    expected = rows.reshape(4, 4, 4).transpose(2, 1, 0)
    np.testing.assert_array_equal(run(isa, body, rows, out="int32").reshape(4, 4, 4), expected)
