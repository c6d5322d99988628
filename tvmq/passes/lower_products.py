"""Lower matmul, conv2d and conv2d_transpose, and what one kernel computes with them.

A product gathers its bias, the residual it is added to and its clip (PendingLinear) until a quantize gives
it an output scale; what is emitted then is one call of composites.linear.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvmq.formats import QuantizedWeight, QuantParams
from tvmq.passes import composites
from tvmq.passes.constants import channel_vector
from tvmq.passes.conv_geometry import ConvGeometry, merged
from tvmq.passes.epilogue import Copy, Epilogue
from tvmq.passes.integer_parameters import product_parameters
from tvmq.passes.layouts import RowsLayout, channels_last
from tvmq.passes.lowering_values import (
    Array,
    Emitter,
    Expr,
    Pending,
    PendingLinear,
    QdqCall,
    Stored,
    WeightConstant,
    constant,
)
from tvmq.passes.patches import interleave, supports_transposed, transposed_phases


def matmul(emit: Emitter, source: QdqCall) -> PendingLinear | None:
    """Return the pending product of uint8 activations and a weight constant."""
    x, weight = source.operands
    quantized = weight_of(weight, 1)
    if not (isinstance(x, Stored) and x.params.dtype == "uint8") or quantized is None:
        return None
    if quantized.values.ndim != 2:
        return None
    last = emit.with_layout(x, channels_last(x.layout.shape))
    layout = RowsLayout(last.layout.rows, len(last.layout.rows), (quantized.values.shape[1],))
    return PendingLinear(source.name, emit.rows(last), x.params, quantized, layout)


def conv2d(emit: Emitter, source: QdqCall) -> PendingLinear | None:
    """Return the pending convolution of stored values and a weight constant."""
    x, weight = source.operands
    quantized = weight_of(weight, 0)
    attrs = source.call.attrs
    if not isinstance(x, Stored) or quantized is None:
        return None
    if (str(attrs.data_layout), str(attrs.kernel_layout)) != ("NCHW", "OIHW"):
        return None
    geometry = ConvGeometry.of(x.layout.shape, quantized.values.shape, attrs)
    geometry, values = merged(geometry, quantized.values.transpose(2, 3, 1, 0))
    matrix = np.ascontiguousarray(values.reshape(-1, geometry.outputs))
    batch, channels, rows, columns = x.layout.shape
    pixels = emit.with_layout(x, RowsLayout((batch, rows, columns), 1, (channels,)))
    layout = RowsLayout((batch, geometry.out_rows, geometry.out_columns), 1, (geometry.outputs,))
    product = QuantizedWeight(matrix, quantized.scale)
    return PendingLinear(source.name, emit.rows(pixels), x.params, product, layout, conv=geometry)


def conv2d_transpose(emit: Emitter, source: QdqCall) -> Pending | None:
    """Return the pending convolution, one product per phase."""
    x, weight = source.operands
    quantized = weight_of(weight, 1)
    if not isinstance(x, Stored) or quantized is None:
        return None
    if not supports_transposed(quantized.values.shape, source.call.attrs):
        return None
    return Pending("conv2d_transpose", source)


def accumulate(emit: Emitter, linear: PendingLinear, right: Any) -> PendingLinear | None:
    """Return the product with a bias or an int16 residual added to it, None for any other operand."""
    if linear.bounds is not None:
        return None
    bias = _bias(right, linear.layout)
    if bias is not None and linear.bias is None:
        return replace(linear, bias=bias)
    if not isinstance(right, Stored) or linear.residual is not None:
        return None
    if right.params.dtype != "int16" or right.layout.shape != linear.layout.shape:
        return None
    return replace(linear, residual=emit.with_layout(right, linear.layout))


def transposed_bias(pending: Pending, right: Any) -> Pending | None:
    """Return the transposed convolution with a bias added to it, None for any other operand."""
    layout = RowsLayout((1, 1, 1), 1, (pending.source.shape[1],))
    if pending.bias is not None or pending.bounds is not None or _bias(right, layout) is None:
        return None
    return replace(pending, bias=right)


def defer(emit: Emitter, linear: PendingLinear, out: QuantParams) -> Stored | None:
    """Return the product's stored value, emitted on first use: a table may still join it.

    None where the residual is not stored as the result is: then no integer addition gives the sum.
    """
    residual = linear.residual
    if residual is not None and (not residual.params.aligned(out) or out.zero_point != 0):
        return None
    stored = Stored(out, linear.layout, pending=linear)
    stored.force = lambda: emit_linear(emit, linear, out)
    if out.dtype == "uint8":
        stored.through = lambda table: emit_linear(emit, linear, out, table)
    return stored


def with_copy(emit: Emitter, name: str, source: Stored, out: QuantParams, shift: int) -> Stored | None:
    """Return the uint8 storage of an int16 convolution that makes both; None for anything else.

    shift: from the int16 storage to the other.
    """
    linear = source.pending
    if linear is None or linear.conv is None or source.rows_var is not None:
        return None
    if (source.params.dtype, out.dtype) != ("int16", "uint8"):
        return None
    second = Stored(out, source.layout)
    source.pending = None  # nothing else joins it

    def both() -> Expr:
        pair = emit_linear(emit, linear, source.params, copy=Copy(shift, out.zero_point, out.low, out.high))
        second.rows_var = emit(relax.TupleGetItem(pair, 1), name)
        return emit(relax.TupleGetItem(pair, 0))

    def copied() -> Expr:
        emit.rows(source)
        return second.rows_var

    source.force, second.force = both, copied
    return second


def emit_linear(
    emit: Emitter,
    linear: PendingLinear,
    out: QuantParams | None,
    table: Array | None = None,
    copy: Copy | None = None,
) -> Expr:
    """Emit the product as rows of out.dtype, or float32 (without residual and clip) where out is None.

    With copy, which only convolutions take, it is a tuple.
    """
    product = product_parameters(linear.site, linear.x_params, linear.weight, linear.bias, out)
    linear, numbers = replace(linear, weight=product.weight), product.numbers
    residual = linear.residual if out is not None else None
    low, high = (out.low, out.high) if out is not None else (0, 0)
    epilogue = Epilogue(
        out_dtype="float32" if out is None else out.dtype,
        low=low,
        high=high,
        zero_point=out.zero_point if out is not None and numbers.fixed_point else 0,
        fixed_point=numbers.fixed_point,
        gain=numbers.gain,
        residual=residual is not None,
        table=table is not None,
        copy=copy,
    )
    func, values = _composite(linear, epilogue, product.bits)
    args = [linear.x, *map(constant, (values, numbers.bias, *numbers.rescale))]
    args += [emit.rows(residual)] if residual is not None else []
    args += [constant(table)] if table is not None else []
    return emit.composite(func, args, linear.site)


def _composite(linear: PendingLinear, epilogue: Epilogue, bits: int) -> tuple[relax.Function, Array]:
    """Return the function of a product and its weight, which uses so many bits, as the function takes it."""
    inputs, outputs = linear.weight.values.shape
    dtype, conv = linear.x_params.dtype, linear.conv
    if conv is None:
        rows = linear.layout.matrix[0]
        sizes = {"rows": rows, "inputs": inputs, "outputs": outputs}
        func = composites.linear(linear.site, epilogue, **sizes, in_dtype=dtype, weight_bits=bits)
        return func, linear.weight.values
    pad_value = linear.x_params.zero_point
    func = composites.conv2d(
        linear.site, epilogue, conv, in_dtype=dtype, pad_value=pad_value, weight_bits=bits
    )
    kernel = (conv.kernel_rows, conv.kernel_columns, conv.group_inputs, outputs)
    return func, linear.weight.values.reshape(kernel)


def quantize_transposed(emit: Emitter, pending: Pending, out: QuantParams) -> Stored:
    """Emit one product per phase of the output and weave them together."""
    x = pending.source.operands[0]
    weight = weight_of(pending.source.operands[1], 1)
    assert weight is not None  # conv2d_transpose saw to it
    size, strides, products = transposed_phases(emit, x, weight.values, pending.source.call.attrs)
    channels = weight.values.shape[1]
    parts = []
    for index, (patches, matrix) in enumerate(products):
        linear = PendingLinear(
            f"{pending.source.name}.phase{index}",
            patches,
            x.params,
            QuantizedWeight(matrix, weight.scale),
            channels_last((*size, channels)),
            None if pending.bias is None else pending.bias.value.numpy().astype(np.float64).ravel(),
            bounds=pending.bounds,
        )
        parts.append(emit_linear(emit, linear, out))
    return interleave(emit, parts, size, strides, out)


def weight_of(value: Any, axis: int) -> QuantizedWeight | None:
    """Return a symmetric int8 constant with its scales along axis, the outputs; None for anything else.

    A constant with one scale for all gets it once per output.
    """
    if isinstance(value, WeightConstant):
        return value.weight if value.axis % value.weight.values.ndim == axis else None
    if not isinstance(value, Stored) or not isinstance(value.dense_var, tvm.ir.GenericConst):
        return None
    if (value.params.dtype, value.params.zero_point) != ("int8", 0) or len(value.layout.shape) <= axis:
        return None
    values = value.dense_var.value.numpy()
    return QuantizedWeight(values, np.full(values.shape[axis], value.params.scale, np.float32))


def _bias(value: Any, layout: RowsLayout) -> npt.NDArray[np.float64] | None:
    """Return a constant float64 [channels] if that is how it adds to a value of layout."""
    if not isinstance(value, tvm.ir.GenericConst) or len(layout.channel) != 1:
        return None
    vector = channel_vector(value, math.prod(layout.channel), layout.position, len(layout.shape))
    return None if vector is None else vector.astype(np.float64)
