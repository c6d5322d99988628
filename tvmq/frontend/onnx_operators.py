"""ONNX operators that TVM's importer writes as loops, where Relax has an operator that passes understand."""

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


OPERATORS = {"Pad": PadOperator, "Clip": ClipOperator}


@contextlib.contextmanager
def better_operators() -> Iterator[None]:
    """Let TVM's ONNX importer use OPERATORS."""
    original = onnx_frontend._get_convert_map
    onnx_frontend._get_convert_map = lambda: {**original(), **OPERATORS}
    try:
        yield
    finally:
        onnx_frontend._get_convert_map = original
