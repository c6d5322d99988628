"""What follows the sums of a product in the same kernel: requantize, residual, clip, table, a second copy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tvm import relax
from tvm.relax import op

from tvmq.passes.composite_body import Body, integer, tensor_type


@dataclass(frozen=True, slots=True)
class Copy:
    """The second storage of an int16 result: uint8, numerics.requantize by shift and zero_point, clipped."""

    shift: int
    zero_point: int
    low: int = 0
    high: int = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """One epilogue; see composites.linear for what the parts mean."""

    out_dtype: str
    low: int = 0
    high: int = 0
    zero_point: int = 0
    fixed_point: bool = False
    gain: bool = False
    residual: bool = False
    table: bool = False
    copy: Copy | None = None

    def attrs(self) -> dict[str, Any]:
        """Return it as attributes of a composite."""
        return {
            "out_dtype": self.out_dtype,
            "low": self.low,
            "high": self.high,
            "zero_point": self.zero_point,
            "fixed_point": int(self.fixed_point),
            "gain": int(self.gain),
            "residual": int(self.residual),
            "table": int(self.table),
            **copy_attrs(self.copy),
        }

    def emit(self, body: Body, params: list[relax.Var], sums: relax.Var) -> Any:
        """Emit the result of sums, int32 [rows, outputs].

        params: ends with the bias; what else is read is added.
        """
        rows, outputs = (int(d) for d in sums.ty.shape)
        if self.out_dtype == "float32":
            total = body(op.add(sums, params[-1]))
            params.append(relax.Var("factor", tensor_type((outputs,), "float32")))
            return body(op.multiply(body(op.astype(total, "float32")), params[-1]))
        y = self._rescaled(body, params, sums)
        if self.residual:
            params.append(relax.Var("residual", tensor_type((rows, outputs), "int16")))
            y = body(op.add(y, body(op.astype(params[-1], "int32"))))
        clipped = body(op.clip(y, self.low, self.high))
        y = body(op.astype(clipped, self.out_dtype))
        if self.table:
            params.append(relax.Var("table", tensor_type((256,), "uint8")))
            y = body.lookup(y, params[-1], (rows, outputs))
        if self.copy is None:
            return y
        return body(relax.Tuple([y, requantized(body, clipped, self.copy)]))

    def _rescaled(self, body: Body, params: list[relax.Var], sums: relax.Var) -> relax.Var:
        """Emit the requantized sums as int32."""
        bias, channels = params[-1], (int(sums.ty.shape[1]),)
        names = (*(["gain"] if self.gain else ["multiplier"] if self.fixed_point else []), "shift")
        vector = tensor_type(channels, "int8" if self.gain else "int32")
        numbers = [relax.Var(name, vector) for name in names]
        params += numbers
        if self.fixed_point:
            return _fixed_point(body, body(op.add(sums, bias)), numbers[0], numbers[1], self.zero_point)
        if not self.gain:
            return body(op.right_shift(body(op.add(sums, bias)), *numbers))
        gain, shift = (body(op.astype(number, "int32")) for number in numbers)
        return body(op.right_shift(body(op.add(body(op.multiply(sums, gain)), bias)), shift))


def copy_attrs(copy: Copy | None) -> dict[str, int]:
    """Return the attributes that say how a composite's second output is made."""
    return {f"copy_{name}": value for name, value in asdict(copy).items()} if copy else {}


def requantized(body: Body, wide: relax.Expr, copy: Copy) -> relax.Var:
    """Emit numerics.requantize of an int32 value to uint8, clipped."""
    half = (1 << copy.shift >> 1) + (copy.zero_point << copy.shift)
    moved = body(op.right_shift(body(op.add(wide, integer(half))), integer(copy.shift)))
    return body(op.astype(body(op.clip(moved, copy.low, copy.high)), "uint8"))


def _fixed_point(
    body: Body, acc: relax.Var, multiplier: relax.Var, shift: relax.Var, zero_point: int
) -> relax.Var:
    """Emit (acc * multiplier + 2**(shift-1)) >> shift in int64, plus the zero point, as int32."""
    wide_shift = body(op.astype(shift, "int64"))
    product = body(op.multiply(body(op.astype(acc, "int64")), body(op.astype(multiplier, "int64"))))
    half = body(op.left_shift(integer(1, "int64"), body(op.subtract(wide_shift, integer(1, "int64")))))
    shifted = body(op.right_shift(body(op.add(product, half)), wide_shift))
    return body(op.add(body(op.astype(shifted, "int32")), integer(zero_point)))
