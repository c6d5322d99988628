"""Run a module at any level in torch, op by op.

The one oracle of tvmq: float modules for calibration, qdq modules for accuracy, integer modules exactly.
Integer matrix products are computed in float64, which is exact below 2**53; every accumulator is below 2**31.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import tvm
from tvm import relax

from tvmq.errors import UnsupportedModelError
from tvmq.one_thread import one_thread
from tvmq.reference_ops import NOT_COMPILED, OPERATORS, torch_dtype

Observer = Callable[[str, torch.Tensor], None]
CANNOT_RUN = (
    "{site}: is {operator}, which tvmq cannot run yet; rewrite that part of the model with other operators, "
    "or compile the parts before and after it (`ignored` does not help: what stays in float is run too)"
)
Value = Any  # a tensor, a tuple of values, a shape (tuple of ints), or a number


def require_operators(mod: tvm.IRModule) -> None:
    """Raise UnsupportedModelError for the first operator of main that `run` or the build would stop at."""
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if not isinstance(call, relax.Call) or not isinstance(call.op, tvm.ir.Op):
                continue
            name = call.op.name.removeprefix("relax.")
            if name not in OPERATORS or name in NOT_COMPILED:
                raise UnsupportedModelError(CANNOT_RUN.format(site=binding.var.name, operator=name))


@one_thread()
def run(
    mod: tvm.IRModule, inputs: Sequence[torch.Tensor], *, observe: Observer | None = None
) -> tuple[torch.Tensor, ...]:
    """Return main's outputs. observe gets the name and value of every parameter and binding of main.

    Raises UnsupportedModelError for an operator that has no torch form.
    """
    interpreter = Interpreter(mod)
    with torch.no_grad():
        result = interpreter.call(mod["main"], list(inputs), observe)
    return tuple(result) if isinstance(result, tuple) else (result,)


@one_thread()
def trace(mod: tvm.IRModule, inputs: Sequence[torch.Tensor]) -> tuple[tuple[str, torch.Tensor], ...]:
    """Return (site, value) of every call to a site's function in main, in graph order."""
    interpreter = Interpreter(mod, keep_sites=True)
    with torch.no_grad():
        interpreter.call(mod["main"], list(inputs), None)
    return tuple(interpreter.sites)


@one_thread()
def run_and_keep(
    mod: tvm.IRModule, inputs: Sequence[torch.Tensor], kept: Sequence[relax.Var]
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Return main's outputs and the values of the variables in kept."""
    main = mod["main"]
    interpreter = Interpreter(mod)
    with torch.no_grad():
        values = interpreter.values(main, list(inputs), None)
        result = interpreter.evaluate(main.body.body, values)
    outputs = tuple(result) if isinstance(result, tuple) else (result,)
    return outputs, tuple(values[var] for var in kept)


class Interpreter:
    """Evaluate Relax functions; constants become torch tensors once and are kept."""

    def __init__(self, mod: tvm.IRModule, *, keep_sites: bool = False) -> None:
        self.mod = mod
        self.constants: dict[Any, torch.Tensor] = {}
        self.keep_sites = keep_sites
        self.sites: list[tuple[str, torch.Tensor]] = []

    def call(self, func: relax.Function, args: list[Value], observe: Observer | None) -> Value:
        """Bind args to func's parameters and evaluate its body."""
        return self.evaluate(func.body.body, self.values(func, args, observe))

    def values(
        self, func: relax.Function, args: list[Value], observe: Observer | None
    ) -> dict[relax.Var, Value]:
        """Return the value of every parameter and variable of func."""
        env: dict[relax.Var, Value] = dict(zip(func.params, args, strict=True))
        if observe is not None:
            for var, value in env.items():
                _report(observe, var.name, value)
        for block in func.body.blocks:
            for binding in block.bindings:
                try:
                    value = self.evaluate(binding.value, env)
                except NotImplementedError as error:
                    site = str(binding.var.name)
                    raise UnsupportedModelError(CANNOT_RUN.format(site=site, operator=error)) from error
                env[binding.var] = value
                if observe is not None:
                    _report(observe, binding.var.name, value)
        return env

    def evaluate(self, expr: Any, env: Mapping[relax.Var, Value]) -> Value:
        """Return the value of one expression in normal form."""
        if isinstance(expr, relax.Var):
            return env[expr]
        if isinstance(expr, tvm.ir.GenericConst):
            return self._constant(expr)
        if isinstance(expr, relax.Tuple):
            return tuple(self.evaluate(field, env) for field in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self.evaluate(expr.tuple_value, env)[expr.index]
        if isinstance(expr, relax.ShapeExpr):
            return tuple(int(v) for v in expr.values)
        if isinstance(expr, relax.Call):
            return self._call(expr, env)
        if isinstance(expr, (tvm.tirx.IntImm, tvm.tirx.FloatImm)):
            return expr.value
        if isinstance(expr, tvm.ir.StringImm):
            return str(expr.value)
        raise NotImplementedError(f"an expression of type {type(expr).__name__}")

    def _call(self, call: relax.Call, env: Mapping[relax.Var, Value]) -> Value:
        args = [self.evaluate(arg, env) for arg in call.args]
        if isinstance(call.op, tvm.ir.GlobalVar):
            func = self.mod[call.op]
            value = self.call(func, args, None)
            site = func.attrs.get("tvmq.site") if func.attrs else None
            if self.keep_sites and site is not None:
                self.sites.append((str(site), value))
            return value
        return self.apply(call, args)

    def apply(self, call: relax.Call, args: list[Value]) -> Value:
        """Return the value of an operator's call on args, whatever the call's own arguments are."""
        name = call.op.name.removeprefix("relax.")
        operator = OPERATORS.get(name)
        if operator is None:
            raise NotImplementedError(name)
        out = call.ty.dtype if isinstance(call.ty, relax.TensorType) else None
        value = operator(args, call.attrs, call)
        # Relax fixes every result's dtype; torch promotes by its own rules.
        if out is not None and isinstance(value, torch.Tensor) and value.dtype != torch_dtype(str(out)):
            value = value.to(torch_dtype(str(out)))
        return value

    def _constant(self, constant: Any) -> torch.Tensor:
        if constant not in self.constants:
            self.constants[constant] = torch.from_numpy(constant.value.numpy().copy())
        return self.constants[constant]


def _report(observe: Observer, name: str, value: Value) -> None:
    if isinstance(value, torch.Tensor):
        observe(name, value)
