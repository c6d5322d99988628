"""Views act on stored integers: free where only the layout changes, else the very op; no value changes."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests.passes.qdq_graphs import ACTIVATED, NORMED, TRUNK, QdqBuilder, float_input, random_input
from tvmq import reference
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings, dtype_of, op_name

VIEWS = {
    "reshape": lambda x: op.reshape(x, (2, 6, 2, 4)),
    "permute_dims": lambda x: op.permute_dims(x, [0, 2, 1]),
    "permute_dims of rows": lambda x: op.permute_dims(x, [1, 0, 2]),
    "permute_dims without axes": op.permute_dims,
    "expand_dims": lambda x: op.expand_dims(x, 1),
    "strided_slice": lambda x: op.strided_slice(x, axes=[1], begin=[1], end=[5]),
    "take": lambda x: op.take(x, relax.const(0, "int64"), axis=1),
    "pad": lambda x: op.nn.pad(x, [0, 0, 1, 2, 0, 3]),
    "concat": lambda x: op.concat([x, x], axis=1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_stored_integers_stays_in_integers(name):
    make, x = QdqBuilder(), float_input(2, 6, 8)
    viewed = make.bind("view", VIEWS[name](make.stored("x", x, NORMED)))
    qdq = make.module([x], viewed)
    lowered = LowerInteger()(qdq)
    ops = [(op_name(b.value), dtype_of(b.var)) for b in bindings(lowered["main"])]
    assert {kind for kind, dtype in ops if dtype == "float32"} == {"dequantize", ""}  # "": the output
    assert ops[-2][0] == "dequantize"
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, lowered)]
    np.testing.assert_array_equal(*values)


def test_a_view_that_keeps_the_storage_costs_nothing_between_two_sites():
    make, x = QdqBuilder(), float_input(1, 6, 8)
    first = make.stored("first", make.product("first", make.stored("x", x, NORMED), 8), ACTIVATED)
    heads = make.bind("heads", op.reshape(first, (1, 6, 2, 4)))
    joined = make.bind("joined", op.reshape(heads, (6, 8)))
    lowered = LowerInteger()(make.module([x], make.product("second", joined, 8)))
    calls = [b.value for b in bindings(lowered["main"]) if isinstance(b.value, relax.Call)]
    first_call, second_call = (c for c in calls if not op_name(c))
    outputs = {b.value: b.var for b in bindings(lowered["main"])}
    assert second_call.args[0].same_as(outputs[first_call])


def rows_of(make, emit_to, index):
    """Return rows of a stored value, of 16 rows in all, that index names."""
    return make.bind("rows", op.take(emit_to, relax.const(index.astype(np.int32)), axis=0, mode="fast"))


def lowered_moves(make, x, result):
    """Return (ops, results equal) of the lowered module that returns result."""
    qdq = make.module([x], result)
    lowered = LowerInteger()(qdq)
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, lowered)]
    np.testing.assert_array_equal(*values)
    return [op_name(b.value) for b in bindings(lowered["main"])]


def test_a_permutation_of_rows_and_its_inverse_move_nothing():
    make, x, index = QdqBuilder(), float_input(12, 8), np.random.default_rng(0).permutation(12)
    there = rows_of(make, make.stored("x", x, NORMED), index.reshape(3, 4))
    flat = make.bind("flat", op.reshape(there, (12, 8)))
    ops = lowered_moves(make, x, rows_of(make, flat, np.argsort(index)))
    assert "take" not in ops


def test_a_permutation_of_rows_is_carried_out_where_somebody_wants_the_rows():
    make, x, index = QdqBuilder(), float_input(12, 8), np.random.default_rng(0).permutation(12)
    taken = rows_of(make, make.stored("x", x, NORMED), index.reshape(3, 4))
    product = make.bind("site", op.matmul(taken, make.weight((8, 8), 1)))
    assert "take" in lowered_moves(make, x, product)


def test_rows_that_repeat_are_taken_at_once():
    make, x = QdqBuilder(), float_input(12, 8)
    repeated = rows_of(make, make.stored("x", x, NORMED), np.arange(12) // 2)
    assert "take" in lowered_moves(make, x, repeated)


def test_a_norm_reads_the_pieces_of_its_rows_where_they_lie():
    make, x, index = QdqBuilder(), float_input(12, 8), np.random.default_rng(0).permutation(12)
    pieces = rows_of(make, make.stored("x", x, TRUNK), index.reshape(3, 4))
    joined = make.bind("joined", op.reshape(pieces, (3, 32)))
    normed = make.stored("norm", make.layer_norm("norm", joined, 0.3), NORMED)
    assert "take" not in lowered_moves(make, x, normed)


PIECES = np.random.default_rng(0).permutation(12)
JOINED = np.array([2, 0, 1])  # of rows that are four stored rows each
UNDONE = (np.argsort(JOINED)[:, None] * 4 + np.arange(4)).ravel()


@pytest.mark.parametrize("pieces", [PIECES, UNDONE], ids=["moves", "undone"])
@pytest.mark.parametrize("reader", ["output", "product", "norm", "pieces"])
def test_joined_rows_are_permuted_as_wholes(pieces, reader):
    make, x = QdqBuilder(), float_input(12, 8)
    taken = rows_of(make, make.stored("x", x, TRUNK), pieces)
    joined = rows_of(make, make.bind("joined", op.reshape(taken, (3, 32))), JOINED)
    if reader == "product":
        joined = make.bind("site", op.matmul(joined, make.weight((32, 8), 1)))
    elif reader == "norm":
        joined = make.stored("norm", make.layer_norm("norm", joined, 0.3), NORMED)
    elif reader == "pieces":
        joined = rows_of(make, make.bind("apart", op.reshape(joined, (12, 8))), PIECES)
    lowered_moves(make, x, joined)


@pytest.mark.parametrize("how", [{"pad_value": 1.0}, {"pad_mode": "reflect"}])
def test_padding_with_anything_but_zeros_stays_float(how):
    make, x = QdqBuilder(), float_input(2, 6, 8)
    padded = make.bind("padded", op.nn.pad(make.stored("x", x, NORMED), [0, 0, 1, 1, 0, 0], **how))
    lowered = LowerInteger()(make.module([x], padded))
    assert [dtype_of(b.var) for b in bindings(lowered["main"]) if op_name(b.value) == "nn.pad"] == ["float32"]


def test_parts_of_different_scales_are_joined_as_floats():
    make, x = QdqBuilder(), float_input(2, 8)
    parts = [make.stored("a", x, NORMED), make.stored("b", x, ACTIVATED)]
    qdq = make.module([x], op.concat(parts, axis=0))
    lowered = LowerInteger()(qdq)
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, lowered)]
    np.testing.assert_array_equal(*values)
    assert [dtype_of(b.var) for b in bindings(lowered["main"]) if op_name(b.value) == "concat"] == ["float32"]
