"""The torch form of each Relax operator: `OPERATORS[name](args, attrs, call) -> tensor`.

args are evaluated (tensors, tuples, shapes as tuples of ints, numbers); attrs are the call's attributes.
A result whose dtype differs from the call's type is cast by the caller. NotImplementedError names a form of
the operator that has none here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from tvmq.reference_layers import LAYERS, Operator, Tensor


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype for a TVM dtype string."""
    return torch.bool if name == "bool" else getattr(torch, name)


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda args, attrs, call: function(args[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda args, attrs, call: function(args[0], args[1])


def _axes(attrs: Any) -> tuple[int, ...] | None:
    return None if attrs.axis is None else tuple(int(a) for a in attrs.axis)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def apply(args: list[Any], attrs: Any, call: Any) -> Tensor:
        axes = _axes(attrs)
        axes = tuple(range(args[0].dim())) if axes is None else axes
        return function(args[0], dim=axes, keepdim=bool(attrs.keepdims))

    return apply


def _sum(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.sum(dim=dim, keepdim=keepdim)


def _variance(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.var(dim=dim, keepdim=keepdim, unbiased=False)


def _is_integer(x: Tensor) -> bool:
    return not x.dtype.is_floating_point


def _matmul(args: list[Any], attrs: Any, call: Any) -> Tensor:
    a, b = args
    if _is_integer(a):  # float64 sums of integers are exact below 2**53
        return torch.matmul(a.to(torch.float64), b.to(torch.float64)).to(torch.int64)
    return torch.matmul(a, b)


def _divide(args: list[Any], attrs: Any, call: Any) -> Tensor:
    return torch.div(args[0], args[1], rounding_mode="trunc" if _is_integer(args[0]) else None)


def _strided_slice(args: list[Any], attrs: Any, call: Any) -> Tensor:
    x, axes, begin, end = args[:4]
    strides = args[4] if len(args) > 4 and args[4] is not None else [1] * len(axes)
    index: list[slice] = [slice(None)] * x.dim()
    for axis, b, e, s in zip(axes, begin, end, strides, strict=True):
        if s < 0:
            raise NotImplementedError("strided_slice with a negative stride")
        index[axis] = slice(int(b), int(e), int(s))
    return x[tuple(index)]  # type: ignore[no-any-return]


def _take(args: list[Any], attrs: Any, call: Any) -> Tensor:
    x, index = args
    index = torch.as_tensor(index)
    if attrs.axis is None:
        return x.flatten()[index.to(torch.int64)]  # type: ignore[no-any-return]
    axis = int(attrs.axis) % x.dim()
    picked = torch.index_select(x, axis, index.reshape(-1).to(torch.int64))
    return picked.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _index_tensor(args: list[Any], attrs: Any, call: Any) -> Tensor:
    x, indices = args
    return x[tuple(torch.as_tensor(i).to(torch.int64) for i in indices)]  # type: ignore[no-any-return]


def _split(args: list[Any], attrs: Any, call: Any) -> tuple[Tensor, ...]:
    x, axis = args[0], int(attrs.axis)
    where = attrs.indices_or_sections
    if isinstance(where, int) or hasattr(where, "value"):
        sections = int(where)
        return tuple(torch.chunk(x, sections, axis))
    points = [0, *(int(p) for p in where), x.shape[axis]]
    return tuple(x.narrow(axis, a, b - a) for a, b in itertools.pairwise(points))


def _quantize(args: list[Any], attrs: Any, call: Any) -> Tensor:
    x, scale, zero = args
    info = torch.iinfo(torch_dtype(str(attrs.out_dtype)))
    scale, zero = (_along(t, x.dim(), int(attrs.axis)) for t in (scale, zero))
    return torch.clamp(torch.round(x / scale) + zero, info.min, info.max)


def _dequantize(args: list[Any], attrs: Any, call: Any) -> Tensor:
    x, scale, zero = args
    scale, zero = (_along(t, x.dim(), int(attrs.axis)) for t in (scale, zero))
    centred: Tensor = x.to(torch.float32) - zero.to(torch.float32)
    return centred * scale


def _along(vector: Tensor, dims: int, axis: int) -> Tensor:
    if vector.dim() == 0:
        return vector
    shape = [1] * dims
    shape[axis] = -1
    return vector.view(shape)


def _pad(args: list[Any], attrs: Any, call: Any) -> Tensor:
    widths = [int(w) for w in attrs.pad_width]
    pairs = [p for axis in reversed(range(len(widths) // 2)) for p in widths[2 * axis : 2 * axis + 2]]
    value = float(attrs.pad_value) if str(attrs.pad_mode) == "constant" else 0.0
    mode = {"edge": "replicate"}.get(str(attrs.pad_mode), str(attrs.pad_mode))
    return F.pad(args[0], pairs, mode=mode, value=value)


def _max_reduce(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.amax(dim=dim, keepdim=keepdim)


def _min_reduce(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.amin(dim=dim, keepdim=keepdim)


def _expand_dims(args: list[Any], attrs: Any, call: Any) -> Tensor:
    x = args[0]
    rank = x.dim() + len(attrs.axis)
    for axis in sorted(int(a) % rank for a in attrs.axis):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _arg(function: Callable[..., Tensor]) -> Operator:
    def apply(args: list[Any], attrs: Any, call: Any) -> Tensor:
        return function(args[0], None if attrs.axis is None else int(attrs.axis), bool(attrs.keepdims))

    return apply


def _like(fill: float) -> Operator:
    return lambda args, attrs, call: torch.full_like(args[0], fill)


def _shape_of_result(call: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in call.ty.shape)


OPERATORS: dict[str, Operator] = {
    # arithmetic
    "add": _binary(torch.add),
    "subtract": _binary(torch.sub),
    "multiply": _binary(torch.mul),
    "divide": _divide,
    "floor_divide": _binary(lambda a, b: torch.div(a, b, rounding_mode="floor")),
    "floor_mod": _binary(torch.remainder),
    "mod": _binary(torch.fmod),
    "power": _binary(torch.pow),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "left_shift": _binary(torch.bitwise_left_shift),
    "right_shift": _binary(torch.bitwise_right_shift),
    "bitwise_and": _binary(torch.bitwise_and),
    "bitwise_or": _binary(torch.bitwise_or),
    "bitwise_xor": _binary(torch.bitwise_xor),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "equal": _binary(torch.eq),
    "not_equal": _binary(torch.ne),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    # element by element
    "abs": _unary(torch.abs),
    "negative": _unary(torch.neg),
    "sign": _unary(torch.sign),
    "exp": _unary(torch.exp),
    "log": _unary(torch.log),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": _unary(torch.rsqrt),
    "square": _unary(torch.square),
    "erf": _unary(torch.erf),
    "tanh": _unary(torch.tanh),
    "sigmoid": _unary(torch.sigmoid),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "round": _unary(torch.round),
    "floor": _unary(torch.floor),
    "ceil": _unary(torch.ceil),
    "logical_not": _unary(torch.logical_not),
    "astype": _unary(lambda x: x),
    "clip": lambda args, attrs, call: torch.clamp(args[0], args[1], args[2]),
    "where": lambda args, attrs, call: torch.where(*args),
    # reductions
    "sum": _reduce(_sum),
    "mean": _reduce(torch.mean),
    "variance": _reduce(_variance),
    "max": _reduce(_max_reduce),
    "min": _reduce(_min_reduce),
    "argmax": _arg(torch.argmax),
    "argmin": _arg(torch.argmin),
    "cumsum": lambda args, attrs, call: torch.cumsum(args[0], int(attrs.axis)),
    # shapes
    "reshape": lambda args, attrs, call: args[0].reshape(args[1]),
    "flatten": _unary(torch.flatten),
    "permute_dims": lambda args, attrs, call: args[0].permute(
        [int(a) for a in attrs.axes] if attrs.axes is not None else list(reversed(range(args[0].dim())))
    ),
    "expand_dims": _expand_dims,
    "squeeze": lambda args, attrs, call: args[0].reshape(_shape_of_result(call)),
    "broadcast_to": lambda args, attrs, call: args[0].expand(args[1]),
    "flip": lambda args, attrs, call: args[0].flip(int(attrs.axis)),
    "concat": lambda args, attrs, call: torch.cat(args[0], int(attrs.axis)),
    "stack": lambda args, attrs, call: torch.stack(args[0], int(attrs.axis)),
    "split": _split,
    "strided_slice": _strided_slice,
    "take": _take,
    "index_tensor": _index_tensor,
    "gather_elements": lambda args, attrs, call: torch.gather(args[0], int(attrs.axis), args[1]),
    "tile": lambda args, attrs, call: args[0].tile([int(r) for r in attrs.repeats]),
    "repeat": lambda args, attrs, call: torch.repeat_interleave(args[0], int(attrs.repeats), int(attrs.axis)),
    # creation
    "full": lambda args, attrs, call: torch.full(_shape_of_result(call), args[1].item()),
    "full_like": lambda args, attrs, call: torch.full_like(args[0], args[1].item()),
    "zeros": lambda args, attrs, call: torch.zeros(_shape_of_result(call)),
    "ones": lambda args, attrs, call: torch.ones(_shape_of_result(call)),
    "zeros_like": _like(0),
    "ones_like": _like(1),
    "arange": lambda args, attrs, call: torch.arange(*args),
    # networks
    "matmul": _matmul,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "nn.softmax": lambda args, attrs, call: torch.softmax(args[0], int(attrs.axis)),
    "nn.gelu": _unary(F.gelu),
    "nn.gelu_tanh": _unary(lambda x: F.gelu(x, approximate="tanh")),
    "nn.leakyrelu": lambda args, attrs, call: F.leaky_relu(args[0], float(attrs.alpha)),
    "nn.log_softmax": lambda args, attrs, call: torch.log_softmax(args[0], int(attrs.axis)),
    "nn.relu": _unary(torch.relu),
    "nn.silu": _unary(F.silu),
    "nn.dropout": lambda args, attrs, call: (args[0], torch.ones_like(args[0])),
    "nn.pad": _pad,
    **LAYERS,
}

# Folded where their operands are constant; TVM leaves these to passes that no pipeline of tvmq runs.
NOT_COMPILED = frozenset({"cumsum"})
