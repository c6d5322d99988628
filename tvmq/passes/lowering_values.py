"""What a value of a qdq module is while it is being lowered: stored integers, or work not yet emitted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax
from tvm.relax import op

from tvmq.formats import QuantizedWeight, QuantParams
from tvmq.passes.composite_body import KERNEL, SITE
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.epilogue import Copy
from tvmq.passes.layouts import RowsLayout
from tvmq.passes.rebuild import live, sequence
from tvmq.passes.unary_chains import Chain

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int32]
Expr = Any  # relax.Expr; tvm ships no types
Bounds = tuple[float, float]


@dataclass(slots=True)
class Stored:
    """A quantized value: a tensor of params.dtype, as rows of channels, in its logical shape, or both.

    A value whose producer is still pending has neither; `force` emits it on first use. With an order, the
    value is rows_var[order], seen as its layout says: a permutation that nothing has carried out yet.
    """

    params: QuantParams
    layout: RowsLayout
    rows_var: Expr | None = None
    dense_var: Expr | None = None
    float_var: Expr | None = None
    force: Callable[[], Expr] | None = None
    pending: PendingLinear | None = None
    paired: Callable[[Copy], Expr] | None = None  # emits the value and a uint8 copy of it, as a tuple
    seen: Expr | None = None  # of an attention: the mask; rows that see no key are zero
    order: Rows | None = None
    through: Callable[[Array], Expr] | None = None  # emits, in place of uint8 q, what a table holds for it


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: each is emitted once
class PendingLinear:
    """A product whose bias, residual and clip are still being gathered."""

    site: str
    x: Expr  # uint8 (convolutions: any stored dtype), rows
    x_params: QuantParams
    weight: QuantizedWeight  # values [K, N]; convolutions: K is kernel rows * kernel columns * inputs
    layout: RowsLayout  # of the result
    bias: npt.NDArray[np.float64] | None = None
    residual: Stored | None = None
    bounds: Bounds | None = None  # real units: relu (0, inf), relu6 (0, 6)
    clip: str = ""  # the name of what clips to bounds
    conv: ConvGeometry | None = None  # None: a product of two matrices

    def bounded(self, bounds: Bounds, clip: str) -> PendingLinear:
        """Return the product followed by a clip."""
        return replace(self, bounds=_both(self.bounds, bounds), clip=clip)


@dataclass(frozen=True, slots=True)
class QdqCall:
    """A call of the qdq module, with what its arguments have become."""

    name: str
    call: Expr
    operands: tuple[Any, ...]
    readers: int  # how often the first variable argument is read in the whole function, by a chain once
    chain: Chain | None = None  # call ends it; the only operand is its source

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the result."""
        return tuple(int(d) for d in self.call.ty.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """Any other integer operation, which waits for the quantize that gives its output scale."""

    kind: str  # layer_norm attention unary add embedding pool conv2d_transpose; clip, of a stored value
    source: QdqCall
    bias: Expr | None = None  # of convolutions
    bounds: Bounds | None = None
    clip: str = ""

    def bounded(self, bounds: Bounds, clip: str) -> Pending:
        """Return the operation followed by a clip."""
        return replace(self, bounds=_both(self.bounds, bounds), clip=clip)


def _both(first: Bounds | None, second: Bounds) -> Bounds:
    """Return the bounds of a value that is clipped twice."""
    if first is None:
        return second
    low, high = max(first[0], second[0]), min(first[1], second[1])
    return (low, high) if low <= high else (min(max(first[0], second[0]), second[1]),) * 2


def constant(values: Any) -> Expr:
    """Return a tensor constant."""
    return relax.const(np.ascontiguousarray(values))


def within(out: QuantParams, bounds: Bounds | None) -> QuantParams:
    """Return the storage with the limits that bounds, in real units, come to."""
    if bounds is None:
        return out
    low, high = (
        end if math.isinf(bound) else out.zero_point + math.floor(bound / out.scale + 0.5)
        for bound, end in zip(bounds, (out.low, out.high), strict=True)
    )
    return out.limited(low, high)


class Emitter:
    """Collects the bindings and the functions of the new module."""

    def __init__(self) -> None:
        self.builder = relax.BlockBuilder()
        self.bindings: list[Any] = []
        self.masks: dict[Expr, Expr] = {}  # booleans, as the kernels of attention read them
        self.float_vars: dict[PendingLinear | Pending, Expr] = {}  # what became float after all
        self._values: dict[Expr, Expr] = {}
        self._functions = 0
        self._emitted: Counter[str] = Counter()

    def __call__(self, expr: Expr, name: str = "") -> Expr:
        """Bind expr and return its variable."""
        normal = self.builder.normalize(expr)
        var = relax.DataflowVar(name or f"v{len(self.bindings)}", normal.ty)
        self.bindings.append(relax.VarBinding(var, normal))
        self._values[var] = normal
        return var

    def value(self, expr: Expr) -> Expr:
        """Return what a variable of the new module is bound to; any other expression as it is."""
        return self._values.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def composite(self, func: relax.Function, args: list[Expr], site: str) -> Expr:
        """Add func to the module and bind a call to it.

        A site emitted again, with another epilogue for another reader, gets an ordinal: ids are unique.
        """
        self._emitted[site] += 1
        if self._emitted[site] > 1:
            site = f"{site}.{self._emitted[site]}"
            func = func.with_attr(SITE, site)
        kind = str(func.attrs[KERNEL])
        gvar = self.builder.add_func(func, f"{kind}_{self._functions}")
        self._functions += 1
        return self(relax.Call(gvar, args), site)

    def rows(self, value: Stored) -> Expr:
        """Return the value as [rows, channels]."""
        stored = self.stored_rows(value)
        if value.order is not None:
            taken = self(op.take(stored, relax.const(value.order), axis=0, mode="clip"))
            matrix = value.layout.matrix
            value.rows_var = taken if tuple(taken.ty.shape) == matrix else self(op.reshape(taken, matrix))
            value.order = None
        return value.rows_var

    def stored_rows(self, value: Stored) -> Expr:
        """Return rows as they lie in memory, which value.order puts into the value's order."""
        if value.rows_var is None:
            if value.force is not None:
                value.rows_var = value.force()
            else:
                value.rows_var = self._to_rows(value.dense_var, value.layout)
        return value.rows_var

    def dense(self, value: Stored) -> Expr:
        """Return the value in its logical shape."""
        if value.dense_var is None:
            rows, layout = self.rows(value), value.layout
            order = layout.to_stored_order()
            shape = tuple(layout.shape[axis] for axis in order)
            dense = rows if shape == layout.matrix else self(op.reshape(rows, shape))
            if not layout.is_channels_last:
                dense = self(op.permute_dims(dense, [order.index(a) for a in range(len(order))]))
            value.dense_var = dense
        return value.dense_var

    def with_layout(self, value: Stored, layout: RowsLayout) -> Stored:
        """Return the value stored in layout, which has the same logical shape."""
        if value.layout == layout:
            return value
        if value.layout.matrix == layout.matrix and value.layout.is_channels_last and layout.is_channels_last:
            return Stored(value.params, layout, rows_var=self.stored_rows(value), order=value.order)
        return Stored(value.params, layout, dense_var=self.dense(value))

    def _to_rows(self, dense: Expr, layout: RowsLayout) -> Expr:
        if not layout.is_channels_last:
            dense = self(op.permute_dims(dense, layout.to_stored_order()))
        return dense if tuple(dense.ty.shape) == layout.matrix else self(op.reshape(dense, layout.matrix))

    def finish(self, original: relax.Function, result: Expr) -> tvm.IRModule:
        """Return the module with the bindings as main's body."""
        kept = live([(b.var, b.value) for b in self.bindings], result)  # integers may need no float mask
        block = relax.DataflowBlock([relax.VarBinding(var, value) for var, value in kept])
        bound = [var for var, _ in kept]
        outputs = {v: relax.Var(v.name, v.ty) for v in bound if _reads(result, v)}
        block, result = _with_outputs(block, result, outputs)
        body = sequence([block], result)
        main = relax.Function(original.params, body, result.ty, is_pure=True, attrs=original.attrs)
        if main.attrs is None or "global_symbol" not in main.attrs:
            main = main.with_attr("global_symbol", "main")
        mod = self.builder.get()
        mod["main"] = main
        return mod


def _reads(expr: Expr, var: Expr) -> bool:
    if isinstance(expr, relax.Tuple):
        return any(_reads(f, var) for f in expr.fields)
    return bool(expr == var)


def _with_outputs(block: Any, result: Expr, outputs: dict[Expr, Expr]) -> tuple[Any, Expr]:
    """Return the block with its results bound to plain variables, and the result that names them."""
    bindings = list(block.bindings)
    for inner, outer in outputs.items():
        bindings.append(relax.VarBinding(outer, inner))

    def swap(expr: Expr) -> Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([swap(f) for f in expr.fields])
        return outputs.get(expr, expr)

    return relax.DataflowBlock(bindings), swap(result)


@dataclass(frozen=True, slots=True)
class WeightConstant:
    """A dequantized int8 weight with one scale per output channel."""

    weight: QuantizedWeight
    axis: int = field(default=1)
