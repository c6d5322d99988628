"""Linear maps with constant weights (linear, conv2d, conv2d_transpose) and their bias, as one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvmq.passes.constants import Array, array_of, channel_vector, constant
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, shape_of

# Where the output channels lie in the weights: [K, N], OIHW, IOHW.
WEIGHT_CHANNEL_AXIS = {"matmul": 1, "nn.conv2d": 0, "nn.conv2d_transpose": 1}


@dataclass(frozen=True, slots=True)
class Affine:
    """y = call(x, weight) + bias with `call` one of WEIGHT_CHANNEL_AXIS; bias [channels] or None."""

    var: Var  # bound to the call
    call: Any
    bias: Array | None

    @property
    def weight(self) -> Array:
        """The weights, in the layout of the call."""
        array = array_of(self.call.args[1])
        assert array is not None
        return array

    @property
    def rank(self) -> int:
        """The rank of the output."""
        return len(self.call.ty.shape)

    @property
    def channel_axis(self) -> int:
        """The output's channel axis."""
        return self.rank - 1 if op_name(self.call) == "matmul" else 1

    @property
    def channels(self) -> int:
        """How many output channels there are."""
        return int(self.call.ty.shape[self.channel_axis])

    def vector(self, expr: Expr) -> Array | None:
        """Return a constant as one value per output channel, None if it is none."""
        return channel_vector(expr, self.channels, self.channel_axis, self.rank)

    def scale_and_shift(self, graph: Rebuild, scale: Array | None, shift: Array | None) -> Expr:
        """Emit the map whose output is scale * y + shift, [channels] each; the call keeps its name."""
        call, bias, name = self.call, self.bias, self.var.name
        if scale is not None:
            shape = [1] * self.weight.ndim
            shape[WEIGHT_CHANNEL_AXIS[op_name(call)]] = -1
            weight = constant((self.weight * scale.reshape(shape)).astype(self.weight.dtype))
            call = relax.Call(call.op, [call.args[0], weight], call.attrs, call.ty_args)
            bias = None if bias is None else (bias * scale).astype(bias.dtype)
        if shift is not None:
            bias = shift if bias is None else bias + shift
        var = self.var if scale is None else graph.emit(call, name)
        return var if bias is None else self.add_bias(var, bias)

    def add_bias(self, var: Var, bias: Array) -> Expr:
        """Return add(var, bias) in the canonical shape: [N] for linear, [1, C, 1, 1] for convolutions."""
        shape = (-1,) if op_name(self.call) == "matmul" else (1, -1, 1, 1)
        return relax.op.add(var, constant(np.ascontiguousarray(bias).reshape(shape)))


def affine_of(graph: Rebuild, expr: Expr, *, shared: bool = False) -> Affine | None:
    """Return the linear map that expr is the output of, with its bias if there is one.

    None if its value is also read elsewhere (unless shared), so that what one reader folds is not seen
    by the others.
    """
    bias_add = graph.call(expr, "add")
    var = bias_add.args[0] if bias_add is not None else expr
    call = graph.call(var, *WEIGHT_CHANNEL_AXIS)
    if call is None or not _has_plain_weight(call):
        return None
    if not shared and any(graph.uses(v) != 1 for v in {expr, var}):
        return None
    if bias_add is None:
        return Affine(var, call, None)
    bare = Affine(var, call, None)
    bias = bare.vector(bias_add.args[1])
    return None if bias is None else Affine(var, call, bias)


def _has_plain_weight(call: Any) -> bool:
    weight = array_of(call.args[1])
    if weight is None or weight.dtype.kind != "f" or shape_of(call) is None:
        return False
    name, attrs = op_name(call), call.attrs
    if name == "matmul":
        return weight.ndim == 2 and len(call.ty.shape) >= 2
    if str(attrs.data_layout) != "NCHW":
        return False
    if name == "nn.conv2d":
        return str(attrs.kernel_layout) == "OIHW"
    return str(attrs.kernel_layout) == "IOHW" and int(attrs.groups) == 1
