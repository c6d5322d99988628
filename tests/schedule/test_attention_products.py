"""A tile of sums takes the products of one word, or of as many as a register of ARM holds."""

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tests.schedule.isa_cases import ISA, NAMES, built
from tvmq.schedule.attention_products import WORDS, add_products
from tvmq.schedule.attention_vectors import depth, key_type, query_type


@pytest.mark.parametrize("name", NAMES)
def test_products_go_to_the_sums_of_their_row_and_vector(name):
    isa = ISA[name]
    rows, vectors, words, size = 3, 2, WORDS if ISA[name].neon else 1, depth(ISA[name])
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        lefts = T.arg("lefts", T.buffer((rows, 2 * words * size), query_type(isa)))
        rights = T.arg("rights", T.buffer((vectors, words, 16 * size), key_type(isa)))
        sums = T.arg("sums", T.buffer((rows, vectors, 16), "int32"))
        with T.sblock("root"):
            T.reads(lefts[0:rows, 0 : 2 * words * size], rights[0:vectors, 0:words, 0 : 16 * size])
            T.writes(sums[0:rows, 0:vectors, 0:16])
            accs = {
                (i, j): T.sblock_alloc_buffer((16,), "int32") for i in range(rows) for j in range(vectors)
            }
            ramp = T.ramp(0, 1, 16)
            for (i, j), acc in accs.items():
                T.buffer_store(acc, sums[i, j, ramp], [ramp])
            places = [[(j, word) for j in range(vectors)] for word in range(words)]
            tile = [(i, j, acc) for (i, j), acc in accs.items()]
            add_products(isa, tile, lefts, words, rights, places)
            for (i, j), acc in accs.items():
                T.buffer_store(sums, acc[ramp], [i, j, ramp])
    rng = np.random.default_rng(0)
    a = rng.integers(0, 128, (rows, 2 * words * size)).astype(query_type(isa))
    b = rng.integers(-128, 128, (vectors, words, 16 * size)).astype(key_type(isa))
    start = rng.integers(-100, 100, (rows, vectors, 16)).astype(np.int32)
    found = tvm.runtime.tensor(start)
    built(builder.get(), name)(tvm.runtime.tensor(a), tvm.runtime.tensor(b), found)
    seen = a[:, words * size :].reshape(rows, words, size).astype(int)
    expected = start + np.einsum("iwd,jwnd->ijn", seen, b.reshape(vectors, words, 16, size).astype(int))
    np.testing.assert_array_equal(found.numpy(), expected)
