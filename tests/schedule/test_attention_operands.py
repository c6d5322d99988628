"""Operands of attention as the dots want them, on every instruction set."""

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tests.schedule.isa_cases import ISA, NAMES, built
from tvmq.schedule import attention_operands as operands
from tvmq.schedule import attention_vectors
from tvmq.schedule.attention_spec import pair_order

RNG = np.random.default_rng(0)
KEYS, DIM, COLUMN = 21, 32, 16

pytestmark = pytest.mark.parametrize("isa", NAMES)


def run(isa, body, source, *outs):
    """Call body(source, outs...), in a block as a kernel is; return what it wrote."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            buffers = [T.arg("source", T.buffer(source.shape, str(source.dtype)))]
            buffers += [T.arg(f"out{i}", T.buffer(o.shape, str(o.dtype))) for i, o in enumerate(outs)]
            with T.serial(1) as once, T.sblock("block"):
                T.axis.spatial(1, once)
                T.reads(whole(buffers[0]))
                T.writes(*map(whole, buffers[1:]))
                body(*buffers)
        func = builder.get().with_attr("global_symbol", "main")
    results = [tvm.runtime.tensor(o) for o in outs]
    built(func, isa)(tvm.runtime.tensor(source), *results)
    return [r.numpy() for r in results]


def whole(buffer):
    return buffer[tuple(slice(0, n) for n in buffer.shape)]


def row_of(key):
    return T.min(key, KEYS - 1)


def test_keys_are_words_of_sixteen_and_padded_by_the_last(isa):
    k = RNG.integers(-128, 128, (KEYS, 64)).astype(np.int8)
    depth = attention_vectors.depth(ISA[isa])
    packed = np.zeros((2, DIM // depth, 16 * depth), attention_vectors.key_type(ISA[isa]))

    def body(k, packed, start):
        operands.pack_keys(ISA[isa], k, row_of, COLUMN, packed, start, 5)

    found, start = run(isa, body, k, packed, np.zeros(32, np.int32))
    padded = k[np.minimum(np.arange(32), KEYS - 1), COLUMN : COLUMN + DIM]
    expected = padded.reshape(2, 16, DIM // depth, depth).swapaxes(1, 2)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    offset = 128 * padded.sum(1, dtype=np.int32) if ISA[isa].vnni else 0
    np.testing.assert_array_equal(start, np.broadcast_to(5 - offset, 32))


def test_values_are_words_of_keys(isa):
    v = RNG.integers(-128, 128, (KEYS, 64)).astype(np.int8)
    depth = attention_vectors.depth(ISA[isa])
    words = -(-KEYS // depth)
    packed = np.zeros((words, DIM // 16, 16 * depth), attention_vectors.value_type(ISA[isa]))

    def body(v, packed):
        operands.pack_values(ISA[isa], v, row_of, COLUMN, packed)

    (found,) = run(isa, body, v, packed)
    padded = v[np.minimum(np.arange(words * depth), KEYS - 1), COLUMN : COLUMN + DIM]
    expected = padded.reshape(words, depth, DIM // 16, 16).transpose(0, 2, 3, 1)
    if ISA[isa].neon:
        expected = expected.astype(int) + 128
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("dim", [16, 32, 80])
def test_queries_are_made_unsigned_or_wide(isa, dim):
    q = RNG.integers(-128, 128, (KEYS, 96)).astype(np.int8)
    out = np.zeros((3, dim), attention_vectors.query_type(ISA[isa]))
    (found,) = run(isa, lambda q, o: operands.load_queries(ISA[isa], q, [7, 0, 7], 16, o), q, out)
    wide = q[[7, 0, 7], 16 : 16 + dim].astype(int)
    np.testing.assert_array_equal(found, wide + 128 if ISA[isa].vnni else wide)


@pytest.mark.parametrize("keys", [5, 16, 40, 64])
def test_hidden_keys_limit_scores_to_the_least(isa, keys):
    mask = RNG.integers(0, 2, (2, 3, keys)).astype(np.uint8)
    padded = -(-keys // 32) * 32
    scratch, limit = np.zeros(padded, np.int32), np.zeros((2, padded), np.int16)

    def body(mask, scratch, limit):
        operands.limit_scores(ISA[isa], mask, (1, 2), scratch, limit, 1)

    natural = np.zeros(padded)
    natural[:keys] = mask[1, 2]
    expected = np.where(natural == 0, -(2**15), 2**15 - 1)[pair_order(padded)]
    np.testing.assert_array_equal(run(isa, body, mask, scratch, limit)[1][1], expected)
