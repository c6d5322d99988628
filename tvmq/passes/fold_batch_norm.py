"""Fold batch norm into the convolution or linear before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmq.passes.affine import affine_of
from tvmq.passes.constants import array_of
from tvmq.passes.fold_scale_and_shift import scale_and_shift
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild


@tvm.ir.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Fold inference batch norm into conv2d, conv2d_transpose or linear, else make it multiply and add.

    Before: lv = conv2d(x, W); lv1 = batch_norm(lv, gamma, beta, mean, var); lv2 = lv1[0]
    After:  lv = conv2d(x, W * s); lv2 = add(lv, beta - mean * s), s = gamma / sqrt(var + epsilon)
    The statistics must be constants and unused; a batch norm in training mode is left alone.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, fold_batch_norm)


def fold_batch_norm(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """Return the folded output for item 0 of a batch norm's result."""
    if not isinstance(value, relax.TupleGetItem) or value.index != 0:
        return None
    norm = graph.value(value.tuple_value)
    if op_name(norm) != "nn.batch_norm" or bool(norm.attrs.training):
        return None
    parameters = [array_of(a) for a in norm.args[1:]]
    if any(p is None for p in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    scale = (gamma if norm.attrs.scale else 1.0) / np.sqrt(variance + float(norm.attrs.epsilon))
    shift = (beta if norm.attrs.center else 0.0) - mean * scale
    x, axis = norm.args[0], int(norm.attrs.axis) % len(norm.args[0].ty.shape)
    affine = affine_of(graph, x)
    if affine is not None and affine.channel_axis == axis:
        exact_bias = None if affine.bias is None else affine.bias.astype(np.float64) * scale
        total = shift if exact_bias is None else exact_bias + shift
        bare = type(affine)(affine.var, affine.call, None)
        return bare.scale_and_shift(graph, scale, total.astype(np.float32))
    return scale_and_shift(x, scale.astype(np.float32), shift.astype(np.float32), axis, graph)
