"""Split a fused q/k/v linear into three."""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax

from tvmq.passes.affine import Affine, affine_of
from tvmq.passes.constants import constant
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild, shape_of
from tvmq.passes.views import Atom, Layout, narrowing, replay, trace

PARTS = ("q", "k", "v")


@tvm.ir.transform.module_pass(opt_level=0, name="SplitFusedLinear")
class SplitFusedLinear:
    """Give each third of a linear's channels its own linear, called `<path>.q`, `.k` and `.v`.

    Before: qkv = matmul(x, W[K, 3 * C]); lv = reshape(qkv, [1, T, 3, H, D])
            lv1 = permute_dims(lv, [2, 0, 3, 1, 4]); lv2 = strided_slice(lv1, 0, 0, 1); ...
    After:  qkv.q = matmul(x, W[:, :C]); lv2 = reshape and permute_dims of qkv.q; ...
    Only where the three slices are all that reads the linear, whichever axis they slice.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, split_fused_linear)


def split_fused_linear(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """Return one third of a fused linear in the shape of the slice that asked for it."""
    piece = narrowing(graph, value)
    if piece is None:
        return None
    source, axis, begin, size = piece
    root, views = trace(graph, source)
    affine = affine_of(graph, root, shared=True)
    shape = shape_of(value)
    if affine is None or shape is None or op_name(affine.call) != "matmul" or affine.channels % 3:
        return None
    if not _only_read_by_three(graph, value, root, source):
        return None
    layout = replay(Layout.of(shape_of(root) or ()), views)
    layout = None if layout is None else layout.narrow(axis, begin, size)
    layout = None if layout is None else layout.reshape(shape)
    part = None if layout is None else _third(layout, affine.channels)
    if layout is None or part is None:
        return None
    return _arranged(graph, _part_of(graph, affine, part), layout, affine.channels)


def _only_read_by_three(graph: Rebuild, value: Expr, root: Var, source: Var) -> bool:
    """Every variable from the linear to the slices has one reader, the last one three."""
    chain = [source]
    while not chain[-1].same_as(root):
        chain.append(graph.value(chain[-1]).args[0])
    bias_add = graph.call(root, "add")
    if bias_add is not None:
        chain.append(bias_add.args[0])
    if isinstance(value, relax.TupleGetItem):
        chain.insert(0, value.tuple_value)
    return [graph.uses(v) for v in chain] == [3] + [1] * (len(chain) - 1)


def _third(layout: Layout, channels: int) -> int | None:
    """Return which third of the channels the view holds, over all rows; None if it is anything else."""
    part, rest = divmod(layout.offset, channels // 3)
    inner = sorted(a for axis in layout.axes for a in axis if a[1] < channels)
    dense = 1
    for size, stride in sorted(inner, key=lambda a: a[1]):
        if stride != dense:
            return None
        dense *= size
    return part if rest == 0 and part < 3 and dense == channels // 3 else None


def _part_of(graph: Rebuild, affine: Affine, part: int) -> Expr:
    third = slice(part * affine.channels // 3, (part + 1) * affine.channels // 3)
    name = f"{affine.var.name}.{PARTS[part]}"
    weight = constant(affine.weight[:, third])
    var = graph.emit(relax.Call(affine.call.op, [affine.call.args[0], weight], affine.call.attrs), name)
    if affine.bias is None:
        return var
    return graph.emit(affine.add_bias(var, affine.bias[third]))


def _arranged(graph: Rebuild, source: Expr, layout: Layout, channels: int) -> Expr:
    """Emit source [..., channels // 3] in the arrangement that layout gives to a third of the channels."""
    axes = [[(s, t if t < channels else t // 3) for s, t in axis] or [(1, 0)] for axis in layout.axes]
    walked: list[Atom] = [atom for axis in axes for atom in axis]
    by_stride = sorted(range(len(walked)), key=lambda i: -walked[i][1])
    as_stored = [walked[i][0] for i in by_stride]
    order = [by_stride.index(i) for i in range(len(walked))]
    assert math.prod(as_stored) == math.prod(layout.shape)
    flat = graph.emit(relax.op.reshape(source, as_stored))
    return relax.op.reshape(graph.emit(relax.op.permute_dims(flat, order)), layout.shape)
