"""Write what gathers rows for a layer norm as one take."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmq.passes.constants import constant
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild, shape_of
from tvmq.passes.row_moves import row_move, take_rows


@tvm.ir.transform.module_pass(opt_level=0, name="TakeRowsIntoNorm")
class TakeRowsIntoNorm:
    """Let a layer norm over several rows side by side (Swin's patch merging) read them through one index.

    Before: lv = permute_dims(reshape(x[1, 56, 56, 96], [1, 28, 2, 28, 2, 96]), [0, 1, 3, 4, 2, 5])
            y = layer_norm(reshape(lv, [1, 28, 28, 384]))
    After:  lv = take(reshape(x, [3136, 96]), rows[1, 28, 28, 4], axis=0)
            y = layer_norm(reshape(lv, [1, 28, 28, 384]))
    The order of rows and channels stays; so does anything that repeats or drops rows.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, take_into_norm)


def take_into_norm(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """layer_norm(moved x) -> layer_norm(reshape(take(x)))."""
    if op_name(value) != "nn.layer_norm" or _takes_already(graph, value.args[0]):
        return None
    move, shape = row_move(graph, value.args[0]), shape_of(value)
    if move is None or shape is None or not move.moves or not move.is_permutation:
        return None
    width = (shape_of(move.source) or (1,))[-1]
    if shape[-1] % width:
        return None
    index = constant(move.index.reshape((*shape[:-1], shape[-1] // width)))
    rows = graph.emit(relax.op.reshape(take_rows(graph, move.source, width, index), shape))
    return relax.Call(value.op, [rows, *value.args[1:]], value.attrs, value.ty_args)


def _takes_already(graph: Rebuild, x: Expr) -> bool:
    joined = graph.call(x, "reshape")
    return graph.call(joined.args[0] if joined is not None else x, "take") is not None
