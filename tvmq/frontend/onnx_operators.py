"""ONNX operators that TVM's importer lacks, or writes as loops where Relax has an operator for them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


class PadOperator(onnx_frontend.Pad):  # type: ignore[misc]
    """Pad with constants as nn.pad; with other modes, or negative widths, as TVM has it."""

    @classmethod
    def _lower_pad(cls, builder: Any, inputs: Any, attr: Any, params: Any, allowed_modes: Any) -> Any:
        mode = attr.get("mode", b"constant").decode("utf-8")
        before, after, value = cls._parse_pads_and_axes(inputs, params)
        widths = [int(width) for pair in zip(before, after, strict=True) for width in pair]
        if mode != "constant" or min(widths, default=0) < 0:
            return super()._lower_pad(builder, inputs, attr, params, allowed_modes)
        return builder.normalize(relax.op.nn.pad(inputs[0], widths, "constant", float(value)))


class ClipOperator(onnx_frontend.Clip):  # type: ignore[misc]
    """Clip of floats between constants as clip, relu, maximum or minimum; any other as TVM has it."""

    @classmethod
    def _impl_v1(cls, builder: Any, inputs: Any, attr: Any, params: Any) -> Any:
        return _clipped(builder, inputs[0], attr.get("min", -math.inf), attr.get("max", math.inf))

    @classmethod
    def _impl_v13(cls, builder: Any, inputs: Any, attr: Any, params: Any) -> Any:
        bounds = [-math.inf, math.inf]
        for i, given in enumerate(inputs[1:3]):
            bound = None if given is None else onnx_frontend.get_constant(given, params)
            if bound is not None and not isinstance(bound, tvm.ir.GenericConst):
                return super()._impl_v13(builder, inputs, attr, params)
            bounds[i] = bounds[i] if bound is None else float(bound.value.numpy())
        if str(inputs[0].ty.dtype) != "float32":
            return super()._impl_v13(builder, inputs, attr, params)
        return _clipped(builder, inputs[0], *bounds)


def _clipped(builder: Any, x: Any, low: float, high: float) -> Any:
    if (low, high) == (0.0, math.inf):
        return builder.normalize(relax.op.nn.relu(x))
    if math.isinf(high):
        return builder.normalize(relax.op.maximum(x, relax.const(low, "float32")))
    if math.isinf(low):
        return builder.normalize(relax.op.minimum(x, relax.const(high, "float32")))
    return builder.normalize(relax.op.clip(x, low, high))


class PReluOperator(onnx_frontend.PRelu):  # type: ignore[misc]
    """PRelu as leaky ReLU where one slope serves all, else as a choice of products: no nn.prelu, which TVM
    wants a vector of slopes for.
    """

    @classmethod
    def _impl_v1(cls, builder: Any, inputs: Any, attr: Any, params: Any) -> Any:
        x, slope = inputs[0], onnx_frontend.get_constant(inputs[1], params)
        if isinstance(slope, tvm.ir.GenericConst) and slope.value.numpy().size == 1:
            return builder.normalize(relax.op.nn.leakyrelu(x, slope.value.numpy().item()))
        positive = relax.op.greater(x, relax.const(0.0, x.ty.dtype))
        return builder.normalize(relax.op.where(positive, x, relax.op.multiply(x, slope)))


class CeluOperator(onnx_frontend.OnnxOpConverter):  # type: ignore[misc]
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""

    @classmethod
    def _impl_v12(cls, builder: Any, inputs: Any, attr: Any, params: Any) -> Any:
        x = inputs[0]
        zero, one, alpha = (relax.const(v, x.ty.dtype) for v in (0.0, 1.0, float(attr.get("alpha", 1.0))))
        power = relax.op.subtract(relax.op.exp(relax.op.divide(x, alpha)), one)
        below = relax.op.minimum(relax.op.multiply(power, alpha), zero)
        return builder.normalize(relax.op.add(relax.op.nn.relu(x), below))


class SwishOperator(onnx_frontend.OnnxOpConverter):  # type: ignore[misc]
    """x * sigmoid(alpha * x)."""

    @classmethod
    def _impl_v24(cls, builder: Any, inputs: Any, attr: Any, params: Any) -> Any:
        x, alpha = inputs[0], float(attr.get("alpha", 1.0))
        scaled = relax.op.multiply(x, relax.const(alpha, x.ty.dtype))
        return builder.normalize(relax.op.multiply(x, relax.op.sigmoid(x if alpha == 1.0 else scaled)))


OPERATORS = {
    "Pad": PadOperator,
    "Clip": ClipOperator,
    "PRelu": PReluOperator,
    "Celu": CeluOperator,
    "Swish": SwishOperator,
}


@contextlib.contextmanager
def better_operators() -> Iterator[None]:
    """Let TVM's ONNX importer use OPERATORS."""
    original = onnx_frontend._get_convert_map
    onnx_frontend._get_convert_map = lambda: {**original(), **OPERATORS}
    try:
        yield
    finally:
        onnx_frontend._get_convert_map = original
