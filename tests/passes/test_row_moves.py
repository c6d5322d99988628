"""A chain of moves, run on rows, gives the rows that the index names."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax import op

from tvmq import reference
from tvmq.passes.rebuild import bindings, rebuild
from tvmq.passes.row_moves import row_move

STEPS = st.lists(st.sampled_from(["merge", "split", "permute", "take", "roll", "cut"]), max_size=6)
CHANNELS = 3


def step_of(kind, x, random, emit):
    """Return x after one random move of its rows."""
    shape = [int(d) for d in x.ty.shape]
    axis = random.randrange(len(shape) - 1)
    size = shape[axis]
    if kind == "permute":
        order = random.sample(range(len(shape) - 1), len(shape) - 1)
        return emit(op.permute_dims(x, [*order, len(shape) - 1]))
    if kind == "take":
        index = relax.const([random.randrange(size) for _ in range(size)], "int64")
        return emit(op.take(x, index, axis=axis))
    if kind == "roll" and size > 1:
        at = random.randrange(1, size)
        ends = ((at, size), (0, at))
        parts = [emit(op.strided_slice(x, axes=[axis], begin=[b], end=[e])) for b, e in ends]
        return emit(op.concat(parts, axis=axis))
    if kind == "cut" and size > 1:
        return emit(op.strided_slice(x, axes=[axis], begin=[1], end=[size]))
    if kind == "split" and size % 2 == 0:
        return emit(op.reshape(x, (*shape[:axis], 2, size // 2, *shape[axis + 1 :])))
    if kind == "merge":
        return emit(op.reshape(x, (math.prod(shape[:-1]), shape[-1])))
    return x


@settings(deadline=None, max_examples=60)
@given(STEPS, st.randoms(use_true_random=False))
def test_the_index_names_the_rows_that_the_moves_give(steps, random):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 6, 4, CHANNELS), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for kind in steps:
                y = step_of(kind, y, random, builder.emit)
            out = builder.emit_output(op.abs(y))
        builder.emit_func_output(out)
    mod = builder.get()
    values = torch.arange(float(2 * 6 * 4 * CHANNELS)).reshape(2, 6, 4, CHANNELS)
    (expected,) = reference.run(mod, [values])
    move = moved_in(mod)
    assert move.source.name == "x"
    rows = values.reshape(-1, CHANNELS)[torch.from_numpy(move.index).long()]
    np.testing.assert_array_equal(rows, expected.reshape(-1, CHANNELS))
    assert move.moves == (move.index.tolist() != list(range(48)))
    assert move.is_permutation == (sorted(move.index.tolist()) == list(range(48)))


def moved_in(mod, width=None):
    """Return the rows that the last binding's operand is made of."""
    found = []
    last = bindings(mod["main"])[-1].var

    def look(graph, var, value):
        if var.same_as(last):
            found.append(row_move(graph, value.args[0], width))

    rebuild(mod, look)
    return found[0]


def moved(make, width=None):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 6, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(op.abs(make(x, builder.emit)))
        builder.emit_func_output(out)
    return moved_in(builder.get(), width)


def test_channels_that_move_are_no_rows():
    assert moved(lambda x, emit: emit(op.permute_dims(x, [0, 2, 1]))) is None
    assert moved(lambda x, emit: emit(op.reshape(x, (2, 8, 3)))) is not None  # elements in order
    assert moved(lambda x, emit: emit(op.take(x, relax.const([1, 0, 2, 3], "int64"), axis=2))) is None


def test_heads_are_parts_of_a_row_of_the_given_width():
    split = moved(lambda x, emit: emit(op.reshape(x, (2, 6, 2, 2))), width=4)
    assert split is not None
    assert not split.moves
    assert (
        moved(lambda x, emit: emit(op.permute_dims(emit(op.reshape(x, (2, 6, 2, 2))), [0, 2, 1, 3])), 4)
        is None
    )


def test_values_of_two_sources_have_no_one_source():
    assert moved(lambda x, emit: emit(op.concat([x, emit(op.exp(x))], axis=0))) is None
