"""The function of a composite under construction: its bindings, then its attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import relax
from tvm.relax import op

from tvmq.passes.rebuild import sequence

KERNEL = "tvmq.kernel"
SITE = "tvmq.site"


def tensor_type(shape: Sequence[int], dtype: str) -> relax.TensorType:
    """Return the Relax type of a static tensor."""
    return relax.TensorType(tuple(int(d) for d in shape), dtype)


def integer(value: int, dtype: str = "int32") -> relax.Expr:
    """Return a scalar integer constant."""
    return relax.const(value, dtype)


class Body:
    """Bindings of one function under construction; calling it emits an expression."""

    def __init__(self) -> None:
        self.builder = relax.BlockBuilder()
        self.bindings: list[relax.VarBinding] = []

    def __call__(self, expr: relax.Expr) -> relax.Var:
        normal = self.builder.normalize(expr)
        var = relax.Var(f"v{len(self.bindings)}", normal.ty)
        self.bindings.append(relax.VarBinding(var, normal))
        return var

    def lookup(self, index: relax.Var, values: relax.Var, shape: Sequence[int]) -> relax.Var:
        """Emit values[index]; take wants a signed index."""
        signed = index if index.ty.dtype == "int32" else self(op.astype(index, "int32"))
        return self(op.take(values, signed, axis=0, mode="clip"))

    def finish(
        self,
        params: list[relax.Var],
        result: relax.Var,
        kernel: str,
        site: str,
        attrs: Mapping[str, Any],
    ) -> relax.Function:
        body = sequence([relax.BindingBlock(self.bindings)], result)
        func = relax.Function(params, body, result.ty, is_pure=True)
        described: dict[str, Any] = {KERNEL: kernel, SITE: site}
        described |= {f"tvmq.{key}": value for key, value in attrs.items()}
        for key, value in described.items():
            func = func.with_attr(key, value)
        return func
