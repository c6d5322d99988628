"""Move what rearranges rows past linears, to where attention reads and writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmq.passes.affine import Affine, affine_of
from tvmq.passes.balance_groups import ATTENTIONS
from tvmq.passes.constants import constant
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild, shape_of
from tvmq.passes.row_moves import MOVES, RowMove, row_move, take_rows


@tvm.ir.transform.module_pass(opt_level=0, name="MoveRowsToAttention")
class MoveRowsToAttention:
    """Let the linears around a windowed attention run on rows where they lie, and attention alone move them.

    Before: w = reshape(permute_dims(reshape(x[1, 56, 56, 96])), [64, 49, 96])       64 windows of 49 tokens
            q = add(matmul(w, Q), b), likewise k and v; a = attention(reshape(q), reshape(k), reshape(v))
            y = add(matmul(reshape(a), W), c); z = reshape(permute_dims(reshape(y)), [1, 56, 56, 96])
    After:  q = add(matmul(x, Q), b), likewise k and v; w = take(reshape(q, [3136, 96]), rows[64, 49], axis=0)
            a = attention(reshape(w), ...)
            z = add(matmul(take(reshape(a, [3136, 96]), inverse[1, 56, 56], axis=0), W), c)

    A linear computes each row by itself, so the order does not matter to it; one take stands for any chain of
    reshapes, permutations, takes and joined slices (a cyclic shift), and attention can read through it
    without moving anything. Moves that repeat or drop rows stay.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, take_into_attention, take_out_of_attention)


def take_into_attention(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """attention(reshape(linear(moved x))) -> attention(reshape(take(linear(x)))), for q, k and v alike."""
    if op_name(value) not in ATTENTIONS:
        return None
    found = [_moved_before_linear(graph, operand) for operand in value.args[:3]]
    moves = [each for each in found if each is not None]
    if len(moves) < 3 or any(not np.array_equal(m.index, moves[0][2].index) for _, _, m in moves):
        return None
    shape = shape_of(value.args[0]) or ()
    index = constant(moves[0][2].index.reshape(shape[:2]))
    operands = []
    for operand, (linear, bias, move) in zip(value.args[:3], moves, strict=True):
        y = _linear(graph, linear, bias, move.source)
        rows = take_rows(graph, y, linear.channels, index)
        operands.append(graph.emit(relax.op.reshape(rows, shape_of(operand))))
    return relax.Call(value.op, [*operands, *value.args[3:]], value.attrs, value.ty_args)


def take_out_of_attention(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """moved(linear(reshape(attention))) -> linear(take(reshape(attention))); one reshape where rows stay."""
    after = row_move(graph, value) if op_name(value) in MOVES else None
    linear = None if after is None else _linear_behind(graph, after)
    if after is None or linear is None:
        return None
    before = row_move(graph, linear.call.args[0], _inputs(linear))
    if before is None or op_name(graph.value(before.source)) not in ATTENTIONS:
        return None
    move = before.then(after.index)
    if not move.is_permutation:
        return None
    shape = (shape_of(value) or ())[:-1]
    if move.moves:
        rows = take_rows(graph, before.source, _inputs(linear), constant(move.index.reshape(shape)))
    else:
        rows = graph.emit(relax.op.reshape(before.source, (*shape, _inputs(linear))))
    return _linear(graph, linear, after.source, rows)


def _moved_before_linear(graph: Rebuild, operand: Expr) -> tuple[Affine, Expr, RowMove] | None:
    """Return the linear that makes an operand of attention, its output, and the rows it should read where."""
    shape = shape_of(operand)
    after = None if shape is None else row_move(graph, operand)
    linear = None if after is None else _linear_behind(graph, after)
    if after is None or linear is None:
        return None
    before = row_move(graph, linear.call.args[0])
    if before is None or not before.moves or (shape_of(before.source) or ())[-1:] != (_inputs(linear),):
        return None
    move = before.then(after.index)
    return (linear, after.source, move) if move.is_permutation else None


def _linear(graph: Rebuild, linear: Affine, output: Expr, x: Expr) -> Expr:
    """Emit the linear on other rows; the product and its bias keep their names."""
    call = relax.Call(linear.call.op, [x, linear.call.args[1]], linear.call.attrs, linear.call.ty_args)
    product = graph.emit(call, linear.var.name)
    return product if linear.bias is None else graph.emit(linear.add_bias(product, linear.bias), output.name)


def _linear_behind(graph: Rebuild, move: RowMove) -> Affine | None:
    """Return the linear whose output is moved, if nothing else reads it."""
    linear = affine_of(graph, move.source, shared=True)
    if linear is None or op_name(linear.call) != "matmul" or not move.alone:
        return None
    return linear if linear.var.same_as(move.source) or graph.uses(linear.var) == 1 else None


def _inputs(linear: Affine) -> int:
    return int(linear.call.args[1].ty.shape[0])
